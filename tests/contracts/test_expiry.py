"""Sessions that end: the moment is fixed when one is opened, and past it every store answers as if it never was."""

import pytest

from chatkit.errors import Conflict, NotFound
from chatkit.protocols import SessionHead
from chatkit.sessions import items
from tests.contracts.talking import OWNER, done, kept, new, talk, turn, visible

pytestmark = pytest.mark.anyio
KEPT_S = 100.0
keeps_a_while = pytest.mark.parametrize("retention_s", [KEPT_S])


async def ends(store, session_id="my-session") -> float | None:
    return (await store.load(OWNER, session_id, limit=9)).expires_at


async def test_without_a_retention_a_session_is_kept(store, clock) -> None:
    await talk(store, 1)
    clock.now += 100 * 365 * 86400
    assert (await ends(store), await kept(store)) == (None, [1])
    assert (await store.sessions(OWNER, limit=9)).sessions == (SessionHead("my-session", 1, 1000.0, None),)


@keeps_a_while
async def test_the_end_is_fixed_when_a_session_is_opened_whatever_comes_later(store, clock) -> None:
    clock.now = 1000.5
    await talk(store, 1)
    assert await ends(store) == 1101  # whole seconds, rounded up
    clock.now = 1090.0
    await talk(store, 1, first=2)
    for retention_s in (5000.0, 1.0, None):
        other = store.with_retention(retention_s)
        assert await ends(other) == 1101
        assert (await other.sessions(OWNER, limit=9)).sessions[0].expires_at == 1101
    await talk(store.with_retention(5000.0), 1, first=3)
    assert await ends(store) == 1101
    clock.now = 1100.9
    assert await kept(store) == [1, 2, 3]
    clock.now = 1101.0
    with pytest.raises(NotFound, match="my-session"):
        await store.page(OWNER, "my-session", limit=9)


@keeps_a_while
async def test_past_its_end_a_session_is_gone_for_every_verb(store, clock) -> None:
    await talk(store, 3, "s-mine")
    await talk(store, 1)
    clock.now += KEPT_S
    assert (await store.sessions(OWNER, limit=9)).sessions == ()
    for read in (store.load, store.page):
        with pytest.raises(NotFound, match="s-mine"):
            await read(OWNER, "s-mine", limit=9)
    with pytest.raises(NotFound, match="s-mine"):
        await store.accept(new("next", "r-next", "s-mine", after=3))
    with pytest.raises(NotFound, match="s-mine"):
        await store.accept(new("next", "r-next", "s-mine"))
    with pytest.raises(NotFound, match="my-session"):  # it was open when it was loaded
        await store.accept(new("next", "r-next", after=1))
    assert await visible(store) == []
    for name in ("s-mine", "my-session"):
        await store.delete(OWNER, name)
    assert "q-s-mine" not in store.everything()


@keeps_a_while
async def test_an_id_of_the_callers_own_opens_anew_and_no_old_turn_shows_however_long_it_gets(store, clock) -> None:
    await talk(store, 5)
    clock.now += KEPT_S
    for number in range(1, 8):
        clock.now += 1
        ticket = await turn(store, f"new {number}", f"request-new-{number}", after=number - 1)
        assert (ticket.seq, ticket.attempt) == (number, 1)
        turns = await store.page(OWNER, "my-session", limit=99)
        assert [one.user for one in turns] == [f"new {n}" for n in range(1, number + 1)]
        assert await visible(store) == list(range(1, number + 1))
    assert await ends(store) == 1201
    (head,) = (await store.sessions(OWNER, limit=9)).sessions
    assert (head.turns, head.created_at, head.expires_at) == (7, 1101.0, 1201)


@keeps_a_while
async def test_nothing_is_finished_or_renewed_past_the_end(store, clock) -> None:
    await talk(store, 1)
    clock.now += KEPT_S - 10
    ticket = (await store.accept(new("late", "r-late"))).ticket
    clock.now += 10
    with pytest.raises(Conflict):
        await store.renew(ticket)
    with pytest.raises(Conflict, match="no longer attempt 1's"):
        await store.finish(ticket, done("too late"))
    fresh = (await store.accept(new("fresh", "r-fresh"))).ticket
    assert fresh.seq == 1
    with pytest.raises(Conflict):
        await store.finish(ticket, done("too late"))
    assert "too late" not in store.everything()


@keeps_a_while
async def test_the_request_ids_of_a_session_end_with_it(store, clock) -> None:
    await turn(store, "first")
    clock.now += KEPT_S
    ticket = await turn(store, "another text")  # the request id again
    assert (ticket.seq, ticket.attempt) == (1, 1)


async def test_a_request_id_is_known_for_seven_days_and_not_longer(store, clock) -> None:
    await turn(store, answer="the first answer")
    clock.now = 1000.0 + items.REQUEST_S - 1
    assert (await store.accept(new())).repeat.assistant == "the first answer"
    with pytest.raises(Conflict, match="was used for another message"):
        await store.accept(new("Other"))
    clock.now += 1
    ticket = await turn(store, "Other", answer="the second answer")
    assert (ticket.seq, ticket.attempt) == (2, 1)
    assert (await store.accept(new("Other"))).repeat.assistant == "the second answer"
    assert await kept(store) == [1, 2]


async def test_an_aborted_turn_of_long_ago_is_not_taken_up_again(store, clock) -> None:
    await store.accept(new())
    clock.now += items.REQUEST_S
    ticket = (await store.accept(new())).ticket
    assert (ticket.seq, ticket.attempt) == (2, 1)


async def test_removing_a_session_leaves_a_request_id_that_another_session_uses_by_now(store, clock) -> None:
    await turn(store, "old", "request-1", "session-old")
    clock.now += items.REQUEST_S
    await turn(store, "new", "request-1", "session-new", answer="kept")
    await store.delete(OWNER, "session-old")
    assert (await store.accept(new("new", "request-1", "session-new"))).repeat.assistant == "kept"
    await store.delete(OWNER, "session-new")
    assert (await store.accept(new("new", "request-1", "session-new"))).ticket.seq == 1
