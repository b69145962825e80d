"""What a repeated request may and may not see."""

import asyncio

import pytest

from chatkit import errors
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedModel
from chatkit.types import ChatRequest, Owner

pytestmark = pytest.mark.anyio


def request(text: str) -> ChatRequest:
    return ChatRequest(text=text, request_id="request-1", session_id="my-session")


async def test_a_refused_message_under_a_used_id_is_a_conflict_even_at_the_same_length() -> None:
    service = OpenChatKitService(ScriptedModel(["Fine."]), KeywordModerator(["bomb"]), MemoryStore())
    assert (await service.reply(request("a nice poem"))).text == "Fine."
    with pytest.raises(errors.Conflict, match="request-1"):
        await service.reply(request("a bomb, now"))
    assert (await service.reply(request("a nice poem"))).replayed


async def test_a_request_without_a_session_joins_no_turn_of_a_session_that_was_named() -> None:
    store, model = MemoryStore(), ScriptedModel(["One sentence that is long enough. "] * 20, delay=0.01)
    service = OpenChatKitService(model, KeywordModerator(), store)
    guess = ChatRequest(text="Hello there", request_id="request-1")
    running = asyncio.create_task(service.reply(request("Hello there")))
    await asyncio.wait({running}, timeout=0.05)
    assert not running.done()
    with pytest.raises(errors.Conflict, match="request-1"):
        await service.reply(guess)
    assert (await running).finish_reason == "stop"
    with pytest.raises(errors.Conflict, match="request-1"):
        await service.reply(guess)


async def test_a_request_that_opened_a_session_is_joined_and_replayed_by_its_id_and_text_alone() -> None:
    model = ScriptedModel(["One sentence that is long enough. "] * 20, delay=0.01)
    service = OpenChatKitService(model, KeywordModerator(["bomb"]), MemoryStore())
    first, second = (ChatRequest(text="Hello there", request_id="request-1") for _ in range(2))
    replies = await asyncio.gather(service.reply(first), service.reply(second))
    replies.append(await service.reply(first))
    assert len({reply.session_id for reply in replies}) == len(model.prompts) == 1
    refused = await service.reply(ChatRequest(text="a bomb, now", request_id="request-2"))
    assert refused.finish_reason == "content_filter"
    with pytest.raises(errors.Conflict, match="or for one that was refused; send a new one"):
        await service.reply(ChatRequest(text="a bomb, now", request_id="request-2"))
    again = ChatRequest(text="a bomb, now", request_id="request-2", session_id=refused.session_id)
    assert (await service.reply(again)).replayed


async def test_a_plain_turn_that_is_left_is_stored_without_text_for_nobody_got_any() -> None:
    store = MemoryStore()
    model = ScriptedModel(["One sentence that is long enough. "] * 50, delay=0.01)
    service = OpenChatKitService(model, KeywordModerator(), store)
    waiting = asyncio.create_task(service.start(request("Hello there")).result())
    await asyncio.wait({waiting}, timeout=0.15)
    assert model.tokens_made > 0
    waiting.cancel()
    await service.close(2)
    turn = (await store.load(Owner(), "my-session", limit=1)).turns[0]
    assert (turn.status, turn.assistant) == ("aborted", "")
    assert model.tokens_made < 50
