"""A session that is removed and opened again under its name takes no turn that was planned on the one before."""

import json
from dataclasses import replace

import pytest

from chatkit.errors import Conflict, NotFound
from chatkit.protocols import NewTurn, Outcome
from chatkit.session_lines import Line, fields_of
from chatkit.sessions import items
from chatkit.types import Owner

pytestmark = pytest.mark.anyio
OWNER = Owner()


def new(text: str, **more) -> NewTurn:
    return NewTurn(OWNER, "my-session", f"request-{text}", text, len(text), **more)


async def talk(store, *texts: str) -> None:
    for after, text in enumerate(texts):
        await store.finish((await store.accept(new(text, after=after))).ticket, Outcome("complete", "stop", "Hi."))


async def as_loaded(store) -> dict:
    """Return what a turn says of its session, which is loaded now."""
    loaded = await store.load(OWNER, "my-session", limit=9)
    return {"after": loaded.newest, "expires_at": loaded.expires_at, "opened_at": loaded.opened_at}


async def texts(store) -> list[str]:
    return [turn.user for turn in await store.page(OWNER, "my-session", limit=9)]


@pytest.mark.parametrize("again", [["fresh"], ["fresh", "fresher"], ["fresh", "fresher", "freshest"]])
async def test_a_turn_planned_on_an_erased_session_is_none_of_the_new_one_however_long(store, clock, again) -> None:
    await talk(store, "old", "older")
    planned = await as_loaded(store)
    assert planned == {"after": 2, "expires_at": None, "opened_at": 1000.0}
    await store.delete(OWNER, "my-session")
    clock.now += 1
    await talk(store, *again)
    with pytest.raises(NotFound, match="session 'my-session' does not exist; leave session_id out"):
        await store.accept(new("made of what was erased", **planned))
    assert await texts(store) == again
    assert (await store.accept(new("next", **(await as_loaded(store))))).ticket.seq == len(again) + 1


async def test_a_turn_planned_on_an_erased_session_does_not_open_one(store) -> None:
    await talk(store, "old")
    planned = await as_loaded(store)
    await store.delete(OWNER, "my-session")
    for loaded in (planned, planned | {"after": 0}):
        with pytest.raises(NotFound, match="does not exist"):
            await store.accept(new("made of what was erased", **loaded))
    assert (await store.load(OWNER, "my-session", limit=9)).opened_at is None


async def test_a_number_that_a_session_never_gave_is_of_another_session(store) -> None:
    await talk(store, "only")
    with pytest.raises(NotFound, match="does not exist"):
        await store.accept(new("late", after=2))
    assert await texts(store) == ["only"]


async def test_a_session_that_was_moved_is_the_same_to_a_turn_planned_before(store) -> None:
    await talk(store, "one", "two")
    planned = await as_loaded(store)
    turns = await store.page(OWNER, "my-session", limit=9)
    await store.delete(OWNER, "my-session")
    await store.restore(OWNER, "my-session", turns, expires_at=None)
    assert (await store.accept(new("three", **planned))).ticket.seq == 3


OUTCOMES = {
    "complete": Outcome("complete", "stop", "of what was erased"),
    "aborted": Outcome("aborted", "aborted", "of what was erased"),
    "blocked": Outcome("blocked", "content_filter", label="needs caution"),
}


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
async def test_an_attempt_of_an_erased_session_writes_nothing_of_the_new_one_that_has_its_request_id(
    store, outcome
) -> None:
    old = (await store.accept(replace(new("old"), request_id="request-1"))).ticket
    await store.delete(OWNER, "my-session")
    own = (await store.accept(replace(new("fresh"), request_id="request-1"))).ticket
    assert (own.seq, own.request_id, own.attempt) == (old.seq, old.request_id, old.attempt)
    for late in (store.renew(old), store.finish(old, outcome)):
        with pytest.raises(Conflict, match="turn 1 of this session is no longer attempt 1's to finish"):
            await late
    await store.renew(own)
    await store.finish(own, Outcome("complete", "stop", "Hi."))
    with pytest.raises(Conflict):
        await store.finish(old, outcome)
    (kept,) = await store.page(OWNER, "my-session", limit=9)
    assert (kept.user, kept.assistant, kept.status) == ("fresh", "Hi.", "complete")
    assert own.mark not in json.dumps(fields_of(Line("my-session", 1, None, kept)))


async def test_an_attempt_that_was_taken_over_in_an_erased_session_writes_nothing_of_the_new_one(store, clock) -> None:
    taken = []
    for _ in range(2):
        await store.accept(new("same"))
        clock.now += items.LEASE_S + 1
        taken.append((await store.accept(new("same"))).ticket)
        if len(taken) == 1:
            await store.delete(OWNER, "my-session")
    old, own = taken
    assert (own.seq, own.request_id, own.attempt) == (old.seq, old.request_id, 2)
    with pytest.raises(Conflict):
        await store.finish(old, OUTCOMES["complete"])
    await store.finish(own, Outcome("complete", "stop", "Hi."))
    assert [turn.assistant for turn in await store.page(OWNER, "my-session", limit=9)] == ["Hi."]


async def test_a_turn_that_an_older_version_began_without_a_mark_is_renewed_finished_and_taken_over(
    store, clock, monkeypatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(items, "begun", items.leased)
        tickets = [(await store.accept(new(text, after=after))).ticket for after, text in enumerate(("one", "two"))]
    assert [ticket.mark for ticket in tickets] == ["", ""]
    with pytest.raises(Conflict):
        await store.finish(replace(tickets[0], mark="another"), OUTCOMES["complete"])
    await store.renew(tickets[0])
    await store.finish(tickets[0], Outcome("complete", "stop", "Hi."))
    clock.now += items.LEASE_S + 1
    again = (await store.accept(new("two", after=2))).ticket
    assert (again.seq, again.attempt, again.mark == "") == (2, 2, False)
    with pytest.raises(Conflict):
        await store.finish(tickets[1], OUTCOMES["complete"])
    await store.finish(again, Outcome("complete", "stop", "Hello."))
    assert [turn.assistant for turn in await store.page(OWNER, "my-session", limit=9)] == ["Hi.", "Hello."]


async def test_a_turn_planned_on_an_erased_session_takes_over_none_of_the_new_one(store, clock) -> None:
    for _ in range(2):
        clock.now += 1
        await store.finish((await store.accept(new("same"))).ticket, Outcome("aborted", "aborted", "H"))
        planned = await as_loaded(store)
        if clock.now == 1001:
            old = planned
            await store.delete(OWNER, "my-session")
    assert (old["opened_at"], planned["opened_at"]) == (1001, 1002)
    with pytest.raises(NotFound, match="session 'my-session' does not exist; leave session_id out"):
        await store.accept(new("same", **old))
    (kept,) = await store.page(OWNER, "my-session", limit=9)
    assert (kept.attempt, kept.status, kept.assistant) == (1, "aborted", "H")
    assert (await store.accept(new("same", **planned))).ticket.attempt == 2
