"""Entries of valid JSON that say something else than they should: named as damaged, and no hindrance to the rest."""

import pytest

from chatkit.errors import StoreFailed
from tests.sessions.sqlite_parts import OWNER, behind_its_back, fill, new

pytestmark = pytest.mark.anyio
TURNS = {
    "empty": "body = '{}'",
    "no object": "body = '[1]'",
    "an attempt of text": "body = json_set(body, '$.attempt', 'x', '$.status', 'aborted')",
    "a number for a request": "body = json_set(body, '$.request_id', 5)",
    "no time": "body = json_remove(body, '$.created_at')",
    "passages of numbers": "body = json_set(body, '$.passages', json('[1]'))",
}
HEADS = {
    "an end of text": "body = json_set(body, '$.expires_at', 'x')",
    "no beginning": "body = json_remove(body, '$.created_at')",
    "a version of text": "body = json_set(body, '$.version', '2')",
}
REQUESTS = {
    "cut": "more = '{'",
    "a list": "more = '[1]'",
    "an end of text": "expires = 'x'",
}
TURN, HEAD, REQUEST = "entry 'T#0000000001'; send a new request_id", "'Z#META'; start a new session", "'R'; send a new"


async def all_refused(store, said: str, *turns) -> None:
    for turn in turns:
        with pytest.raises(StoreFailed, match=said):
            await store.accept(turn)


@pytest.mark.parametrize("change", TURNS.values(), ids=TURNS)
async def test_a_turn_that_says_something_else_is_left_out_and_the_session_goes_on(file, store, change) -> None:
    await fill(store, 2)
    assert behind_its_back(file, f"UPDATE turns SET {change} WHERE seq = 1") == 1
    await all_refused(store, TURN, new("qqqqq", 1))
    assert 2 in [turn.seq for turn in await store.page(OWNER, "my-session", limit=9)]
    assert (await store.accept(new("next", 3))).ticket.seq == 3
    await store.delete(OWNER, "my-session")
    assert (await store.sessions(OWNER, limit=9)).sessions == ()


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
async def test_a_session_that_says_something_else_of_itself_is_read_and_can_be_removed(file, store, change) -> None:
    await fill(store, 2)
    await store.accept(new("another", "b", "session-b"))
    assert behind_its_back(file, f"UPDATE sessions SET {change} WHERE name = 'my-session'") == 1
    await all_refused(store, HEAD, new("qqqqq", 1), new("next", 3))
    assert [turn.seq for turn in await store.load(OWNER, "my-session", limit=9)] == [1, 2]
    assert [turn.seq for turn in await store.page(OWNER, "my-session", limit=9)] == [1, 2]
    listed = (await store.sessions(OWNER, limit=9)).sessions
    assert {(head.session_id, head.damaged) for head in listed} == {("my-session", True), ("session-b", False)}
    await store.delete(OWNER, "my-session")
    assert [head.session_id for head in (await store.sessions(OWNER, limit=9)).sessions] == ["session-b"]
    assert (await store.accept(new("fresh", 1))).ticket.seq == 1


@pytest.mark.parametrize("change", REQUESTS.values(), ids=REQUESTS)
async def test_a_request_that_says_something_else_keeps_nothing_from_being_removed(file, store, change) -> None:
    await fill(store, 2)
    assert behind_its_back(file, f"UPDATE requests SET {change} WHERE name = 'request-1'") == 1
    await all_refused(store, REQUEST, new("qqqqq", 1))
    await store.delete(OWNER, "my-session")
    assert (await store.accept(new("fresh", 1))).ticket.seq == 1
