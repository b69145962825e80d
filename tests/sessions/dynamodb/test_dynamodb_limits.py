"""Where the DynamoDB store ends: long sessions, large turns, odd ids, damaged rows, and a clock that is set."""

from dataclasses import replace

import pytest

from chatkit.errors import NotFound, StoreFailed, TooLarge
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import items
from chatkit.sessions.attributes import size_of
from chatkit.sessions.budget import Budget
from chatkit.sessions.dynamodb_turns import MAX_ITEM
from chatkit.types import Owner
from tests.sessions.dynamodb.parts import DONE, OWNER, new, seqs, talk, write_over

pytestmark = pytest.mark.anyio
DAY = 86400.0


async def a_turn(store, calls, name: str, number: int) -> dict[str, int]:
    """Load, accept and finish as the service does, and return the calls that took."""
    calls.clear()
    loaded = await store.load(OWNER, name, limit=64)
    turn = NewTurn(OWNER, name, f"{name}-{number}", "Hello", 5, after=loaded.newest, expires_at=loaded.expires_at)
    ticket = (await store.accept(turn)).ticket
    assert ticket.seq == number
    await store.finish(ticket, DONE)
    return dict(calls)


async def test_a_turn_costs_the_same_calls_at_ten_turns_and_at_ten_thousand(store, calls) -> None:
    await talk(store, 1, "first-session")
    (first,) = await store.page(OWNER, "first-session", limit=1)
    turns = [replace(first, seq=seq, request_id=f"r-{seq}", created_at=1000.0) for seq in range(1, 10_001)]
    costs = {}
    for length in (10, 10_000):
        await store.restore(OWNER, f"session-{length}", turns[:length], expires_at=None)
        costs[length] = await a_turn(store, calls, f"session-{length}", length + 1)
        newest = list(range(length - 4, length + 2))
        assert [turn.seq for turn in await store.load(OWNER, f"session-{length}", limit=6)] == newest
        assert await seqs_of_page(store, after=length - 5, name=f"session-{length}") == newest
    assert costs[10] == costs[10_000] == {"Query": 1, "TransactWriteItems": 2}


async def seqs_of_page(store, after: int, name: str = "my-session") -> list[int]:
    return [turn.seq for turn in await store.page(OWNER, name, limit=99, after=after)]


async def test_what_a_longer_session_of_the_name_left_is_passed_over_in_one_more_query(opened, clock) -> None:
    clock.now = 1000.0
    store, counted = opened(clock=clock, retention_s=100.0), []
    store._table.client.meta.events.register("before-call.dynamodb.*", lambda model, **_: counted.append(model.name))
    await talk(store, 40)
    clock.now += 101
    for number in (1, 2, 3):
        ticket = (await store.accept(new(number, after=number - 1))).ticket
        await store.finish(ticket, DONE)
    counted.clear()
    assert [turn.request_id for turn in await store.load(OWNER, "my-session", limit=5)] == [
        "request-1", "request-2", "request-3",
    ]  # fmt: skip
    assert counted == ["Query", "Query"]
    assert await seqs_of_page(store, after=0) == [1, 2, 3]


async def test_a_session_that_was_opened_again_since_it_was_loaded_is_not_added_to(opened, clock) -> None:
    store = opened(clock=clock, retention_s=100.0)
    await talk(store, 2)
    loaded = await store.load(OWNER, "my-session", limit=9)
    clock.now += 101
    await talk(store, 2, first=1)
    with pytest.raises(NotFound, match="my-session"):
        await store.accept(new("late", after=loaded.newest, expires_at=loaded.expires_at))
    assert await seqs(store) == [1, 2]


@pytest.mark.parametrize("letter", ["a", "é", "漢", "🙂"])
async def test_a_message_of_the_limit_is_taken_and_one_byte_more_is_too_large(store, letter) -> None:
    size = len(letter.encode())
    exact = letter * (items.MAX_MESSAGE // size) + "b" * (items.MAX_MESSAGE % size)
    await store.finish((await store.accept(new(1, exact))).ticket, DONE)
    with pytest.raises(TooLarge, match="the message has 262145 bytes, at most 262144 are stored"):
        await store.accept(new(2, exact + "c", after=1))
    assert [turn.user == exact for turn in await store.load(OWNER, "my-session", limit=9)] == [True]


@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_an_item_of_the_limit_is_taken_and_one_byte_more_is_cut(store, more) -> None:
    ticket = (await store.accept(new(1, "a" * 1000))).ticket
    item = store._table.get(Budget(9), items.session_key(OWNER, "my-session"), items.turn_key(1))
    room = MAX_ITEM - size_of(items.ended(item, Outcome("complete", "stop", "", usage=DONE.usage)))
    outcome = Outcome("complete", "stop", "b" * (room + more), usage=DONE.usage)
    if more <= 0:
        await store.finish(ticket, outcome)
    else:
        with pytest.raises(TooLarge, match="stored as aborted and its answer cut"):
            await store.finish(ticket, outcome)
    (turn,) = await store.load(OWNER, "my-session", limit=9)
    assert turn.status == ("complete" if more <= 0 else "aborted")
    assert room - 10 < len(turn.assistant) <= room


ODD = [chr(code) for code in (*range(1, 48), *range(58, 65), *range(91, 97), *range(123, 161), 0x2028, 0xFEFF, 0x1F642)]


async def test_ids_of_every_odd_character_are_kept_apart_in_every_verb(store) -> None:
    owners = [Owner(f"t{sign}#U#x", f"{sign}u#S#y") for sign in ODD]
    for number, (sign, owner) in enumerate(zip(ODD, owners, strict=True)):
        name, request = f"id{sign}#T#00000001", f"{sign}#R#request"
        turn = NewTurn(owner, name, request, f"text {number}", 9)
        ticket = (await store.accept(turn)).ticket
        await store.renew(ticket)
        await store.finish(ticket, DONE)
    for number, (sign, owner) in enumerate(zip(ODD, owners, strict=True)):
        name = f"id{sign}#T#00000001"
        assert [turn.user for turn in await store.load(owner, name, limit=9)] == [f"text {number}"]
        assert [head.session_id for head in (await store.sessions(owner, limit=9)).sessions] == [name]
    await store.delete(owners[0], f"id{ODD[0]}#T#00000001")
    left = [len((await store.sessions(owner, limit=9)).sessions) for owner in owners]
    assert left == [0] + [1] * (len(ODD) - 1)


DAMAGE = {
    "a number of text": {"seq": "two"},
    "another number": {"seq": 7},
    "a message of a number": {"user": 5},
    "an answer of a list": {"assistant": ["x"]},
    "an unknown status": {"status": "asleep"},
    "an attempt of text": {"attempt": "1"},
    "no moment": {"created_at": None},
    "usage of text": {"usage": "many"},
    "passages of numbers": {"passages": [1, 2]},
    "a number of text for a place": {"replaces": "x"},
    "a lease of text": {"lease": "abc"},
    "a reason of a number": {"finish_reason": 5},
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_turn_is_left_out_and_hides_nothing_else(store, caplog, damage) -> None:
    await talk(store, 3)
    partition, key = items.session_key(OWNER, "my-session"), items.turn_key(2)
    sound = store._table.get(Budget(9), partition, key)
    row = {name: value for name, value in (sound | DAMAGE[damage]).items() if name not in ("pk", "sk")}
    write_over(store, partition, key, **{name: value for name, value in row.items() if value is not None})
    caplog.clear()
    assert await seqs(store) == [1, 3]
    assert {record.getMessage() for record in caplog.records} == {f"entry {key} of a session is damaged and left out"}
    assert await seqs_of_page(store, after=0) == [1, 3]
    with pytest.raises(StoreFailed, match=f"holds a damaged entry {key!r}; send a new request_id"):
        await store.accept(NewTurn(OWNER, "my-session", "my-session-2", "Hello", 5, after=3))
    assert (await store.accept(new("next", after=3))).ticket.seq == 4
    await store.delete(OWNER, "my-session")
    assert await seqs(store) == []


@pytest.mark.parametrize("head", [{}, {"version": "three"}, {"version": 3, "expires_at": "soon"}])
async def test_a_damaged_head_hides_no_turn_and_takes_none(store, caplog, head) -> None:
    await talk(store, 3)
    partition = items.session_key(OWNER, "my-session")
    kept = {"owner": items.owner_key(OWNER), "created_at": 1000.0}
    write_over(store, partition, items.META, **kept, **head)
    assert await seqs(store) == [1, 2, 3]
    assert await seqs_of_page(store, after=0) == [1, 2, 3]
    with pytest.raises(StoreFailed, match="holds a damaged entry 'Z#META'; start a new session"):
        await store.accept(new("next", after=3))
    assert caplog.records[-1].getMessage().endswith("entry Z#META of a session or request is damaged")
    await talk(store, 1, "other-session")
    names = [one.session_id for one in (await store.sessions(OWNER, limit=9)).sessions]
    assert names == ["other-session", "my-session"]
    (_, damaged) = (await store.sessions(OWNER, limit=9)).sessions
    assert (damaged.turns, damaged.created_at, damaged.damaged) == (0, 1000.0, True)
    assert (await store.load(OWNER, "my-session", limit=9)).expires_at is None
    await store.delete(OWNER, "my-session")
    assert (await store.accept(new("next"))).ticket.seq == 1


async def test_a_damaged_request_is_named_and_a_new_one_is_taken(store) -> None:
    await talk(store, 1)
    write_over(store, items.request_key(OWNER, "my-session-1"), items.REQUEST, session_id=5)
    again = NewTurn(OWNER, "my-session", "my-session-1", "Hello", 5, after=1)
    with pytest.raises(StoreFailed, match="holds a damaged entry 'R'; send a new request_id"):
        await store.accept(again)
    assert (await store.accept(replace(again, request_id="another"))).ticket.seq == 2


async def test_a_clock_that_is_set_by_a_day_moves_no_turn_and_loses_none(opened, clock) -> None:
    clock.now = 1_700_000_000.0
    store = opened(clock=clock, retention_s=30 * DAY)
    for number, step in enumerate((0, DAY, -2 * DAY, DAY, DAY), start=1):
        clock.now += step
        ticket = (await store.accept(new(number, after=number - 1))).ticket
        await store.finish(ticket, DONE)
        assert await seqs(store) == list(range(1, number + 1))
    pending = (await store.accept(new(6, after=5))).ticket
    clock.now -= DAY  # the lease is a day long now, and stays the turn's
    assert [turn.status for turn in await store.load(OWNER, "my-session", limit=1)] == ["pending"]
    await store.renew(pending)
    clock.now += DAY  # and over for everybody else
    heir = (await store.accept(new(6, after=6))).ticket
    assert (heir.seq, heir.attempt) == (6, 2)
    await store.finish(heir, DONE)
    assert await seqs(store) == [1, 2, 3, 4, 5, 6]
    assert (await store.load(OWNER, "my-session", limit=9)).expires_at == 1_700_000_000 + 30 * DAY


async def test_however_many_turns_are_hidden_a_load_asks_for_two_pages(store, calls) -> None:
    await talk(store, 1)
    partition = items.session_key(OWNER, "my-session")
    row = store._table.get(Budget(9), partition, items.turn_key(1))
    bare = {name: value for name, value in row.items() if name not in ("pk", "sk", "seq", "request_id")}
    for seq in range(2, 401):
        write_over(store, partition, items.turn_key(seq), **(bare | {"seq": seq, "request_id": f"r-{seq}"}))
    head = store._table.get(Budget(9), partition, items.META)
    write_over(
        store, partition, items.META, **({n: v for n, v in head.items() if n not in ("pk", "sk")} | {"version": 400})
    )
    edit = (await store.accept(new("edit", after=400, replaces=10))).ticket
    await store.finish(edit, DONE)
    calls.clear()
    assert [turn.seq for turn in await store.load(OWNER, "my-session", limit=10)] == [*range(1, 10), 401]
    assert calls == {"Query": 2}
