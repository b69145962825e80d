"""What the check of an owner in a table finds: work that broke off, which no list shows, and lost requests."""

import pytest

from chatkit.errors import Conflict, StoreFailed
from chatkit.protocols import NewTurn
from chatkit.sessions import items
from chatkit.sessions.budget import Budget
from chatkit.types import Owner
from tests.faults.proxy import refusal
from tests.sessions.dynamodb.parts import DONE, OWNER, seqs, talk, write_over

pytestmark = pytest.mark.anyio
WRITES = ("TransactWriteItems", "BatchWriteItem", "UpdateItem", "DeleteItem")


def break_off(proxy, after: int) -> None:
    """Let so many writes through and none that follows."""
    seen = []

    def meddle(operation, forward):
        seen.extend([operation] if operation in WRITES else [])
        return refusal("ValidationException") if len(seen) > after else forward()

    proxy.meddle = meddle


async def test_a_sound_owner_has_no_faults_whatever_others_have(store) -> None:
    await talk(store, 3)
    await talk(store, 2, "session-b")
    await store.delete(OWNER, "session-b")
    await store.purge(Owner(user="other"))
    assert await store.check_owner(OWNER) == ()
    assert await store.check_owner(Owner(user="other")) == ()


async def test_a_removal_that_broke_off_is_named_until_it_is_ended(store, proxy, proxied) -> None:
    await talk(store, 3)
    await talk(store, 1, "session-b")
    break_off(proxy, 1)
    with pytest.raises(StoreFailed):
        await proxied.delete(OWNER, "my-session")
    assert [head.session_id for head in (await store.sessions(OWNER, limit=9)).sessions] == ["session-b"]
    assert await store.check_owner(OWNER) == (
        "session 'my-session' is half removed: that goes on, or broke off; chatkit sessions delete my-session ends it",
    )
    await store.delete(OWNER, "my-session")
    assert await store.check_owner(OWNER) == ()


async def test_a_restoring_that_broke_off_is_named_until_it_is_ended(store, proxy, proxied) -> None:
    await talk(store, 3)
    turns = await store.page(OWNER, "my-session", limit=9)
    await store.delete(OWNER, "my-session")
    break_off(proxy, 1)
    with pytest.raises(StoreFailed):
        await proxied.restore(OWNER, "my-session", turns, expires_at=None)
    (said,) = await store.check_owner(OWNER)
    assert said.startswith("session 'my-session' is half restored: that goes on, or broke off; import it again, ")
    assert said.endswith("chatkit sessions delete my-session")
    await store.restore(OWNER, "my-session", turns, expires_at=None)
    assert await store.check_owner(OWNER) == ()
    assert await seqs(store) == [1, 2, 3]


async def test_a_purge_that_broke_off_is_named_until_it_is_ended(store, proxy, proxied) -> None:
    await talk(store, 1)
    break_off(proxy, 0)
    with pytest.raises(StoreFailed):
        await proxied.purge(OWNER)
    with pytest.raises(Conflict):
        await store.accept(NewTurn(OWNER, "my-session", "request-9", "Hello", 5))
    (said,) = await store.check_owner(OWNER)
    assert said.startswith("nothing new of this owner is taken before 2")
    assert said.endswith("a purge goes on, or one broke off; chatkit sessions purge ends it")
    assert await store.purge(OWNER) == 1
    assert await store.check_owner(OWNER) == ()


async def test_a_turn_whose_request_is_lost_or_another_turns_is_named(opened, clock) -> None:
    clock.now = 1_700_000_000.0
    store = opened(clock=clock)
    await talk(store, 4)
    await talk(store, 1, "session-b")
    partitions = [items.request_key(OWNER, f"my-session-{number}") for number in range(1, 5)]
    store._table.delete(Budget(9), partitions[0], items.REQUEST)
    write_over(store, partitions[1], items.REQUEST, session_id="session-b", seq=1)
    write_over(store, partitions[2], items.REQUEST, session_id=5)
    assert await store.check_owner(OWNER) == (
        "turn 1 of session 'my-session' has lost its request 'my-session-1'",
        "the request 'my-session-2' of turn 2 of session 'my-session' points at turn 1 of session 'session-b'",
        "the request 'my-session-3' of turn 3 of session 'my-session' cannot be read",
    )
    again = await store.accept(NewTurn(OWNER, "my-session", "my-session-1", "Hello", 5, after=4))
    await store.finish(again.ticket, DONE)
    assert again.ticket.seq == 5  # which is what the loss of a request costs
    clock.now += 7 * 86400
    assert await store.check_owner(OWNER) == ()


async def test_what_has_expired_is_not_looked_at(opened, clock) -> None:
    clock.now = 1_700_000_000.0
    store = opened(clock=clock, retention_s=100.0)
    await talk(store, 2)
    store._table.delete(Budget(9), items.request_key(OWNER, "my-session-1"), items.REQUEST)
    assert len(await store.check_owner(OWNER)) == 1
    clock.now += 100
    assert await store.check_owner(OWNER) == ()
