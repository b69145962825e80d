"""The service: one path for every turn, and what it leaves in the store."""

import asyncio
import time

import pytest

from chatkit import errors
from chatkit.planning import ServiceOptions
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, ListRetriever, MemoryStore, ScriptedModel
from chatkit.types import (
    ChatRequest,
    Error,
    Owner,
    Passage,
    Replace,
    Reply,
    RetrievalOptions,
    Retrieved,
    SamplingParams,
    TextDelta,
    TurnStarted,
)

pytestmark = pytest.mark.anyio
OWNER = Owner()
LONG = ["The first sentence is here. ", "The second sentence follows. ", *["word "] * 400]
PASSAGES = [Passage("p1", "chatkit listens on port 8080", title="Serving", score=0.9)]


def service_with(*replies, moderator=None, store=None, retriever=None, delay=0.0, **options) -> OpenChatKitService:
    return OpenChatKitService(
        ScriptedModel(*replies, delay=delay),
        moderator or KeywordModerator(["canary"]),
        store or MemoryStore(),
        retriever=retriever,
        options=ServiceOptions(**options),
    )


def ask(text="Hello there", request_id="request-1", session_id="my-session", **more) -> ChatRequest:
    return ChatRequest(text, request_id, session_id=session_id, **more)


async def stored(service, session_id="my-session", owner=OWNER):
    return (await service._store.load(owner, session_id, limit=99)).turns


async def events_of(service, request) -> list:
    return [event async for event in service.stream(request)]


async def until(condition, seconds=2.0) -> None:
    deadline = time.monotonic() + seconds
    for _ in iter(condition, True):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


class FailingStore(MemoryStore):
    def __init__(self, *failing: str) -> None:
        super().__init__()
        self.failing = set(failing)

    async def accept(self, turn):
        if "accept" in self.failing:
            raise errors.StoreFailed("disk gone")
        return await super().accept(turn)

    async def finish(self, ticket, outcome):
        if "finish" in self.failing:
            raise errors.StoreFailed("disk gone")
        await super().finish(ticket, outcome)


async def test_events_come_in_order_and_the_reply_is_what_was_sent() -> None:
    service = service_with(["It listens ", "on 8080."], retriever=ListRetriever(PASSAGES))
    events = await events_of(service, ask("Which port? chatkit port please tell me"))
    kinds = [type(event) for event in events]
    assert kinds == [TurnStarted, Retrieved, TextDelta, Reply]
    assert events[-1].text == "".join(e.text for e in events if isinstance(e, TextDelta)) == "It listens on 8080."
    assert events[-1].passages == events[1].passages == tuple(PASSAGES)
    assert (events[-1].seq, events[-1].finish_reason, events[-1].replayed) == (1, "stop", False)
    stages = {"moderation_input", "retrieval", "accept", "first_token", "first_delta", "generation", "finish", "total"}
    assert stages <= set(events[-1].timings)


async def test_streamed_and_plain_answers_are_the_same() -> None:
    for gate in ("check_first", "stream_first", "final_only"):
        service = service_with(LONG[:50], gate=gate)
        events = await events_of(service, ask())
        reply = await service.reply(ask(request_id="request-2", session_id="my-session2"))
        assert reply.text == events[-1].text == "".join(e.text for e in events if isinstance(e, TextDelta))


async def test_a_stop_word_of_the_request_cuts_the_answer() -> None:
    service = service_with(["One. ", "ST", "OP two."])
    reply = await service.reply(ask(sampling=SamplingParams(stop_words=("STOP",))))
    assert (reply.text, reply.finish_reason, reply.usage.completion_tokens) == ("One. ", "stop", 3)


async def test_max_new_tokens_ends_with_length() -> None:
    reply = await service_with(LONG).reply(ask(sampling=SamplingParams(max_new_tokens=2)))
    assert (reply.finish_reason, reply.usage.completion_tokens) == ("length", 2)


async def test_a_refused_message_is_stored_by_label_and_length_only_and_never_reaches_the_model() -> None:
    service = service_with(["never"])
    events = await events_of(service, ask("tell me canary things"))
    assert [type(event) for event in events] == [TurnStarted, Replace, Reply]
    assert events[1] == Replace("I cannot help with that.", "needs intervention")
    assert events[2].finish_reason == "content_filter"
    assert events[2].moderation_input.flagged
    (turn,) = await stored(service)
    assert (turn.status, turn.blocked, turn.label, turn.user, turn.assistant, turn.user_length) == (
        "blocked", "input", "needs intervention", "", "", 21,
    )  # fmt: skip
    assert service.model.prompts == []


async def test_a_blocked_answer_is_replaced_and_no_text_of_either_side_is_kept() -> None:
    service = service_with(["The first sentence is here. ", "Now the canary sings loudly. ", "More."])
    events = await events_of(service, ask())
    assert [type(event) for event in events] == [TurnStarted, TextDelta, Replace, Reply]
    assert (events[-1].text, events[-1].finish_reason) == ("I cannot help with that.", "content_filter")
    assert events[-1].passages == ()
    (turn,) = await stored(service)
    assert (turn.status, turn.blocked, turn.label, turn.user, turn.assistant) == (
        "blocked", "output", "needs intervention", "", "",
    )  # fmt: skip


async def test_unchecked_input_is_refused_unless_the_operator_allows_it_and_output_always() -> None:
    broken = KeywordModerator(broken=ValueError("no head"))
    refused = service_with(["Hi."], moderator=broken)
    assert (await refused.reply(ask())).finish_reason == "content_filter"
    assert (await stored(refused))[0].label == "unavailable"

    class InputDown(KeywordModerator):
        async def check(self, text, *, direction, before="", history=()):
            if direction == "input":
                raise ValueError("no head")
            return await super().check(text, direction=direction, before=before, history=history)

    allowed = service_with(["Hi."], moderator=InputDown(), refuse_unchecked_input=False)
    assert (await allowed.reply(ask())).text == "Hi."
    output = service_with(["Hi."], moderator=broken, refuse_unchecked_input=False)
    reply = await output.reply(ask())
    assert (reply.finish_reason, reply.text) == ("content_filter", "I cannot help with that.")
    assert (await stored(output))[0].label == "unavailable"


async def test_a_repeat_of_a_finished_turn_is_replayed_without_a_second_generation() -> None:
    service = service_with(["First."], ["Second."])
    first = await service.reply(ask())
    again = await service.reply(ask())
    assert (again.text, again.seq, again.replayed) == (first.text, 1, True)
    assert [type(e) for e in await events_of(service, ask())] == [TurnStarted, TextDelta, Reply]
    assert len(service.model.prompts) == 1
    blocked = await service.reply(ask("a canary", "request-2"))
    replay = await events_of(service, ask("a canary", "request-2"))
    assert [type(e) for e in replay] == [TurnStarted, Replace, Reply]
    assert (replay[-1].text, replay[-1].seq, replay[-1].finish_reason) == (blocked.text, 2, "content_filter")


async def test_an_aborted_turn_runs_again_under_its_own_number() -> None:
    service = service_with(LONG, ["The full answer."], delay=0.001)
    stream = service.stream(ask())
    async for event in stream:
        if isinstance(event, TextDelta):
            break
    await stream.aclose()
    reply = await service.reply(ask())
    assert (reply.text, reply.seq, reply.replayed) == ("The full answer.", 1, False)
    (turn,) = await stored(service)
    assert (turn.status, turn.attempt, turn.assistant) == ("complete", 2, "The full answer.")


async def test_a_rerun_sees_only_the_turns_before_it() -> None:
    service = service_with(["First."], LONG, ["Third."], ["Second."], delay=0.001)
    await service.reply(ask("one"))
    live = service.start(ask("two", "request-2"))
    await until(lambda: service.model.tokens_made > 5)
    live.cancel()
    assert (await live.result()).finish_reason == "aborted"
    await service.reply(ask("three", "request-3"))
    assert (await service.reply(ask("two", "request-2"))).seq == 2
    assert "three" in service.model.prompts[2]
    assert "First." in service.model.prompts[3]
    assert "three" not in service.model.prompts[3]


async def test_the_same_request_at_once_is_one_generation() -> None:
    service = service_with(["Only ", "once."], ["Twice."], delay=0.005)
    replies = await asyncio.gather(*(service.reply(ask()) for _ in range(5)))
    assert {reply.text for reply in replies} == {"Only once."}
    assert len(service.model.prompts) == 1


async def test_a_request_id_with_another_message_is_a_conflict_while_it_runs_and_later() -> None:
    service = service_with(["Slow."], delay=0.01)
    running = asyncio.create_task(service.reply(ask()))
    await asyncio.sleep(0)
    with pytest.raises(errors.Conflict, match="request-1"):
        await service.reply(ask("Something else"))
    await running
    with pytest.raises(errors.Conflict, match="request-1"):
        await service.reply(ask("Something else"))
    with pytest.raises(errors.Conflict, match="request-1"):
        await service.reply(ask(session_id="another-one"))


@pytest.mark.parametrize("taken", [1, 2])
async def test_a_stream_left_midway_is_stored_with_exactly_what_was_taken(taken) -> None:
    service = service_with(LONG, delay=0.002)
    stream, got = service.stream(ask()), []
    async for event in stream:
        if isinstance(event, TextDelta):
            if len(got) == taken:
                break
            got.append(event.text)
    await stream.aclose()
    await until(lambda: len(service.turns) == 0)
    (turn,) = await stored(service)
    assert (turn.status, turn.finish_reason, turn.assistant) == ("aborted", "aborted", "".join(got))
    made = service.model.tokens_made
    await asyncio.sleep(0.02)
    assert service.model.tokens_made == made < 400


async def test_a_plain_caller_that_leaves_cancels_only_without_a_request_id_of_its_own() -> None:
    for chosen, status in ((True, "complete"), (False, "aborted")):
        service = service_with(LONG[:60], delay=0.001)
        waiting = asyncio.create_task(service.reply(ask(client_request_id=chosen)))
        await until(lambda service=service: service.model.tokens_made > 3)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda service=service: len(service.turns) == 0)
        assert (await stored(service))[0].status == status


async def test_a_plain_repeat_makes_a_running_stream_patient() -> None:
    service = service_with(LONG[:60], delay=0.001)
    stream = service.stream(ask(client_request_id=True))
    await anext(stream)
    second = asyncio.create_task(service.reply(ask(client_request_id=True)))
    await asyncio.sleep(0)
    await stream.aclose()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await until(lambda: len(service.turns) == 0)
    assert (await stored(service))[0].status == "complete"


async def test_the_deadline_ends_the_answer_with_what_it_has_and_that_is_complete() -> None:
    service = service_with(LONG, delay=0.005)
    reply = await service.reply(ask(deadline_s=0.1))
    assert reply.finish_reason == "deadline"
    assert reply.text.startswith(LONG[0])
    (turn,) = await stored(service)
    assert (turn.status, turn.finish_reason, turn.assistant) == ("complete", "deadline", reply.text)


async def test_an_answer_that_cannot_be_stored_is_an_error_and_no_reply() -> None:
    service = service_with(["Hello."], store=FailingStore("finish"))
    events = await events_of(service, ask())
    assert [type(event) for event in events] == [TurnStarted, TextDelta, Error]
    assert isinstance(events[-1].error, errors.NotSaved)
    with pytest.raises(errors.NotSaved):
        await service_with(["Hello."], store=FailingStore("finish")).reply(ask())


async def test_a_turn_that_cannot_be_accepted_is_not_generated() -> None:
    service = service_with(["Hello."], store=FailingStore("accept"))
    (event,) = await events_of(service, ask())
    assert isinstance(event.error, errors.StoreFailed)
    assert service.model.prompts == []


async def test_a_failing_engine_aborts_the_turn_with_what_was_sent() -> None:
    service = service_with(["The first sentence is here. ", "And ", errors.EngineFailed("the engine's process ended")])
    events = await events_of(service, ask())
    assert [type(event) for event in events] == [TurnStarted, TextDelta, Error]
    assert isinstance(events[-1].error, errors.EngineFailed)
    (turn,) = await stored(service)
    assert (turn.status, turn.assistant) == ("aborted", "The first sentence is here. ")


async def test_a_full_engine_says_so_before_the_turn_has_started() -> None:
    service = service_with(["Hello."])

    def full(prompt, sampling, *, session):
        raise errors.Overloaded("queue full")

    service.model.generate = full
    (event,) = await events_of(service, ask())
    assert isinstance(event.error, errors.Overloaded)
    assert (await stored(service))[0].status == "aborted"


async def test_a_zombie_whose_turn_was_taken_over_ends_with_conflict() -> None:
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    service, other = service_with(LONG[:40], store=store, delay=0.002), service_with(["Mine."], store=store)
    zombie = asyncio.create_task(service.reply(ask()))
    await until(lambda: service.model.tokens_made > 1)
    now[0] = 60.0
    assert (await other.reply(ask())).text == "Mine."
    with pytest.raises(errors.Conflict, match="no longer attempt 1's"):
        await zombie
    assert [(t.attempt, t.assistant) for t in await stored(other)] == [(2, "Mine.")]


async def test_ids_of_the_server_open_sessions_and_unknown_ones_are_not_found() -> None:
    service = service_with(["One."], ["Two."])
    opened = await service.reply(ask(session_id=None))
    assert opened.session_id.startswith("s-")
    again = await service.reply(ask(request_id="request-2", session_id=opened.session_id))
    assert (again.session_id, again.seq) == (opened.session_id, 2)
    with pytest.raises(errors.NotFound, match="s-unknown"):
        await service.reply(ask(request_id="request-3", session_id="s-unknown"))
    with pytest.raises(errors.NotFound):
        await service.reply(ask(request_id="request-4", session_id=opened.session_id, owner=Owner(user="other")))


async def test_history_reaches_the_prompt_and_passages_reach_it_but_not_the_history() -> None:
    service = service_with(["It is 8080."], ["Yes."], retriever=ListRetriever(PASSAGES), system_prompt="Be brief.")
    await service.reply(ask("On which port does chatkit listen"))
    await service.reply(
        ask("Something wholly different without sources", "request-2", retrieval=RetrievalOptions(False))
    )
    first, second = service.model.prompts
    assert "port 8080" in first
    assert "It is 8080." in second
    assert "port 8080" not in second
    assert first.startswith("Be brief.")
    assert second[: first.index("\n\n")] == first[: first.index("\n\n")]


async def test_a_short_follow_up_is_searched_together_with_the_message_before_it() -> None:
    retriever = ListRetriever(PASSAGES)
    service = service_with(["Yes."], retriever=retriever)
    await service.reply(ask("On which port does chatkit listen"))
    await service.reply(ask("And why?", "request-2"))
    assert retriever.queries == ["On which port does chatkit listen", "On which port does chatkit listen\nAnd why?"]


async def test_max_new_tokens_that_fill_the_window_are_refused_before_anything_is_stored() -> None:
    service = service_with(["Hi."])
    with pytest.raises(errors.InvalidRequest, match="max_new_tokens is 2048, but scripted holds 2048"):
        await service.reply(ask(sampling=SamplingParams(max_new_tokens=2048)))
    assert await stored(service) == ()


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (ask("x " * 3000), errors.TooLarge, "at most 1792 fit"),
        (ask("x" * 100_001), errors.TooLarge, "100001 characters"),
        (ask(" \n"), errors.InvalidRequest, "the message is empty"),
        (ask("a\ud800"), errors.InvalidRequest, "half a character at 1"),
        (ask(request_id="short"), errors.InvalidRequest, "request_id is 'short'"),
        (ask(session_id="has space"), errors.InvalidRequest, "session_id is 'has space'"),
        (ask(session_id="x" * 129), errors.InvalidRequest, "session_id is 'xxx"),
        (ask(session_id="new\nline1"), errors.InvalidRequest, "session_id is 'new"),
        (ask(session_id=""), errors.InvalidRequest, "session_id is ''"),
    ],
)
async def test_a_malformed_request_is_refused_in_one_line_and_leaves_nothing(request_, error, words) -> None:
    service = service_with(["Hi."])
    with pytest.raises(error, match=words) as caught:
        await service.reply(request_)
    assert "\n" not in str(caught.value)
    assert service._store._kept.partitions == {}


async def test_closing_lets_turns_end_stores_the_rest_as_aborted_and_closes_resources() -> None:
    service = service_with(["Quick."], LONG, delay=0.002)
    closed = []
    service._resources.callback(closed.append, "closed")
    quick = service.start(ask(), patient=True)
    slow = service.start(ask("slow", "request-2", "other-session"), patient=True)
    await until(lambda: len(service.model.prompts) == 2)
    await service.close(0.05)
    assert [(await one.result()).finish_reason for one in (quick, slow)] == ["stop", "aborted"]
    assert (await stored(service, "other-session"))[0].status == "aborted"
    assert closed == ["closed"]


async def test_a_retriever_that_fails_is_an_error_without_its_words() -> None:
    class Broken:
        async def search(self, query, *, k):
            raise ValueError("inner secret")

    service = service_with(["Hi."], retriever=Broken())
    with pytest.raises(errors.Unavailable) as caught:
        await service.reply(ask())
    assert "secret" not in str(caught.value)
    assert await stored(service) == ()
