"""What the DynamoDB store removes, restores and lists, and how work that broke off is ended."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from chatkit.errors import Conflict, InvalidRequest, NotFound, StoreFailed, TooLarge
from chatkit.protocols import NewTurn
from chatkit.sessions import items
from chatkit.sessions.attributes import encode_item
from chatkit.sessions.budget import Budget
from chatkit.sessions.table import key_of
from chatkit.types import Owner, Turn
from tests import ministack
from tests.faults.proxy import refusal
from tests.sessions.dynamodb.parts import DONE, OWNER, new, seqs, talk

pytestmark = pytest.mark.anyio


def everything(store) -> str:
    return ministack.everything_in(store._table._endpoint, store._table.name)


def break_off(proxy, after: int, operations=("TransactWriteItems", "UpdateItem", "DeleteItem")) -> None:
    """Let so many writes through, and refuse the next one and whatever comes after it."""
    seen = Counter()

    def meddle(operation, forward):
        seen["writes"] += operation in operations
        return refusal("ValidationException") if seen["writes"] > after else forward()

    proxy.meddle = meddle


def let_through(proxy) -> None:
    proxy.meddle = lambda operation, forward: forward()


async def names(store) -> list[str]:
    return sorted(head.session_id for head in (await store.sessions(OWNER, limit=99)).sessions)


async def whole(store) -> tuple[Turn, ...]:
    """Have a finished session of another owner and return its turns."""
    other = Owner(user="writer")
    turn = NewTurn(other, "my-session-of-theirs", "request-of-theirs", "Hello", 5)
    accepted = await store.accept(turn)
    if accepted.ticket:
        await store.finish(accepted.ticket, DONE)
    return await store.page(other, "my-session-of-theirs", limit=9)


# The session's own item is marked, its requests go, its turns, and last its own item.
@pytest.mark.parametrize("writes", [1, 2, 3])
async def test_a_removal_that_broke_off_shows_nothing_and_is_ended_by_running_it_again(
    store, proxy, proxied, writes
) -> None:
    tickets = [(await store.accept(new(number, after=number - 1))).ticket for number in range(1, 31)]
    await store.finish(tickets[0], DONE)
    break_off(proxy, writes)
    with pytest.raises(StoreFailed):
        await proxied.delete(OWNER, "my-session")
    assert '"closing"' in everything(store)
    assert (await seqs(store), await names(store)) == ([], [])
    for call, error, said in (
        (store.page(OWNER, "my-session", limit=9), NotFound, "my-session"),
        (store.accept(new(31, after=30)), NotFound, "is being removed; name another one, or have it removed again"),
        (store.accept(new("fresh")), NotFound, "is being removed"),
        (store.accept(new(1)), NotFound, "any more" if writes == 1 else "is being removed"),
        (store.finish(tickets[1], DONE), Conflict, "no longer attempt"),
        (store.restore(OWNER, "my-session", await whole(store), expires_at=None), Conflict, "is there already"),
    ):
        with pytest.raises(error, match=said):
            await call
    await store.delete(OWNER, "my-session")
    assert "my-session" not in everything(store).replace("my-session-of", "")
    assert (await store.accept(new("fresh"))).ticket.seq == 1


async def test_removing_leaves_a_request_that_is_another_sessions_by_now(store) -> None:
    await talk(store, 2)
    theirs = items.new_request("other-session", 1, 1e10, None)
    store._table.write(Budget(9), items.request_key(OWNER, "my-session-1"), items.REQUEST, theirs)
    await store.delete(OWNER, "my-session")
    left = everything(store)
    assert ("other-session" in left, "my-session-2" in left) == (True, False)


async def test_what_is_left_of_a_session_without_its_own_item_is_in_the_way_until_it_is_removed(store) -> None:
    await talk(store, 2)
    store._table.delete(Budget(9), items.session_key(OWNER, "my-session"), items.META)
    with pytest.raises(Conflict, match="the removal of session 'my-session' was not ended; remove it again"):
        await store.accept(new("fresh"))
    await store.delete(OWNER, "my-session")
    assert (await store.accept(new("fresh"))).ticket.seq == 1


@pytest.mark.parametrize("writes", [0, 1, 3, 6])
async def test_a_purge_that_broke_off_leaves_the_owner_shut_out_and_running_it_again_ends_it(
    store, proxy, proxied, writes
) -> None:
    for number in range(3):
        await talk(store, 2, f"session-{number}")
    break_off(proxy, writes)
    with pytest.raises(StoreFailed):
        await proxied.purge(OWNER)
    with pytest.raises(Conflict, match="everything of this owner is being removed"):
        await store.accept(new("fresh"))
    let_through(proxy)
    await proxied.purge(OWNER, closed_s=0)
    assert everything(store) == "[[]]"
    assert (await store.accept(new("fresh"))).ticket.seq == 1


async def test_a_purge_ends_what_was_being_removed_or_restored(store, proxy, proxied) -> None:
    await talk(store, 2, "session-a")
    turns = await store.page(OWNER, "session-a", limit=9)
    turns = tuple(replace(turn, request_id=f"copy-{turn.seq}") for turn in turns)
    break_off(proxy, 1)
    with pytest.raises(StoreFailed):
        await proxied.delete(OWNER, "session-a")
    break_off(proxy, 0)
    with pytest.raises(StoreFailed):
        await proxied.restore(OWNER, "session-b", turns, expires_at=None)
    assert ('"closing"' in everything(store), '"restoring"' in everything(store)) == (True, True)
    assert await store.purge(OWNER, closed_s=0) == 2
    assert everything(store) == "[[]]"


async def test_a_purge_asks_the_index_again_which_is_a_moment_behind(store, proxy, proxied) -> None:
    await talk(store, 1)
    seen = Counter()

    def behind(operation, forward):
        seen[operation] += 1
        if operation == "Query" and seen[operation] <= 2:
            return 200, json.dumps({"Items": [], "Count": 0, "ScannedCount": 0}).encode()
        return forward()

    proxy.meddle = behind
    assert await proxied.purge(OWNER, closed_s=0) == 1
    assert everything(store) == "[[]]"


@pytest.mark.parametrize("writes", [0, 1, 2])
async def test_a_restoring_that_broke_off_cannot_be_read_and_is_ended_by_running_it_again(
    store, proxy, proxied, writes
) -> None:
    await talk(store, 30, "old-session")
    turns = tuple(
        replace(turn, request_id=f"r-{turn.seq}") for turn in await store.page(OWNER, "old-session", limit=99)
    )
    break_off(proxy, writes)
    with pytest.raises(StoreFailed):
        await proxied.restore(OWNER, "my-session", turns, expires_at=None)
    assert (await seqs(store), await names(store)) == ([], ["old-session"])
    with pytest.raises(NotFound, match="'my-session' is being restored; name another one"):
        await store.accept(new("fresh"))
    await store.restore(OWNER, "my-session", turns[:20], expires_at=None)  # another time with fewer
    assert await store.page(OWNER, "my-session", limit=99) == turns[:20]
    assert await seqs(store) == list(range(1, 21))
    assert (await store.accept(NewTurn(OWNER, "my-session", "r-25", "Hello", 5, after=20))).ticket.seq == 21


async def test_a_turn_that_is_more_than_an_item_is_refused_and_nothing_of_it_is_written(store) -> None:
    await talk(store, 1)
    (turn,) = await store.page(OWNER, "my-session", limit=9)
    before = everything(store)
    with pytest.raises(TooLarge, match=r"turn 1 has 500\d\d\d bytes, at most 409600"):
        await store.restore(OWNER, "your-session", (replace(turn, assistant="a" * 500_000),), expires_at=None)
    assert everything(store) == before


async def test_two_turns_of_one_request_are_invalid_and_nothing_of_them_is_written(store) -> None:
    await talk(store, 1)
    (turn,) = await store.page(OWNER, "my-session", limit=9)
    turns = (replace(turn, request_id="r-1"), replace(turn, seq=2, request_id="r-1"))
    before = everything(store)
    with pytest.raises(InvalidRequest, match="turns 1 and 2 of session 'your-session' have one request_id, 'r-1'"):
        await store.restore(OWNER, "your-session", turns, expires_at=None)
    assert everything(store) == before


async def test_what_the_server_leaves_undone_of_a_batch_is_asked_for_again(proxy, proxied) -> None:
    for name in ("session-a", "session-b", "session-c"):
        await talk(proxied, 4, name)
    partition, seen = items.session_key(OWNER, "session-a"), Counter()

    def leave_all(operation, forward):
        seen[operation] += 1
        if operation == "BatchWriteItem" and seen[operation] == 1:
            keys = [key_of(partition, items.turn_key(seq)) for seq in range(1, 5)]
            return undone("UnprocessedItems", [{"DeleteRequest": {"Key": key}} for key in keys])
        if operation == "BatchGetItem" and seen[operation] == 1:
            return undone("UnprocessedKeys", {"Keys": [key_of(partition, items.META)]})
        return forward()

    def undone(kind, left):
        return 200, json.dumps({"Responses": {}, kind: {proxied._table.name: left}}).encode()

    proxy.meddle = leave_all
    assert await names(proxied) == ["session-a"]
    proxied._table.remove(Budget(9), partition, [items.turn_key(seq) for seq in range(1, 5)])
    assert await seqs(proxied, "session-a") == []
    assert seen["BatchWriteItem"] == 2
    await proxied.delete(OWNER, "session-a")
    assert await names(proxied) == ["session-b", "session-c"]


async def test_more_sessions_than_one_answer_holds_are_listed_and_found_for_a_purge_to_the_last(store, calls) -> None:
    client, name = store._table.client, store._table.name
    ids = [f"{number:03}" + "漢" * 125 for number in range(900)]  # more than 1 KB in the index each
    for start in range(0, len(ids), 25):
        heads = [
            {"PutRequest": {"Item": key_of(items.session_key(OWNER, one), items.META) | encode_item(head)}}
            for one in ids[start : start + 25]
            for head in [{"version": 0, "created_at": 1000 + int(one[:3]), "owner": items.owner_key(OWNER)}]
        ]
        client.batch_write_item(RequestItems={name: heads})
    calls.clear()
    listed = (await store.sessions(OWNER, limit=1000)).sessions
    assert [head.session_id for head in listed] == ids[::-1]
    assert calls["Query"] == 2
    first = await store.sessions(OWNER, limit=890)
    rest = await store.sessions(OWNER, limit=890, cursor=first.cursor)
    assert ([head.session_id for head in (*first.sessions, *rest.sessions)], rest.cursor) == (ids[::-1], None)
    calls.clear()
    assert store._archive.named(Budget(9), OWNER) == ids
    assert calls == {"Query": 2}


@pytest.mark.parametrize("operation", ["Query", "PutItem", "UpdateItem", "TransactWriteItems", "DeleteItem"])
async def test_work_whose_answers_are_lost_on_the_way_is_done_without_an_error(proxy, proxied, operation) -> None:
    await talk(proxied, 3, "old-session")
    turns = await proxied.page(OWNER, "old-session", limit=9)
    lost = Counter()

    def lose_every_other(called, forward):
        answer = forward()
        lost[called] += called == operation
        return None if called == operation and lost[called] % 2 else answer

    proxy.meddle = lose_every_other
    await proxied.delete(OWNER, "old-session")
    await proxied.restore(OWNER, "my-session", turns, expires_at=None)
    assert await proxied.page(OWNER, "my-session", limit=9) == turns
    assert await proxied.purge(OWNER, closed_s=0) == 1
    assert lost[operation] >= 2
    assert everything(proxied) == "[[]]"
