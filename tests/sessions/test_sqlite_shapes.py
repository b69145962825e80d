"""Entries of valid JSON that say something else than they should: named as damaged, and no hindrance to the rest."""

from dataclasses import replace

import pytest

from chatkit.errors import StoreFailed
from tests.sessions.sqlite_parts import OWNER, behind_its_back, fill, new

pytestmark = pytest.mark.anyio
TURNS = {
    "empty": "body = '{}'",
    "no object": "body = '[1]'",
    "an attempt of text": "body = json_set(body, '$.attempt', 'x', '$.status', 'aborted')",
    "a number for a request": "body = json_set(body, '$.request_id', 5)",
    "a number for a message": "body = json_set(body, '$.user', 5)",
    "half a character": """body = replace(body, '"qqqqq"', '"\\ud800"')""",
    "an answer of a list": "body = json_set(body, '$.assistant', json('[]'))",
    "a label of a number": "body = json_set(body, '$.label', 5)",
    "no time": "body = json_remove(body, '$.created_at')",
    "a time of no calendar": "body = json_set(body, '$.created_at', 1e300)",
    "an end of text": "body = json_set(body, '$.expires_at', 'x')",
    "a lease of text": "lease = 'abc'",
    "an unknown status": "body = json_set(body, '$.status', 'asleep')",
    "an end of a number": "body = json_set(body, '$.finish_reason', 5)",
    "a side of a list": "body = json_set(body, '$.blocked', json('[]'))",
    "a length of text": "body = json_set(body, '$.user_length', 'x')",
    "a number of text for a place": "body = json_set(body, '$.replaces', 'x')",
    "no place": "body = json_set(body, '$.replaces', 0)",
    "usage of text": "body = json_set(body, '$.usage', json('[\"a\", \"b\"]'))",
    "no usage": "body = json_set(body, '$.usage', null)",
    "passages of numbers": "body = json_set(body, '$.passages', json('[1]'))",
    "a passage that begins at a word": (
        """body = json_set(body, '$.passages', json('[["p", "", "", "", "x", 1, 0.5, ""]]'))"""
    ),
    "lists without end": "body = replace(hex(zeroblob(50000)), '0', '[')",
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
    assert [turn.seq for turn in await store.load(OWNER, "my-session", limit=9)] == [2]
    assert [turn.seq for turn in await store.page(OWNER, "my-session", limit=9)] == [2]
    assert "turn 1 of session 'my-session' of owner T#default#U#anonymous cannot be read" in await store.check()
    assert (await store.accept(new("next", 3))).ticket.seq == 3
    await store.delete(OWNER, "my-session")
    assert (await store.sessions(OWNER, limit=9)).sessions == ()


@pytest.mark.parametrize("said", [1, 9, 10**12])
async def test_a_turn_that_says_another_number_is_left_out_wherever_it_stands(file, store, said) -> None:
    await fill(store, 3)
    assert behind_its_back(file, "UPDATE turns SET body = json_set(body, '$.seq', ?) WHERE seq = 3", said) == 1
    loaded = await store.load(OWNER, "my-session", limit=9)
    assert ([turn.seq for turn in loaded], loaded.total) == ([1, 2], 3)
    assert [turn.seq for turn in await store.page(OWNER, "my-session", limit=9)] == [1, 2]
    assert await store.page(OWNER, "my-session", limit=9, after=2) == ()
    planned = replace(new("next", 4), after=loaded.newest, opened_at=loaded.opened_at)
    assert (await store.accept(planned)).ticket.seq == 4


async def test_an_owner_who_is_shut_out_until_a_word_is_named_and_let_in_by_another_purge(file, store) -> None:
    await fill(store, 1)
    assert behind_its_back(file, "UPDATE owners SET closed = 'abc'") == 1
    await all_refused(store, "entry 'O'; have everything of this owner removed once more", new("next", 2))
    (said,) = await store.check()
    assert said.startswith("until when owner T#default#U#anonymous is shut out cannot be read; ")
    assert await store.purge(OWNER, closed_s=0) == 1
    assert (await store.accept(new("next", 2))).ticket.seq == 1
    assert await store.check() == ()


async def test_a_session_that_is_listed_by_moments_that_are_none_is_named_and_read(file, store) -> None:
    await fill(store, 2)
    assert behind_its_back(file, "UPDATE sessions SET expires = 'x'") == 1
    (head,) = (await store.sessions(OWNER, limit=9)).sessions
    assert (head.turns, head.expires_at) == (2, None)
    assert await store.check() == (
        "session 'my-session' of owner T#default#U#anonymous is listed as of other moments than its own entry says",
    )


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
