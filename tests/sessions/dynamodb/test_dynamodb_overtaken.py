"""Removals and restorings that come late: what was acknowledged meanwhile stays, whole and in order."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from chatkit.errors import Conflict, NotFound, StoreFailed
from chatkit.protocols import Outcome
from chatkit.sessions import items
from chatkit.sessions.budget import Budget
from chatkit.types import Turn
from tests import ministack
from tests.sessions.dynamodb.parts import DONE, OWNER, new, seqs, talk, write_over

pytestmark = pytest.mark.anyio
WAIT_S = 30


@asynccontextmanager
async def held(store, operation: str, at: int, work):
    """Start work that a store does, hold its call of this number before it leaves, and end it after the block."""
    client = store._table.client
    real, there, go, calls = getattr(client, operation), threading.Event(), threading.Event(), []

    def hold(**parameters):
        calls.append(operation)
        if len(calls) == at:
            there.set()
            assert go.wait(WAIT_S)
        return real(**parameters)

    setattr(client, operation, hold)
    task = asyncio.ensure_future(work)
    assert await asyncio.to_thread(there.wait, WAIT_S)
    try:
        yield task
    finally:
        go.set()
        await asyncio.wait([task])
        setattr(client, operation, real)


async def texts(store) -> list[tuple[int, str]]:
    return [(turn.seq, turn.user) for turn in await store.page(OWNER, "my-session", limit=99)]


# The first transaction removes requests, the second turns; the update marks the session's own item.
@pytest.mark.parametrize(
    ("operation", "at"),
    [("transact_write_items", 1), ("transact_write_items", 2), ("update_item", 1), ("delete_item", 1)],
)
async def test_a_removal_that_comes_late_leaves_a_session_that_was_opened_again(opened, operation, at) -> None:
    first, second, other = opened(), opened(), opened()
    await talk(other, 2)
    async with held(second, operation, at, second.delete(OWNER, "my-session")) as late:
        await first.delete(OWNER, "my-session")
        for number in (1, 2, 3):
            turn = new(number, f"New {number}", after=number - 1)
            await other.finish((await other.accept(turn)).ticket, Outcome("complete", "stop", "Hi."))
        assert (await other.accept(new(1, "New 1", after=3))).repeat.seq == 1
    await late
    assert await texts(other) == [(1, "New 1"), (2, "New 2"), (3, "New 3")]
    assert [head.turns for head in (await other.sessions(OWNER, limit=9)).sessions] == [3]
    assert (await other.accept(new(1, "New 1", after=3))).repeat.seq == 1


async def test_a_late_removal_of_the_same_request_ids_leaves_those_of_the_new_session(opened) -> None:
    first, second, other = opened(), opened(), opened()
    await other.finish((await other.accept(new())).ticket, Outcome("complete", "stop", "Hi."))
    async with held(second, "transact_write_items", 1, second.delete(OWNER, "my-session")) as late:
        await first.delete(OWNER, "my-session")
        await other.finish((await other.accept(new())).ticket, Outcome("complete", "stop", "Again."))
    await late
    assert (await other.accept(new(after=1))).repeat.assistant == "Again."


ABORTED = Outcome("aborted", "aborted", "what was shown")


# By when it comes the first attempt has ended, or its lease has: the same number, attempt and status as the new one's.
@pytest.mark.parametrize("ends", [True, False], ids=["aborted", "pending"])
@pytest.mark.parametrize(("number", "text"), [(2, "New"), (1, "New"), (1, "Hello")])
async def test_a_take_over_that_comes_late_leaves_the_turn_of_a_session_that_was_opened_again(
    opened, clock, number, text, ends
) -> None:
    first, other = opened(clock=clock), opened(clock=clock)

    async def begin(turn) -> None:
        ticket = (await other.accept(turn)).ticket
        await other.renew(ticket)
        if ends:
            await other.finish(ticket, ABORTED)

    await begin(new())
    clock.now += items.LEASE_S + 1
    planned = new(after=1, opened_at=(await other.load(OWNER, "my-session", limit=9)).opened_at)
    async with held(first, "transact_write_items", 2, first.accept(planned)) as late:
        await other.delete(OWNER, "my-session")
        clock.now -= items.LEASE_S
        await begin(new(number, text))
        clock.now += items.LEASE_S + 1
    with pytest.raises((NotFound, Conflict)):
        await late
    (kept,) = await other.page(OWNER, "my-session", limit=9)
    assert (kept.user, kept.request_id, kept.attempt, kept.status) == (text, f"request-{number}", 1, "aborted")
    again = await other.accept(new(number, text, after=1))
    assert (again.ticket.seq, again.ticket.attempt) == (1, 2)


async def test_a_take_over_goes_to_where_its_request_is_by_then(opened) -> None:
    first, other = opened(), opened()
    await other.finish((await other.accept(new())).ticket, ABORTED)
    async with held(first, "transact_write_items", 2, first.accept(new(after=1))) as late:
        await other.delete(OWNER, "my-session")
        await talk(other, 1)
        await other.finish((await other.accept(new(after=1))).ticket, ABORTED)
    ticket = (await late).ticket
    assert (ticket.seq, ticket.attempt) == (2, 2)
    await first.finish(ticket, Outcome("complete", "stop", "Hi."))
    assert await texts(other) == [(1, "Hello"), (2, "Hello")]
    assert (await other.accept(new(after=2))).repeat.assistant == "Hi."


async def test_a_request_whose_turn_is_another_requests_is_of_a_session_that_is_gone(store) -> None:
    await talk(store, 1)
    request = items.new_request("my-session", 1, 2e9, None)
    write_over(store, items.request_key(OWNER, "request-9"), items.REQUEST, **request)
    with pytest.raises(NotFound, match="the session of request_id 'request-9' does not exist any more"):
        await store.accept(new(9, "Hello", after=1))


async def test_an_attempt_whose_turn_was_damaged_is_no_longer_its_to_finish(store, dynamodb, table) -> None:
    ticket = (await store.accept(new())).ticket
    partition, key = items.session_key(OWNER, "my-session"), items.turn_key(1)
    store._table.update(Budget(9), partition, key, update="REMOVE #attempt")
    with pytest.raises(Conflict, match="no longer attempt 1's to finish"):
        await store.finish(ticket, DONE)


async def test_a_mark_of_an_owner_that_comes_late_leaves_that_of_a_later_removal(store, opened, monkeypatch) -> None:
    other, client = opened(), store._table.client
    for seconds, operation in ((30 * 86400.0, "put_item"), (0.0, "delete_item")):
        send = getattr(client, operation)
        await other.purge(OWNER, closed_s=60)

        def late(send=send, **sent):
            """The one who removed has given up, and another removes everything again, before this arrives."""
            other._archive.shut_out(Budget(9), OWNER, 600)
            time.sleep(0.3)
            return send(**sent)

        monkeypatch.setattr(client, operation, late)
        with pytest.raises(StoreFailed):
            store._archive.shut_out(Budget(0.3), OWNER, seconds)
        mark = other._table.get(Budget(9), items.owner_mark_key(OWNER), items.OWNER)
        assert 590 < mark["expires_at"] - time.time() < 602
        monkeypatch.undo()


async def test_a_removal_that_another_joins_is_over_for_both_when_everything_is_gone(opened, dynamodb, table) -> None:
    first, second = opened(), opened()
    await talk(first, 3)
    async with held(first, "transact_write_items", 2, first.delete(OWNER, "my-session")) as slow:
        await second.delete(OWNER, "my-session")
        assert ministack.everything_in(dynamodb, table) == "[[]]"
    await slow
    assert (await second.accept(new("fresh"))).ticket.seq == 1


async def test_a_removal_of_many_turns_is_of_some_at_a_time_and_whole(store, calls) -> None:
    await talk(store, 1)
    partition = items.session_key(OWNER, "my-session")
    row = store._table.get(Budget(9), partition, items.turn_key(1))
    bare = {name: value for name, value in row.items() if name not in ("pk", "sk", "request_id")}
    for seq in range(2, 251):
        write_over(store, partition, items.turn_key(seq), **(bare | {"seq": seq, "request_id": f"r-{seq}"}))
    calls.clear()
    await store.delete(OWNER, "my-session")
    assert calls["TransactWriteItems"] == 6  # 99, 99 and 52 turns, each after their requests
    assert "my-session" not in ministack.everything_in(store._table._endpoint, store._table.name)


# The first transaction is of the turns, the second of the requests; the update opens the session.
@pytest.mark.parametrize(
    ("operation", "at"), [("query", 1), ("transact_write_items", 1), ("transact_write_items", 2), ("update_item", 1)]
)
async def test_of_two_who_restore_a_session_the_one_that_began_last_does_and_no_later_turn_is_lost(
    opened, operation, at
) -> None:
    first, second, other = opened(), opened(), opened()
    await talk(other, 2)
    turns = await other.page(OWNER, "my-session", limit=9)
    await other.delete(OWNER, "my-session")
    async with held(first, operation, at, first.restore(OWNER, "my-session", turns, expires_at=None)) as late:
        await second.restore(OWNER, "my-session", turns, expires_at=None)
        await other.finish((await other.accept(new("more", "More", after=2))).ticket, Outcome("complete", "stop"))
    with pytest.raises(Conflict, match="removed, or restored by somebody else, while it was restored"):
        await late
    assert await texts(other) == [(1, "Hello"), (2, "Hello"), (3, "More")]
    assert await seqs(other) == [1, 2, 3]
    assert (await other.accept(new("more", "More", after=3))).repeat.seq == 3


async def test_a_restoring_that_was_overtaken_does_not_remove_the_others_when_a_request_is_taken(opened) -> None:
    first, second, other = opened(), opened(), opened()
    await talk(other, 2)
    turns = await other.page(OWNER, "my-session", limit=9)
    await other.delete(OWNER, "my-session")
    async with held(first, "update_item", 1, first.restore(OWNER, "my-session", turns, expires_at=None)) as late:
        await second.delete(OWNER, "my-session")
        await second.restore(OWNER, "my-session", turns, expires_at=None)
    with pytest.raises(Conflict):
        await late
    assert await seqs(other) == [1, 2]


async def test_large_turns_are_restored_in_transactions_that_hold_them(store, calls) -> None:
    await talk(store, 1, "your-session")
    (turn,) = await store.page(OWNER, "your-session", limit=9)
    turns = tuple(long(turn, seq) for seq in range(1, 25))
    calls.clear()
    await store.restore(OWNER, "my-session", turns, expires_at=None)
    assert calls["TransactWriteItems"] == 4  # 11, 11 and 2 turns of 270 KB in at most 3 MB, and the requests
    assert await store.page(OWNER, "my-session", limit=99) == turns
    await store.delete(OWNER, "my-session")
    assert await seqs(store) == []


def long(turn: Turn, seq: int) -> Turn:
    texts = {"user": "a" * 250_000, "user_length": 250_000, "assistant": "b" * 20_000}
    return replace(turn, seq=seq, request_id=f"long-{seq}", **texts)
