"""The DynamoDB store when answers are lost, throttled or never come, and what of that is logged."""

import logging
import threading
import time
from collections import Counter

import pytest
from botocore import exceptions

from chatkit.errors import Conflict, StoreFailed
from chatkit.protocols import Outcome, Ticket
from chatkit.sessions.budget import Budget
from chatkit.types import Passage, Usage
from tests.faults.proxy import refusal
from tests.sessions.dynamodb.parts import DONE, OWNER, new, seqs

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("operation", ["TransactWriteItems", "UpdateItem", "Query"])
async def test_an_answer_that_is_lost_on_the_way_leaves_one_turn_and_no_error(proxy, proxied, operation) -> None:
    lost = Counter()

    def lose_the_first(called, forward):
        answer = forward()
        lost[called] += called == operation
        return None if called == operation and lost[called] % 2 else answer

    proxy.meddle = lose_the_first
    for number in (1, 2):
        ticket = (await proxied.accept(new(number, after=number - 1))).ticket
        assert (ticket.seq, ticket.attempt) == (number, 1)
        await proxied.renew(ticket)
        await proxied.finish(ticket, DONE)
        assert len(await proxied.load(OWNER, "my-session", limit=9)) == number
    assert lost[operation] >= 2
    turns = await proxied.page(OWNER, "my-session", limit=9)
    assert [(t.seq, t.attempt, t.status, t.assistant) for t in turns] == [(n, 1, "complete", "Hi.") for n in (1, 2)]


async def test_a_finish_that_finds_its_own_writing_is_done_and_any_other_is_a_conflict(store) -> None:
    passage = Passage("p1", "text", "Title", "a.md", "Section", 5, 13, 1.0)
    outcome = Outcome("complete", "stop", "Hi.", usage=Usage(3, 2), passages=(passage,))
    ticket = (await store.accept(new())).ticket
    for _ in range(2):
        await store.finish(ticket, outcome)
    other = Ticket(OWNER, "my-session", 1, "request-1", 2)
    for late, ending in ((ticket, DONE), (ticket, Outcome("aborted", "aborted", "Hi.")), (other, outcome)):
        with pytest.raises(Conflict, match="no longer attempt"):
            await store.finish(late, ending)


@pytest.mark.parametrize(
    "reasons",
    [["TransactionConflict", "None", "None"], ["None", "None", "ThrottlingError"], ["ProvisionedThroughputExceeded"]],
)
async def test_what_passes_by_itself_is_tried_again(proxy, proxied, reasons) -> None:
    seen = Counter()

    def refuse_twice(operation, forward):
        seen[operation] += 1
        if operation == "TransactWriteItems" and seen[operation] % 3:
            rows = [{"Code": code, "Message": None} for code in reasons]
            return refusal("TransactionCanceledException", CancellationReasons=rows)
        return forward()

    proxy.meddle = refuse_twice
    await proxied.finish((await proxied.accept(new())).ticket, DONE)
    assert seen["TransactWriteItems"] == 6
    assert await seqs(proxied) == [1]


async def test_a_transaction_that_is_still_on_its_way_is_asked_about_and_not_sent_anew(proxy, proxied) -> None:
    seen = Counter()

    def keep_waiting(operation, forward):
        seen[operation] += 1
        if operation != "TransactWriteItems" or seen[operation] > 4:
            return forward()
        if seen[operation] == 1:
            forward()
        return refusal("TransactionInProgressException")

    proxy.meddle = keep_waiting
    ticket = (await proxied.accept(new())).ticket
    assert (ticket.seq, ticket.attempt, seen["TransactWriteItems"]) == (1, 1, 5)
    assert await seqs(proxied) == [1]


async def test_throttling_without_end_is_store_failed_within_the_budget(proxy, proxied, caplog) -> None:
    proxy.meddle = lambda operation, forward: refusal("ProvisionedThroughputExceededException")
    started = time.monotonic()
    with pytest.raises(StoreFailed, match="send the request again later") as caught:
        await proxied.accept(new())
    assert caught.value.retry_after == 5
    (record,) = caplog.records
    assert str(caught.value) not in record.getMessage()
    assert f"DynamoDB table {proxied._table.name}: a call " in record.getMessage()
    assert time.monotonic() - started < 10  # 5 s on a machine that is not busy


@pytest.mark.parametrize("silent", ["refuses", "hangs", "cuts"])
async def test_a_server_that_does_not_answer_is_store_failed_within_the_budget(proxy, proxied, silent, caplog) -> None:
    ending = threading.Event()
    proxy.meddle = lambda operation, forward: ending.wait(20 if silent == "hangs" else 0) and None
    if silent == "refuses":
        proxy._server.server_close()
    started = time.monotonic()
    try:
        with pytest.raises(StoreFailed, match="the session store did not answer") as caught:
            await proxied.accept(new())
        (record,) = [record for record in caplog.records if record.name.startswith("chatkit")]
        assert str(caught.value) not in record.getMessage()
        assert proxied._table.name in record.getMessage()
        assert time.monotonic() - started < 10  # 5 s on a machine that is not busy
    finally:
        ending.set()


async def test_a_reason_that_does_not_pass_is_store_failed_with_awss_words_in_the_log_alone(
    proxy, proxied, caplog
) -> None:
    reasons = [{"Code": "ValidationError", "Message": "Item size to update has exceeded"}, {"Code": "None"}]
    proxy.meddle = lambda *_: refusal("TransactionCanceledException", CancellationReasons=reasons)
    with pytest.raises(StoreFailed) as caught:
        await proxied.accept(new(text="zq74xkanary"))
    assert "exceeded" not in str(caught.value)
    (record,) = caplog.records
    assert "ValidationError: Item size to update has exceeded" in record.getMessage()


async def test_no_message_answer_or_key_is_logged_at_any_level(opened, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore").setLevel(logging.NOTSET)
    other = opened()
    ticket = (await other.accept(new(text="zq75xkanary", session_id="zq76xkanary"))).ticket
    await other.finish(ticket, Outcome("complete", "stop", "zq77xkanary"))
    with pytest.raises(Conflict):
        await other.finish(ticket, DONE)
    for canary in ("zq75x", "zq76x", "zq77x"):
        assert canary not in caplog.text


def test_a_write_that_was_applied_before_nobody_took_the_connection_is_asked_for_again(store, monkeypatch) -> None:
    """The first of the SDK's tries was applied and its answer lost; the server is not there for the others."""
    table, client = store._table, store._table.client
    for operation, error in (("put_item", "EndpointConnectionError"), ("transact_write_items", "ConnectTimeoutError")):
        send, sent = getattr(client, operation), []

        def lost(send=send, sent=sent, error=error, **parameters):
            sent.append(send(**parameters))
            if len(sent) == 1:
                raise getattr(exceptions, error)(endpoint_url="http://there")
            return sent[-1]

        monkeypatch.setattr(client, operation, lost)
        if operation == "put_item":
            table.write(Budget(5), "partition", operation, {"text": "one"})
        else:
            absent = table.put("partition", operation, {"text": "one"}, "attribute_not_exists(#pk)")
            assert table.transact(Budget(5), [absent]) == {}
        assert len(sent) == 2
        assert table.get(Budget(5), "partition", operation)["text"] == "one"
