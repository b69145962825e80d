"""Everything of an owner removed, on every store: what goes, who is shut out for how long, and who is left alone."""

import pytest

from chatkit.errors import Conflict, NotFound
from chatkit.protocols import CLOSED_S
from chatkit.types import Owner
from tests.contracts.talking import OWNER, done, kept, new, talk, turn, visible

pytestmark = pytest.mark.anyio
CANARY = "zq73xkanary"
# Owners whose keys begin like this one's, or hold it.
NEIGHBOURS = (
    Owner(user="anonymou"),
    Owner(user="anonymous1"),
    Owner(user="anonymous#S"),
    Owner(user="anonymous#S#my-session"),
    Owner(user="anonymous%23"),
    Owner(tenant="default1"),
    Owner("default#U#anonymous", "anonymous"),
)


async def test_it_removes_every_session_and_says_how_many(store) -> None:
    for number in range(12):
        await talk(store, 2, f"session-{number}")
    await turn(store, CANARY, f"request-{CANARY}", f"session-{CANARY}", CANARY)
    assert await store.purge(OWNER) == 13
    assert (await store.sessions(OWNER, limit=99)).sessions == ()
    everything = store.everything()
    for left in (CANARY, "session-3", "a-session-11-2"):
        assert left not in everything
    with pytest.raises(NotFound):
        await store.page(OWNER, "session-3", limit=9)


async def test_running_it_again_is_harmless_and_finds_nothing(store) -> None:
    assert await store.purge(OWNER) == 0
    await talk(store.with_retention(None), 1, owner=Owner(user="somebody"))
    assert [await store.purge(Owner(user="somebody")) for _ in range(3)] == [1, 0, 0]


async def test_the_owner_is_shut_out_until_the_time_is_over(store, clock) -> None:
    await talk(store, 2)
    await store.purge(OWNER)
    for late in (new("next", "r-next", after=2), new("next", "r-next"), new("q", "r-2", "s-new", opens_session=True)):
        with pytest.raises(Conflict, match="everything of this owner is being removed"):
            await store.accept(late)
    clock.now += CLOSED_S - 1
    with pytest.raises(Conflict, match="is being removed"):
        await store.accept(new("next", "r-next"))
    clock.now += 2
    ticket = await turn(store, "q-my-session-1", "r-my-session-1")  # a request id of before is new
    assert (ticket.seq, ticket.attempt) == (1, 1)
    assert await kept(store) == [1]


async def test_a_repeat_brings_nothing_back_while_the_owner_is_shut_out(store) -> None:
    await talk(store, 1)
    await store.purge(OWNER)
    with pytest.raises(Conflict, match="is being removed"):
        await store.accept(new("q-my-session-1", "r-my-session-1"))
    assert "q-my-session-1" not in store.everything()


async def test_with_no_time_to_wait_the_owner_may_go_on_at_once(store) -> None:
    await talk(store, 2)
    assert await store.purge(OWNER, closed_s=0) == 1
    assert (await turn(store, "next", "r-next")).seq == 1


async def test_asking_again_with_no_time_to_wait_lets_the_owner_in(store) -> None:
    await talk(store, 1)
    await store.purge(OWNER)
    await store.purge(OWNER, closed_s=0)
    assert (await turn(store, "next", "r-next")).seq == 1


async def test_a_turn_that_was_on_its_way_cannot_bring_anything_back(store, clock) -> None:
    await talk(store, 1)
    ticket = (await store.accept(new(CANARY, "r-late"))).ticket
    await store.purge(OWNER)
    for _ in range(2):
        with pytest.raises(Conflict):
            await store.renew(ticket)
        with pytest.raises(Conflict, match="no longer attempt 1's"):
            await store.finish(ticket, done(CANARY))
        clock.now += CLOSED_S + 1  # nor when the owner is let in again
    assert CANARY not in store.everything()
    assert await visible(store) == []


async def test_owners_whose_names_begin_alike_keep_everything(store) -> None:
    for owner in (OWNER, *NEIGHBOURS):
        await talk(store, 2, owner=owner)
    assert await store.purge(OWNER) == 1
    for owner in NEIGHBOURS:
        assert await kept(store, owner=owner) == [1, 2]
        again = new("q-my-session-2", "r-my-session-2", owner=owner)
        assert (await store.accept(again)).repeat.assistant == "a-my-session-2"
        await talk(store, 1, first=3, owner=owner)
    with pytest.raises(NotFound):
        await store.page(OWNER, "my-session", limit=9)


@pytest.mark.parametrize("retention_s", [100.0])
async def test_sessions_that_had_expired_are_not_counted_and_go_too(store, clock) -> None:
    await turn(store, CANARY, "r-old", "session-old", CANARY)
    clock.now += 100
    await talk(store, 1)
    assert await store.purge(OWNER) == 1
    assert CANARY not in store.everything()
