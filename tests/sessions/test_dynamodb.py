"""The DynamoDB store over the wire: its calls, lost answers, throttling, many writers, and what is missing."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from chatkit import wiring
from chatkit.errors import ConfigError, Conflict, MissingExtra, NotFound, StoreFailed, TooLarge
from chatkit.protocols import NewTurn, Outcome, Ticket
from chatkit.sessions import items
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.table import Table
from chatkit.settings import load_settings
from chatkit.types import Owner, Passage, Usage
from tests import ministack
from tests.faults.proxy import Proxy, operation_of, refusal

pytestmark = pytest.mark.anyio
OWNER = Owner()
DONE = Outcome("complete", "stop", "Hi.", usage=Usage(3, 2))


@pytest.fixture
def table(dynamodb) -> str:
    return ministack.new_table(dynamodb)


@pytest.fixture
def store(dynamodb, table):
    opened = DynamoDBStore(table, endpoint=dynamodb)
    yield opened
    opened.close()


@pytest.fixture
def calls(store) -> Counter:
    """Count the requests that leave for the server, re-sent ones too."""
    sent: Counter = Counter()
    store._table.client.meta.events.register(
        "before-send.dynamodb.*", lambda request, **_: sent.update([operation_of(request.headers)])
    )
    return sent


@pytest.fixture
def proxy(dynamodb):
    made = Proxy(dynamodb)
    yield made
    made.close()


@pytest.fixture
def proxied(proxy, table):
    opened = DynamoDBStore(table, endpoint=proxy.address)
    yield opened
    opened.close()


def new(number=1, text="Hello", session_id="my-session", after=0, **more) -> NewTurn:
    return NewTurn(OWNER, session_id, f"request-{number}", text, len(text), after=after, **more)


def python(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True)


async def seqs(store, session_id="my-session") -> list[int]:
    return [turn.seq for turn in await store.load(OWNER, session_id, limit=999)]


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


async def test_no_message_answer_or_key_is_logged_at_any_level(store, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore").setLevel(logging.NOTSET)
    other = DynamoDBStore(store._table.name, endpoint=store._table._endpoint)
    try:
        ticket = (await other.accept(new(text="zq75xkanary", session_id="zq76xkanary"))).ticket
        await other.finish(ticket, Outcome("complete", "stop", "zq77xkanary"))
        with pytest.raises(Conflict):
            await other.finish(ticket, DONE)
    finally:
        other.close()
    for canary in ("zq75x", "zq76x", "zq77x"):
        assert canary not in caplog.text


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


async def test_an_expired_turn_is_taken_over_by_exactly_one(dynamodb, table) -> None:
    now = [1000.0]
    stores = [DynamoDBStore(table, endpoint=dynamodb, clock=lambda: now[0]) for _ in range(3)]
    try:
        for number in range(1, 6):
            zombie = (await stores[0].accept(new(number, after=number - 1))).ticket
            now[0] += items.LEASE_S + 1
            tries = (store.accept(new(number, after=number)) for store in stores for _ in range(2))
            results = await asyncio.gather(*tries, return_exceptions=True)
            (heir,) = [result.ticket for result in results if not isinstance(result, Exception)]
            assert (heir.seq, heir.attempt) == (number, 2)
            assert sum(isinstance(result, Conflict) for result in results) == 5
            with pytest.raises(Conflict):
                await stores[1].finish(zombie, DONE)
            await stores[2].finish(heir, DONE)
    finally:
        for store in stores:
            store.close()


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


async def test_numbers_come_back_as_they_were(dynamodb, table) -> None:
    store = DynamoDBStore(table, endpoint=dynamodb, clock=lambda: 1234567890.123456)
    try:
        scores = (0.1234, 1.0, 0.0, -0.5, 0.00004)
        passages = tuple(Passage(f"p{n}", "", "", "", "", n, 2**40, score) for n, score in enumerate(scores))
        ticket = (await store.accept(new())).ticket
        await store.finish(ticket, Outcome("complete", "stop", "", passages=passages))
        (turn,) = await store.load(OWNER, "my-session", limit=9)
    finally:
        store.close()
    assert [passage.score for passage in turn.passages] == [0.1234, 1.0, 0.0, -0.5, 0.0]
    assert [type(passage.score) for passage in turn.passages] == [float] * 5
    assert (turn.created_at, turn.passages[4].end, turn.assistant) == (1234567890.123, 2**40, "")


@pytest.mark.parametrize("removals", [1, 4])
async def test_a_removal_that_broke_off_shows_nothing_and_is_ended_by_running_it_again(
    store, proxy, proxied, removals
) -> None:
    tickets = [(await store.accept(new(number, after=number - 1))).ticket for number in range(1, 31)]
    await store.finish(tickets[0], DONE)
    seen = Counter()

    def break_off(operation, forward):
        seen[operation] += 1
        return refusal("ValidationException") if seen["BatchWriteItem"] > removals else forward()

    proxy.meddle = break_off
    with pytest.raises(StoreFailed):
        await proxied.delete(OWNER, "my-session")
    assert "T#0000000001" in ministack.everything_in(store._table._endpoint, store._table.name)
    assert await seqs(store) == []
    for call, error, said in (
        (store.page(OWNER, "my-session", limit=9), NotFound, "my-session"),
        (store.accept(new(31, after=30)), NotFound, "my-session"),
        (store.accept(new("fresh")), Conflict, "remove it again"),
        (store.accept(new(1)), *((NotFound, "any more") if removals == 1 else (Conflict, "remove it again"))),
        (store.finish(tickets[1], DONE), Conflict, "no longer attempt"),
    ):
        with pytest.raises(error, match=said):
            await call
    await store.delete(OWNER, "my-session")
    assert "my-session" not in ministack.everything_in(store._table._endpoint, store._table.name)
    assert (await store.accept(new("fresh"))).ticket.seq == 1


async def test_what_the_server_leaves_undone_of_a_batch_is_asked_for_again(proxy, proxied) -> None:
    for number in range(1, 5):
        for name in ("session-a", "session-b", "session-c"):
            await proxied.accept(NewTurn(OWNER, name, f"{name}-{number}", "q", 1, after=number - 1))
    seen = Counter()

    def leave_some(operation, forward):
        seen[operation] += 1
        if operation in ("BatchWriteItem", "BatchGetItem") and seen[operation] == 1:
            kept = "UnprocessedItems" if operation == "BatchWriteItem" else "UnprocessedKeys"
            key = {"pk": {"S": items.session_key(OWNER, "session-a")}, "sk": {"S": items.META}}
            entry = [{"DeleteRequest": {"Key": key}}] if kept == "UnprocessedItems" else {"Keys": [key]}
            return 200, json.dumps({"Responses": {}, kept: {proxied._table.name: entry}}).encode()
        return forward()

    proxy.meddle = leave_some
    heads = (await proxied.sessions(OWNER, limit=9)).sessions
    assert [head.session_id for head in heads] == ["session-a"]
    await proxied.delete(OWNER, "session-a")
    assert "session-a" not in ministack.everything_in(proxy.address, proxied._table.name)


async def test_a_table_that_is_not_there_is_named_with_the_command_that_makes_it_to_the_operator_alone(
    dynamodb, table, store, caplog
) -> None:
    with pytest.raises(ConfigError) as caught:
        DynamoDBStore("no-such-table", endpoint=dynamodb)
    command = f"chatkit sessions create-table --dynamodb-table no-such-table --dynamodb-endpoint {dynamodb}"
    assert str(caught.value) == f"the DynamoDB table 'no-such-table' does not exist; run: {command}"
    store._table.client.delete_table(TableName=table)
    caplog.clear()
    with pytest.raises(StoreFailed) as failed:
        await store.accept(new())
    assert str(failed.value) == "the session store is not set up; the operator's log says why"
    (record,) = caplog.records
    assert record.getMessage() == str(caught.value).replace("no-such-table", table)


async def test_a_table_is_made_once_by_however_many_and_has_the_keys_it_needs(dynamodb) -> None:
    tables = [Table("raced-for", endpoint=dynamodb) for _ in range(4)]
    try:
        created = await asyncio.gather(*(asyncio.to_thread(table.create) for table in tables))
        assert sorted(created) == [False, False, False, True]
        made = tables[0].client.describe_table(TableName="raced-for")["Table"]
        assert made["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        assert [key["AttributeName"] for key in made["KeySchema"]] == ["pk", "sk"]
        (index,) = made["GlobalSecondaryIndexes"]
        assert (index["IndexName"], index["Projection"]) == ("by-owner", {"ProjectionType": "KEYS_ONLY"})
    finally:
        for table in tables:
            table.close()


async def test_a_table_with_other_keys_is_refused(dynamodb) -> None:
    other = Table("other-keys", endpoint=dynamodb)
    try:
        other.client.create_table(
            TableName="other-keys",
            AttributeDefinitions=[{"AttributeName": "SessionId", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "SessionId", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for refused in (other.create, other.check):
            with pytest.raises(ConfigError, match="'other-keys' has other keys than sessions need"):
                refused()
    finally:
        other.close()


async def test_what_is_missing_of_the_aws_settings_is_said_in_one_line(dynamodb, table, monkeypatch) -> None:
    settings = load_settings({"store": "dynamodb", "dynamodb_table": table, "dynamodb_endpoint": dynamodb})
    with monkeypatch.context() as patch:
        patch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(ConfigError, match=r"no AWS region is set .* set CHATKIT_DYNAMODB_REGION"):
            wiring.open_store(settings)
        patch.setenv("AWS_REGION", "eu-central-1")
        wiring.open_store(settings).close()
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ConfigError, match=r"no AWS credentials were found .* set AWS_PROFILE, or"):
            wiring.open_store(settings)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(ConfigError, match="ProfileNotFound"):
            wiring.open_store(settings)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "boto3", None)
        with pytest.raises(MissingExtra, match=r"pip install 'chatkit\[aws\]'"):
            wiring.open_store(settings)


async def test_a_refused_permission_and_a_dead_server_are_named_when_the_store_is_opened(
    proxy, table, dynamodb
) -> None:
    proxy.meddle = lambda *_: refusal("AccessDeniedException")
    with pytest.raises(ConfigError, match=r"AWS refused .*AccessDeniedException.*docs/sessions\.md"):
        DynamoDBStore(table, endpoint=proxy.address)
    with pytest.raises(StoreFailed, match=r"at http://127\.0\.0\.1:9 is out of reach: .*check dynamodb_region"):
        DynamoDBStore(table, endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreFailed, match=r"at http://127\.0\.0\.1:9 is out of reach: .*check dynamodb_region"):
        wiring.create_table(load_settings({"dynamodb_endpoint": "http://127.0.0.1:9"}))
