"""Conversations longer than what is read of them: prompts go on to begin alike, and what is left out is told."""

import itertools

import pytest

from chatkit.conversation import Conversation
from chatkit.errors import EngineFailed
from chatkit.planning import ServiceOptions
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedModel, turn_with
from chatkit.types import ChatRequest, Message

pytestmark = pytest.mark.anyio


def service_with(**options) -> OpenChatKitService:
    options = ServiceOptions(system_prompt="Be brief.", **options)
    return OpenChatKitService(ScriptedModel(["Fine."]), KeywordModerator([]), MemoryStore(), options=options)


def first_of(prompt: str) -> int:
    """Return the number of the first turn in a prompt."""
    return int(prompt.split("<human>: turn ", 1)[1].split(maxsplit=1)[0])


async def test_over_a_hundred_turns_the_prefix_changes_once_in_sixteen_and_what_is_left_out_is_counted() -> None:
    service = service_with()
    replies = [
        await service.reply(ChatRequest(f"turn {n} now", f"request-{n}", session_id="a-session")) for n in range(1, 101)
    ]
    prompts = service.model.prompts
    pairs = itertools.pairwise(prompts)
    breaks = [n for n, (a, b) in enumerate(pairs, 2) if not b.startswith(a[: a.rindex("<human>")])]
    assert breaks == [66, 82, 98]  # 65 turns before it are one more than are read
    assert [first_of(prompt) for prompt in (prompts[64], prompts[65], prompts[80], prompts[81])] == [1, 17, 17, 33]
    assert [reply.dropped_turns for reply in replies] == [first_of(prompt) - 1 for prompt in prompts]
    assert [prompt.count("<bot>: Fine.") for prompt in (prompts[64], prompts[65], prompts[80])] == [64, 49, 64]


async def test_what_a_caller_keeps_is_read_in_blocks_too() -> None:
    service = service_with(history_turns=8)
    messages = [Message(role, f"{role} {n}") for n in range(1, 31) for role in ("user", "assistant")]
    told = []
    for turns in range(9, 31):
        request = ChatRequest("And now?", f"request-{turns}", history=tuple(messages[: 2 * turns]))
        told.append((await service.reply(request)).dropped_turns)
    assert told == [turns - 8 + turns % 2 for turns in range(9, 31)]
    assert all(f"<human>: user {dropped + 1}\n" in p for dropped, p in zip(told, service.model.prompts, strict=True))
    assert not any(f"<human>: user {dropped}\n" in p for dropped, p in zip(told, service.model.prompts, strict=True))


async def test_turns_left_out_by_the_window_and_by_the_budget_are_counted_together() -> None:
    service = service_with(history_turns=8)
    service.model.context_window = 656
    long = "word " * 20
    messages = [Message(role, f"{role} {n} {long}") for n in range(1, 21) for role in ("user", "assistant")]
    reply = await service.reply(ChatRequest("And now?", "request-1", history=tuple(messages)))
    kept = service.model.prompts[0].count("<bot>: assistant")
    assert 0 < kept < 8
    assert reply.dropped_turns == 20 - kept


@pytest.mark.parametrize(
    ("numbers", "limit", "kept", "left_out"),
    [
        (range(1, 9), 8, range(1, 9), 0),  # a whole session
        (range(5, 9), 8, range(5, 9), 0),  # fewer than were asked for: there are no others
        (range(2, 10), 8, range(3, 10), 2),
        (range(3, 11), 8, range(3, 11), 2),
        ((2, 5, 6, 9, 10, 11, 12, 13), 8, (5, 6, 9, 10, 11, 12, 13), 4),  # with holes
        (range(7, 8), 1, range(7, 8), 6),
        ((), 8, (), 0),
    ],
)
def test_the_first_turn_is_that_of_a_whole_block(numbers, limit, kept, left_out) -> None:
    found = Conversation(tuple(turn_with(n, "q", "a") for n in numbers)).in_blocks(limit)
    assert ([turn.seq for turn in found], found.left_out) == (list(kept), left_out)


async def test_a_turn_that_runs_again_below_what_is_read_tells_no_more_than_came_before_it() -> None:
    service = service_with(history_turns=4)
    cut_short = ChatRequest("turn 3 now", "request-3", session_id="a-session")
    for n in range(1, 12):
        if n == 3:
            service.model._replies.appendleft([EngineFailed("gone")])
            with pytest.raises(EngineFailed, match="gone"):
                await service.reply(cut_short)
        else:
            await service.reply(ChatRequest(f"turn {n} now", f"request-{n}", session_id="a-session"))
    reply = await service.reply(cut_short)
    assert (reply.seq, reply.dropped_turns) == (3, 2)
