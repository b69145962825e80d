"""A session written as it was read, on every store: all of it or nothing, and never over another."""

from dataclasses import replace

import pytest

from chatkit.errors import Conflict, InvalidRequest, NotFound
from chatkit.protocols import Outcome, SessionHead
from chatkit.sessions import items
from chatkit.types import Owner, Passage, Usage
from tests.contracts.talking import OWNER, done, kept, new, talk, turn, visible

pytestmark = pytest.mark.anyio
HEIR = Owner("elsewhere", "heir")


async def varied(store, clock) -> tuple:
    """Have a session of one turn of every kind and return its turns."""
    passage = Passage("p1", "the text", "Title", "a.md", "Section", 5, 13, 0.1234)
    ticket = (await store.accept(new("one", "r-1"))).ticket
    await store.finish(ticket, Outcome("complete", "stop", "first\n漢", usage=Usage(7, 8), passages=(passage,)))
    clock.now += 1.25
    ticket = (await store.accept(new("two", "r-2"))).ticket
    await store.finish(ticket, Outcome("aborted", "aborted", "sec", usage=Usage(7, 1)))
    await store.accept(new("", "r-3", status="blocked", label="needs caution"))
    ticket = (await store.accept(new("four", "r-4"))).ticket
    await store.finish(ticket, Outcome("blocked", "content_filter", label="needs intervention"))
    clock.now += 1
    ticket = (await store.accept(new("two", "r-2"))).ticket
    await store.finish(ticket, Outcome("complete", "length", "second", usage=Usage(7, 2)))
    await turn(store, "six", "r-6", replaces=2)
    return await store.page(OWNER, "my-session", limit=99)


async def test_what_page_gave_is_written_as_it_was(store, clock) -> None:
    turns = await varied(store, clock)
    assert [(one.status, one.attempt) for one in turns] == [
        ("complete", 1), ("complete", 2), ("blocked", 1), ("blocked", 1), ("complete", 1),
    ]  # fmt: skip
    await store.restore(HEIR, "my-session", turns, expires_at=None)
    assert await store.page(HEIR, "my-session", limit=99) == turns
    assert await store.load(HEIR, "my-session", limit=99) == await store.load(OWNER, "my-session", limit=99)
    assert (await store.sessions(HEIR, limit=9)).sessions == (SessionHead("my-session", 5, 1000.0, None),)
    assert (await store.sessions(HEIR, limit=9)) == (await store.sessions(OWNER, limit=9))


async def test_a_session_that_is_moved_back_goes_on_where_it_was(store, clock) -> None:
    turns = await varied(store, clock)
    await store.delete(OWNER, "my-session")
    await store.restore(OWNER, "my-session", turns, expires_at=None)
    assert (await store.accept(new("one", "r-1"))).repeat == turns[0]
    assert (await store.accept(new("", "r-3", status="blocked", label="needs caution"))).repeat == turns[2]
    with pytest.raises(Conflict, match="was used for another message"):
        await store.accept(new("other", "r-1"))
    assert (await turn(store, "seven", "r-7", after=5)).seq == 6
    assert await visible(store) == [1, 5, 6]


async def test_an_aborted_turn_that_was_restored_runs_again_as_the_next_attempt(store, clock) -> None:
    ticket = (await store.accept(new())).ticket
    await store.finish(ticket, Outcome("aborted", "aborted", "Hal"))
    turns = await store.page(OWNER, "my-session", limit=9)
    await store.restore(HEIR, "my-session", turns, expires_at=None)
    again = (await store.accept(new(owner=HEIR))).ticket
    assert (again.seq, again.attempt) == (1, 2)
    with pytest.raises(Conflict):
        await store.finish(replace(ticket, owner=HEIR), done("of the first attempt"))
    await store.finish(again, done("Hallo."))
    assert (await store.page(HEIR, "my-session", limit=9))[0].assistant == "Hallo."


async def test_two_hundred_and_fifty_turns_are_restored_in_order(store) -> None:
    await talk(store, 3)
    first = (await store.page(OWNER, "my-session", limit=1))[0]
    turns = tuple(replace(first, seq=n, request_id=f"r-{n}", assistant=f"a{n}") for n in range(1, 251))
    await store.restore(HEIR, "long-session", turns, expires_at=None)
    assert await store.page(HEIR, "long-session", limit=999) == turns
    assert (await store.accept(new("next", "r-251", "long-session", HEIR, after=250))).ticket.seq == 251


async def test_a_session_that_is_there_is_a_conflict_and_stays_as_it_is(store, clock) -> None:
    turns = await varied(store, clock)
    with pytest.raises(Conflict, match="'my-session' is there already"):
        await store.restore(OWNER, "my-session", turns[:1], expires_at=None)
    await store.restore(HEIR, "my-session", turns, expires_at=None)
    with pytest.raises(Conflict, match="'my-session' is there already"):
        await store.restore(HEIR, "my-session", turns, expires_at=None)
    for owner in (OWNER, HEIR):
        assert await store.page(owner, "my-session", limit=99) == turns


async def test_what_is_no_whole_session_is_invalid_and_writes_nothing(store, clock) -> None:
    turns = await varied(store, clock)
    cases = {
        "has no turns, expected at least one": (),
        "has turn 2 in place of 1": turns[1:],
        "has turn 4 in place of 3": (*turns[:2], *turns[3:]),
        "has turn 1 in place of 2": (turns[0], turns[0]),
        "is pending, expected one that has ended": (turns[0], replace(turns[1], status="pending")),
        "replaces 2, expected an older one": (turns[0], replace(turns[1], replaces=2)),
        "replaces 0, expected an older one": (turns[0], replace(turns[1], replaces=0)),
        "turns 1 and 2 of session 'my-session' have one request_id, 'r-1'": (
            turns[0],
            replace(turns[1], request_id="r-1"),
        ),
    }
    for problem, wrong in cases.items():
        with pytest.raises(InvalidRequest, match=problem):
            await store.restore(HEIR, "my-session", wrong, expires_at=None)
    assert await store.load(HEIR, "my-session", limit=9) == await store.load(HEIR, "not-there", limit=9)
    assert (await store.sessions(HEIR, limit=9)).sessions == ()
    assert (await turn(store, "one", "r-1", owner=HEIR)).seq == 1


async def test_a_request_id_of_another_session_is_a_conflict_and_nothing_can_be_read(store, clock) -> None:
    turns = await varied(store, clock)
    with pytest.raises(Conflict, match="request_id 'r-1' of session 'my-copy'"):
        await store.restore(OWNER, "my-copy", turns, expires_at=None)
    with pytest.raises(NotFound):
        await store.page(OWNER, "my-copy", limit=9)
    assert await visible(store, "my-copy") == []
    assert [head.session_id for head in (await store.sessions(OWNER, limit=9)).sessions] == ["my-session"]
    assert (await store.accept(new("one", "r-1"))).repeat == turns[0]
    await store.delete(OWNER, "my-session")
    await store.restore(OWNER, "my-copy", turns, expires_at=None)
    assert await store.page(OWNER, "my-copy", limit=9) == turns


async def test_a_request_id_in_the_last_turn_alone_writes_nothing_readable_either(store, clock) -> None:
    turns = await varied(store, clock)
    await turn(store, "theirs", "r-6", "their-session", owner=HEIR)
    with pytest.raises(Conflict, match="request_id 'r-6'"):
        await store.restore(HEIR, "my-session", turns, expires_at=None)
    with pytest.raises(NotFound):
        await store.page(HEIR, "my-session", limit=9)
    assert (await store.accept(new("theirs", "r-6", "their-session", owner=HEIR))).repeat.seq == 1


async def test_request_ids_older_than_seven_days_are_restored_as_forgotten(store, clock) -> None:
    await talk(store, 1)
    turns = await store.page(OWNER, "my-session", limit=9)
    clock.now += items.REQUEST_S
    await turn(store, "theirs", "r-my-session-1", "their-session", owner=HEIR)
    await store.restore(HEIR, "my-session", turns, expires_at=None)
    assert await kept(store, owner=HEIR) == [1]
    again = new("theirs", "r-my-session-1", "their-session", owner=HEIR)
    assert (await store.accept(again)).repeat.user == "theirs"


async def test_it_ends_when_it_was_to_end(store, clock) -> None:
    await talk(store, 2, "s-mine")
    turns = await store.page(OWNER, "s-mine", limit=9)
    with pytest.raises(InvalidRequest, match="'s-mine' has expired"):
        await store.restore(HEIR, "s-mine", turns, expires_at=1000)
    await store.restore(HEIR, "s-mine", turns, expires_at=1100)
    assert (await store.load(HEIR, "s-mine", limit=9)).expires_at == 1100
    assert (await store.accept(new("q-s-mine-1", "r-s-mine-1", "s-mine", HEIR))).repeat.seq == 1
    clock.now = 1100
    with pytest.raises(NotFound, match="s-mine"):
        await store.load(HEIR, "s-mine", limit=9)
    await store.restore(HEIR, "s-mine", turns, expires_at=None)  # over what has expired
    assert await kept(store, "s-mine", owner=HEIR) == [1, 2]
