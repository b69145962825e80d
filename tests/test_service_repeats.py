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
