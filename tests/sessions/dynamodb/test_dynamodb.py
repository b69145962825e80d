"""What the DynamoDB store sends for a turn, how much it takes, and many writers at once."""

import asyncio
import json
from collections import Counter

import pytest

from chatkit.errors import Conflict, TooLarge
from chatkit.protocols import Outcome
from chatkit.sessions import items
from chatkit.types import Passage, Usage
from tests.faults.proxy import Fault, Faults, refusal
from tests.sessions.dynamodb.parts import DONE, OWNER, new, python, seqs

pytestmark = pytest.mark.anyio


async def test_a_turn_costs_one_query_and_two_transactions(store, calls) -> None:
    ticket = (await store.accept(new(session_id="s-mine", opens_session=True))).ticket
    await store.finish(ticket, DONE)
    assert calls == {"TransactWriteItems": 2}
    for number in range(2, 5):
        calls.clear()
        newest = (await store.load(OWNER, "s-mine", limit=9)).newest
        assert calls == {"Query": 1}
        ticket = (await store.accept(new(number, session_id="s-mine", after=newest))).ticket
        assert (ticket.seq, calls) == (number, {"Query": 1, "TransactWriteItems": 1})
        await store.finish(ticket, DONE)
        assert calls == {"Query": 1, "TransactWriteItems": 2}
    calls.clear()
    await store.renew((await store.accept(new(5, session_id="s-mine", after=4))).ticket)
    assert calls == {"TransactWriteItems": 1, "UpdateItem": 1}


async def test_a_stale_number_costs_one_more_transaction_and_a_repeat_three_more_calls(store, calls) -> None:
    for number in range(1, 4):
        await store.finish((await store.accept(new(number, after=number - 1))).ticket, DONE)
    calls.clear()
    assert (await store.accept(new(4, after=1))).ticket.seq == 4
    assert calls == {"TransactWriteItems": 2}
    calls.clear()
    assert (await store.accept(new(3, after=4))).repeat.assistant == "Hi."
    assert calls == {"TransactWriteItems": 1, "GetItem": 2}


def tokens(proxy) -> list[str]:
    """Return the tokens of the transactions that the proxy saw, in order."""
    return [json.loads(body)["ClientRequestToken"] for name, body in proxy.faults.seen if name == "TransactWriteItems"]


async def test_each_try_has_a_token_of_its_own_and_what_is_sent_again_keeps_it(proxy, proxied) -> None:
    ticket = (await proxied.accept(new())).ticket
    await proxied.finish(ticket, DONE)
    assert (await proxied.accept(new())).repeat.seq == 1
    assert len(set(tokens(proxy))) == 3
    assert {len(token) for token in tokens(proxy)} == {36}
    proxy.faults = Faults(Fault("drop", forwarded=True, operation="TransactWriteItems", times=2))
    ticket = (await proxied.accept(new(2, after=1))).ticket
    assert [len(tokens(proxy)), len(set(tokens(proxy)))] == [3, 1]
    for code, different in (("ThrottlingError", 1), ("TransactionConflict", 3)):
        refused = refusal("TransactionCanceledException", CancellationReasons=[{"Code": code}])
        left = [refused, refused]
        proxy.faults, proxy.meddle = Faults(), lambda _, forward, left=left: left.pop() if left else forward()
        if code == "ThrottlingError":
            await proxied.finish(ticket, DONE)
        else:
            assert (await proxied.accept(new(3, after=2))).ticket.seq == 3
        assert [len(tokens(proxy)), len(set(tokens(proxy)))] == [3, different]
    assert await seqs(proxied) == [1, 2, 3]


async def test_two_instances_that_get_one_request_in_one_moment_do_not_both_have_the_turn(opened, clock) -> None:
    stores = [opened(clock=clock) for _ in range(3)]
    for number in range(1, 9):
        tries = (store.accept(new(number, after=number - 1)) for store in stores for _ in range(2))
        results = await asyncio.gather(*tries, return_exceptions=True)
        (winner,) = [result.ticket for result in results if not isinstance(result, Exception)]
        assert (winner.seq, winner.attempt) == (number, 1)
        assert sum(isinstance(result, Conflict) for result in results) == 5
        await stores[0].finish(winner, DONE)


async def test_many_processes_at_once_number_one_session_without_holes(dynamodb, table, store) -> None:
    script = """
import asyncio, sys
from chatkit.errors import StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.types import Owner
async def asked_again(call):
    for _ in range(9):  # as a client does when a busy machine spends a call's budget
        try:
            return await call()
        except StoreFailed:
            pass
    return await call()
async def main(name, table, endpoint):
    store = DynamoDBStore(table, endpoint=endpoint)
    async def writer(part):
        for n in range(10):
            async def accepted():
                newest = (await store.load(Owner(), "my-session", limit=4)).newest
                turn = NewTurn(Owner(), "my-session", f"request-{name}-{part}-{n}", "q", 1, after=newest)
                return (await store.accept(turn)).ticket
            ticket = await asked_again(accepted)
            await asked_again(lambda: store.finish(ticket, Outcome("complete", "stop", name)))
    await asyncio.gather(writer(1), writer(2))
    store.close()
asyncio.run(main(*sys.argv[1:]))
"""
    writers = [python(script, name, table, dynamodb) for name in "abc"]
    ended = [(writer.communicate(timeout=120)[1], writer.returncode) for writer in writers]
    assert [code for _, code in ended] == [0, 0, 0], ended
    turns = (await store.load(OWNER, "my-session", limit=99)).turns
    assert [turn.seq for turn in turns] == list(range(1, 61))
    assert Counter(turn.assistant for turn in turns) == {"a": 20, "b": 20, "c": 20}
    assert {turn.status for turn in turns} == {"complete"}


async def test_an_expired_turn_is_taken_over_by_exactly_one(opened, clock) -> None:
    stores = [opened(clock=clock) for _ in range(3)]
    for number in range(1, 6):
        zombie = (await stores[0].accept(new(number, after=number - 1))).ticket
        clock.now += items.LEASE_S + 1
        tries = (store.accept(new(number, after=number)) for store in stores for _ in range(2))
        results = await asyncio.gather(*tries, return_exceptions=True)
        (heir,) = [result.ticket for result in results if not isinstance(result, Exception)]
        assert (heir.seq, heir.attempt) == (number, 2)
        assert sum(isinstance(result, Conflict) for result in results) == 5
        with pytest.raises(Conflict):
            await stores[1].finish(zombie, DONE)
        await stores[2].finish(heir, DONE)


async def test_two_megabytes_of_turns_load_page_after_page(store, calls) -> None:
    text = "漢" * 33_000  # 99 KB each
    for number in range(1, 23):
        await store.finish((await store.accept(new(number, text, after=number - 1))).ticket, DONE)
    calls.clear()
    turns = (await store.load(OWNER, "my-session", limit=50)).turns
    assert [turn.seq for turn in turns] == list(range(1, 23))
    assert all(turn.user == text for turn in turns)
    assert calls["Query"] >= 3
    assert [t.seq for t in await store.page(OWNER, "my-session", limit=20)] == list(range(1, 21))
    await store.delete(OWNER, "my-session")
    assert await seqs(store) == []


async def test_a_message_that_leaves_no_room_for_an_answer_is_too_large(store) -> None:
    await store.finish((await store.accept(new(1, "a" * 256 * 1024))).ticket, Outcome("complete", "stop", "b" * 99_999))
    with pytest.raises(TooLarge, match="the message has 262146 bytes, at most 262144"):
        await store.accept(new(2, "é" * 131_073))
    assert await seqs(store) == [1]


PASSAGES = tuple(Passage(f"p{n}", "", "Title " * 9, "a.md", "Section", 5, 13, 0.25) for n in range(50))


@pytest.mark.parametrize(
    ("message", "answer", "passages", "over"),
    [
        ("a" * 262_144, "b" * 200_000, (), True),
        ("漢" * 87_000, "é" * 100_000, PASSAGES, True),
        ("Hello", "b" * 420_000, (), True),
        ("Hello", "b" * 390_000, PASSAGES, False),
        ("a" * 262_144, "b" * 146_000, (), False),
    ],
)
async def test_a_turn_too_large_for_its_item_is_stored_as_aborted_and_cut_and_the_caller_told_for_good(
    store, calls, message, answer, passages, over
) -> None:
    outcome = Outcome("complete", "stop", answer, usage=Usage(3, 2), passages=passages)
    ticket = (await store.accept(new(1, message))).ticket
    calls.clear()
    if over:
        with pytest.raises(TooLarge, match=r"more than the 409600 bytes .* stored as aborted and its answer cut"):
            await store.finish(ticket, outcome)
    else:
        await store.finish(ticket, outcome)
    assert calls == {"GetItem": 1, "TransactWriteItems": 1}
    (turn,) = await store.page(OWNER, "my-session", limit=9)
    assert (turn.user, turn.usage) == (message, Usage(3, 2))
    if not over:
        assert (turn.status, turn.assistant, len(turn.passages)) == ("complete", answer, len(passages))
        return
    assert (turn.status, turn.finish_reason, turn.passages) == ("aborted", "length", ())
    kept = len(turn.assistant.encode())
    assert answer.startswith(turn.assistant)
    assert 400 * 1024 - 1024 < len(message.encode()) + kept < 400 * 1024
    assert (await store.accept(new(1, message))).ticket.attempt == 2


async def test_an_answer_broken_off_when_it_was_too_large_already_keeps_what_fits_without_an_error(store) -> None:
    ticket = (await store.accept(new(1, "a" * 262_144))).ticket
    await store.finish(ticket, Outcome("aborted", "aborted", "b" * 200_000))
    (turn,) = await store.page(OWNER, "my-session", limit=9)
    assert (turn.status, turn.finish_reason) == ("aborted", "aborted")
    assert 140_000 < len(turn.assistant) < 147_456


async def test_numbers_come_back_as_they_were(opened) -> None:
    store = opened(clock=lambda: 1234567890.123456)
    scores = (0.1234, 1.0, 0.0, -0.5, 0.00004)
    passages = tuple(Passage(f"p{n}", "", "", "", "", n, 2**40, score) for n, score in enumerate(scores))
    ticket = (await store.accept(new())).ticket
    await store.finish(ticket, Outcome("complete", "stop", "", passages=passages))
    (turn,) = await store.load(OWNER, "my-session", limit=9)
    assert [passage.score for passage in turn.passages] == [0.1234, 1.0, 0.0, -0.5, 0.0]
    assert [type(passage.score) for passage in turn.passages] == [float] * 5
    assert (turn.created_at, turn.passages[4].end, turn.assistant) == (1234567890.123, 2**40, "")
