"""What every SessionArchive does: the same suite over every store."""

import base64
import json
import math
from dataclasses import replace

import pytest

from chatkit.errors import Conflict, InvalidRequest, NotFound
from chatkit.protocols import NewTurn, Outcome, SessionHead, SessionList
from chatkit.sessions import items
from chatkit.types import Owner, Passage, Usage

pytestmark = pytest.mark.anyio
OWNER = Owner()
CANARY = "zq73xkanary"


async def begin(store, session_id, number=1, *, text="Hello", owner=OWNER, after=0):
    """Accept a turn; its request id is the session's and the number's."""
    request = f"request-{session_id}-{number}"
    turn = NewTurn(owner, session_id, request, text, len(text), opens_session=number == 1, after=after)
    return (await store.accept(turn)).ticket


async def talk(store, session_id, turns=1, *, text="Hello", owner=OWNER):
    for number in range(1, turns + 1):
        ticket = await begin(store, session_id, number, text=text, owner=owner, after=number - 1)
        await store.finish(ticket, Outcome("complete", "stop", f"{text} {number}"))


async def names(store, owner=OWNER, limit=50) -> list[str]:
    return [head.session_id for head in (await store.sessions(owner, limit=limit)).sessions]


async def test_sessions_are_listed_the_one_opened_last_first_with_their_turns(store, clock) -> None:
    for number, turns in enumerate((2, 1, 3)):
        clock.now = 1000.25 + number
        await talk(store, f"session-{number}", turns)
    clock.now = 2000
    await begin(store, "session-0", 3)  # a later turn does not move its session
    assert await store.sessions(OWNER, limit=9) == SessionList(
        (
            SessionHead("session-2", 3, 1002.25),
            SessionHead("session-1", 1, 1001.25),
            SessionHead("session-0", 3, 1000.25),
        )
    )


async def test_a_list_goes_on_where_the_cursor_says_also_among_sessions_of_one_moment(store, clock) -> None:
    for number in range(7):
        clock.now = 1000.0 + number // 4
        await talk(store, f"session-{number}")
    listed, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = await store.sessions(OWNER, limit=2, cursor=cursor)
        assert len(page.sessions) == (2 if page.cursor else 1)
        listed += page.sessions
        cursor, pages = page.cursor, pages + 1
    assert pages == 4
    assert sorted(head.session_id for head in listed) == [f"session-{number}" for number in range(7)]
    assert [head.created_at for head in listed] == [1001.0] * 3 + [1000.0] * 4


async def test_a_session_is_withdrawn_where_it_has_the_one_turn_alone_and_no_other_is(store) -> None:
    store = getattr(store, "_store", store)  # it is for a store around another, and not of one
    ticket = (await store.accept(NewTurn(OWNER, "session-1", "request-1", "Hello", 5))).ticket
    assert not await store.withdraw(replace(ticket, mark="0" * 16))
    assert await store.withdraw(ticket)
    assert await store.sessions(OWNER, limit=2) == SessionList(())
    again = (await store.accept(NewTurn(OWNER, "session-1", "request-1", "Hello", 5))).ticket  # as if never sent
    assert (again.seq, again.attempt) == (1, 1)
    assert not await store.withdraw(ticket)
    await store.accept(NewTurn(OWNER, "session-1", "request-2", "Hello", 5, after=1))
    assert not await store.withdraw(again)
    await talk(store, "session-2")
    assert [head.turns for head in (await store.sessions(OWNER, limit=9)).sessions if head.session_id == "session-1"]


async def test_scores_and_counts_of_any_kind_that_an_answer_has_are_stored_so_that_they_are_read_again(store) -> None:
    ticket = await begin(store, "session-1")
    scores = [math.nan, math.inf, -1e308, 1e200, True]
    passages = tuple(Passage("p", "", "", "", "", 0, 1, score, "hash") for score in scores)
    await store.finish(ticket, Outcome("complete", "stop", "Hi.", usage=Usage(True, 2.0), passages=passages))
    (turn,) = await store.page(OWNER, "session-1", limit=9)
    assert [passage.score for passage in turn.passages] == [0.0, 1e30, -1e30, 1e30, 1.0]
    assert turn.usage == Usage(1, 2)
    assert turn.assistant == "Hi."


async def test_a_full_last_page_has_no_cursor_and_no_session_makes_an_empty_list(store) -> None:
    assert (await store.sessions(OWNER, limit=2)) == SessionList(())
    for number in range(2):
        await talk(store, f"session-{number}")
    assert (await store.sessions(OWNER, limit=2)).cursor is None


async def test_a_cursor_is_its_owners_alone_and_anything_else_is_invalid(store) -> None:
    for number in range(2):
        await talk(store, f"session-{number}")
    cursor = (await store.sessions(OWNER, limit=1)).cursor
    assert "session" not in cursor
    with pytest.raises(InvalidRequest, match="cursor is "):
        await store.sessions(Owner(user="other"), limit=1, cursor=cursor)
    for wrong in ("", "x", "e30", "🙂", cursor[:-4], "W10"):
        with pytest.raises(InvalidRequest, match="start without one"):
            await store.sessions(OWNER, limit=1, cursor=wrong)


FORGED = {
    "half a character": [1000.0, "\ud800"],
    "a late moment": [1e200, "my-session"],
    "an early moment": [-1, "my-session"],
    "a moment of no clock": [1e-300, "my-session"],
    "no number": [math.nan, "my-session"],
    "endless": [math.inf, "my-session"],
    "a truth": [True, "my-session"],
    "a moment of text": ["1000", "my-session"],
    "a moment of many digits": [10**4000, "my-session"],
    "an id of a number": [1000.0, 7],
    "an id of nothing": [1000.0, None],
    "a long id": [1000.0, "x" * 3000],
    "an id too long": [1000.0, "x" * 129],
    "an id of blanks": [1000.0, " " * 1000],
    "a row too many": [1000.0, "my-session", 1],
}


@pytest.mark.parametrize("forgery", FORGED)
async def test_a_cursor_of_right_form_with_a_wrong_place_in_it_is_invalid(store, forgery) -> None:
    await talk(store, "my-session")
    place = json.dumps([items._digest(OWNER), *FORGED[forgery]]).encode()
    with pytest.raises(InvalidRequest, match="start without one") as caught:
        await store.sessions(OWNER, limit=1, cursor=base64.urlsafe_b64encode(place).decode().rstrip("="))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["[" * 60_000, "[" * 1500, '{"a": 1, "b": 2, "c": 3}', "9" * 5000, "null", "\udcff"])
async def test_a_cursor_of_any_other_form_is_invalid(store, text) -> None:
    for cursor in (text, base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()):
        with pytest.raises(InvalidRequest, match="start without one") as caught:
            await store.sessions(OWNER, limit=1, cursor=cursor)
        str(caught.value).encode()


async def test_another_owner_sees_nothing_and_removes_nothing(store) -> None:
    await talk(store, "s-mine", 2)
    strangers = (Owner(user="anonymous2"), Owner(user="anonymou"), Owner(tenant="S"), Owner("default", "anonymous#S"))
    for stranger in strangers:
        assert await names(store, stranger) == []
        with pytest.raises(NotFound, match="s-mine"):
            await store.page(stranger, "s-mine", limit=9)
        await store.delete(stranger, "s-mine")
    assert await names(store) == ["s-mine"]
    assert len(await store.page(OWNER, "s-mine", limit=9)) == 2


async def test_two_hundred_and_fifty_turns_are_read_page_by_page(store) -> None:
    await talk(store, "long-session", 250)
    turns = []
    while page := await store.page(OWNER, "long-session", limit=100, after=turns[-1].seq if turns else 0):
        assert len(page) <= 100
        turns += page
    assert [(t.seq, t.assistant) for t in turns] == [(n, f"Hello {n}") for n in range(1, 251)]
    assert await store.page(OWNER, "long-session", limit=5, after=248) == tuple(turns[248:])
    assert await store.page(OWNER, "long-session", limit=5, after=9999) == ()
    await store.delete(OWNER, "long-session")
    assert "long-session" not in store.everything()


async def test_a_pending_turn_is_read_as_what_it_is(store, clock) -> None:
    await begin(store, "my-session")
    assert [t.status for t in await store.page(OWNER, "my-session", limit=9)] == ["pending"]
    clock.now += items.LEASE_S + 1
    assert [t.status for t in await store.page(OWNER, "my-session", limit=9)] == ["aborted"]


async def test_a_session_that_is_not_there_is_not_found_whoever_would_have_named_it(store) -> None:
    for name in ("s-nothing", "my-session"):
        with pytest.raises(NotFound, match=name):
            await store.page(OWNER, name, limit=9)


async def test_a_removed_session_leaves_nothing_in_the_store(store) -> None:
    await talk(store, "s-kept", text="kept text")
    await talk(store, "s-gone", 30, text=CANARY)
    assert (CANARY in store.everything()) != store.encrypted
    await store.delete(OWNER, "s-gone")
    everything = store.everything()
    assert ("kept text" in everything) != store.encrypted
    assert "s-kept" in everything
    for left in (CANARY, "s-gone", "request-s-gone"):
        assert left not in everything
    assert await names(store) == ["s-kept"]
    for read in (store.load, store.page):
        with pytest.raises(NotFound, match="s-gone"):
            await read(OWNER, "s-gone", limit=9)


async def test_removing_leaves_the_neighbours_and_the_owners_whose_names_begin_alike(store) -> None:
    owners = (OWNER, Owner(user="anonymous1"), Owner("default1"), Owner("default", "anonymous#S#my-session"))
    for owner in owners:
        for name in ("my-session", "my-session-2", "my-sessio", "my-session#T#0000000001"):
            await talk(store, name, owner=owner)
    await store.delete(OWNER, "my-session")
    assert sorted(await names(store)) == ["my-sessio", "my-session#T#0000000001", "my-session-2"]
    for owner in owners[1:]:
        assert len(await names(store, owner)) == 4
    again = NewTurn(OWNER, "my-session-2", "request-my-session-2-1", "Hello", 5)
    assert (await store.accept(again)).repeat.seq == 1


async def test_removing_twice_or_what_never_was_is_harmless(store) -> None:
    await talk(store, "my-session")
    for _ in range(2):
        await store.delete(OWNER, "my-session")
    await store.delete(OWNER, "s-nothing")
    assert await names(store) == []


async def test_a_turn_that_is_being_answered_is_not_stored_and_brings_nothing_back(store) -> None:
    await talk(store, "my-session")
    ticket = await begin(store, "my-session", 2, text=CANARY, after=1)
    await store.delete(OWNER, "my-session")
    with pytest.raises(Conflict):
        await store.renew(ticket)
    for status in ("complete", "aborted", "blocked"):
        with pytest.raises(Conflict, match="no longer attempt 1's"):
            await store.finish(ticket, Outcome(status, "stop", CANARY))
    assert CANARY not in store.everything()
    assert await names(store) == []


async def test_a_name_that_was_removed_can_be_used_again_and_an_old_answer_does_not_get_into_it(store) -> None:
    old = await begin(store, "my-session", text="old")
    await store.delete(OWNER, "my-session")
    fresh = NewTurn(OWNER, "my-session", "request-fresh", "new", 3)
    ticket = (await store.accept(fresh)).ticket
    assert (ticket.seq, ticket.attempt) == (old.seq, old.attempt) == (1, 1)
    for late in (store.renew(old), store.finish(old, Outcome("complete", "stop", CANARY))):
        with pytest.raises(Conflict):
            await late
    await store.finish(ticket, Outcome("complete", "stop", "answer"))
    assert [(t.user, t.assistant) for t in await store.page(OWNER, "my-session", limit=9)] == [("new", "answer")]
    assert CANARY not in store.everything()


async def test_a_request_of_a_removed_session_is_a_new_one(store) -> None:
    await talk(store, "my-session")
    await store.delete(OWNER, "my-session")
    assert (await begin(store, "my-session")).attempt == 1
