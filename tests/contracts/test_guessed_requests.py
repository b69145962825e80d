"""Owners without a name are many people: who knows a request id, and names no session, is told of none by it."""

import pytest

from chatkit.errors import Conflict, NotFound
from chatkit.protocols import Outcome
from tests.contracts.talking import OWNER, new, talk, turn

pytestmark = pytest.mark.anyio


def opening(text, request_id, **more):
    """What a request without a session is to a store."""
    return new(text, request_id, "s-made-for-it", opens_session=True, **more)


async def test_a_request_without_a_session_finds_none_in_the_middle_of_a_session(store) -> None:
    await talk(store, 3, "s-secret")
    for number in (2, 3):
        with pytest.raises(Conflict, match="was used for another message, or for one that was refused") as caught:
            await store.accept(opening(f"q-s-secret-{number}", f"r-s-secret-{number}"))
        assert "s-secret'" not in str(caught.value)
    assert (await store.accept(new("q-s-secret-2", "r-s-secret-2", "s-secret"))).repeat.seq == 2
    with pytest.raises(NotFound):
        await store.load(OWNER, "s-made-for-it", limit=9)


async def test_a_request_without_a_session_finds_none_that_its_client_named(store) -> None:
    await turn(store, session_id="my-session")
    with pytest.raises(Conflict, match="was used for another message"):
        await store.accept(opening("Hello", "request-1"))
    assert (await store.accept(new())).repeat.seq == 1


async def test_a_running_turn_and_an_aborted_one_are_no_strangers_either(store) -> None:
    await talk(store, 1, "s-secret")
    ticket = (await store.accept(new("next", "request-2", "s-secret", after=1))).ticket
    for _ in range(2):
        with pytest.raises(Conflict, match="was used for another message"):
            await store.accept(opening("next", "request-2"))
        if ticket is not None:
            await store.finish(ticket, Outcome("aborted", "aborted", "Hal"))
            ticket = None
    assert (await store.accept(new("next", "request-2", "s-secret", after=2))).ticket.attempt == 2


async def test_a_refused_message_is_not_known_by_its_length_to_a_request_without_a_session(store) -> None:
    refused = {"status": "blocked", "label": "needs caution"}
    await store.accept(new("bad words", "request-1", "s-secret", opens_session=True, **refused))
    ticket = (await store.accept(new("good words", "request-2", "s-other", opens_session=True))).ticket
    await store.finish(ticket, Outcome("blocked", "content_filter", label="needs caution"))
    for text, request_id in (("bad words", "request-1"), ("guess it!", "request-1"), ("good guess", "request-2")):
        for more in ({}, refused):
            with pytest.raises(Conflict, match="or for one that was refused") as caught:
                await store.accept(opening(text, request_id, **more))
            assert not {"s-secret", "s-other"} & set(str(caught.value).split("'"))
    assert (await store.accept(new("bad words", "request-1", "s-secret", **refused))).repeat.label == "needs caution"
    assert (await store.accept(new("good words", "request-2", "s-other"))).repeat.blocked == "output"
