"""What an engine is told of a session: enough to keep its turns together, nothing that opens it."""

import pytest

from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedModel
from chatkit.types import ChatRequest, Owner

pytestmark = pytest.mark.anyio


async def test_turns_of_a_session_share_a_hint_and_others_do_not() -> None:
    model, hints = ScriptedModel(["Hello."]), []
    service = OpenChatKitService(model, KeywordModerator(), MemoryStore())
    generate = model.generate
    model.generate = lambda prompt, sampling, *, session: hints.append(session) or generate(prompt, sampling)
    stored = {"session_id": "my-session"}
    more = [stored, stored, {"session_id": "other-session"}, {**stored, "owner": Owner("a", "b")}, {"history": ()}]
    for number, fields in enumerate(more):
        await service.reply(ChatRequest("Hello", f"request-{number}", **fields))
    assert hints[0] == hints[1]
    assert len({*hints}) == 4
    assert hints[-1] == ""
    assert "my-session" not in hints[0]
