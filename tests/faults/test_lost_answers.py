"""Lost answers, throttling, errors and time-outs at every request of every verb: one turn, and no error for it."""

import asyncio
import time
from dataclasses import dataclass

import pytest

from chatkit.errors import StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import dynamodb, items
from chatkit.types import Owner, Usage
from tests.faults.proxy import KINDS, Fault, Faults

pytestmark = pytest.mark.anyio
OWNER = Owner()
DONE = Outcome("complete", "stop", "Hi.", usage=Usage(3, 2))
# What a call may take in all; the store's own time-out ends it there, the second is for a busy machine.
BUDGET_S = dynamodb._BUDGET_S + 1


def new(word: str, number: int, after: int = 0) -> NewTurn:
    text = f"Message {number} in {word}"
    return NewTurn(OWNER, f"{word}-session", f"{word}-request-{number}", text, len(text), after=after)


async def talk(store, word: str, turns: int) -> None:
    for number in range(1, turns + 1):
        await store.finish((await store.accept(new(word, number, number - 1))).ticket, DONE)


@dataclass
class Verb:
    """A verb of the store: what is there before, what it is given, and the (seq, attempt) that its turn has after."""

    turns: int
    pending: bool
    act: object
    place: tuple[int, int]


async def open_session(store, word, _):
    return (await store.accept(new(word, 1))).ticket


async def accept_next(store, word, _):
    return (await store.accept(new(word, 3, after=2))).ticket


async def accept_with_an_old_number(store, word, _):
    return (await store.accept(new(word, 3, after=1))).ticket


async def finish(store, word, ticket):
    await store.finish(ticket, DONE)


async def load(store, word, _):
    assert (await store.load(OWNER, f"{word}-session", limit=9)).newest == 2


async def renew(store, word, ticket):
    await store.renew(ticket)


async def repeat(store, word, _):
    found = await store.accept(new(word, 2, after=2))
    assert (found.ticket, found.repeat.seq, found.repeat.assistant) == (None, 2, "Hi.")


async def take_over(store, word, _):
    return (await store.accept(new(word, 1, after=1))).ticket


VERBS = {
    "open": Verb(0, False, open_session, (1, 1)),
    "accept": Verb(2, False, accept_next, (3, 1)),
    "stale": Verb(2, False, accept_with_an_old_number, (3, 1)),
    "finish": Verb(0, True, finish, (1, 1)),
    "load": Verb(2, False, load, (2, 1)),
    "renew": Verb(0, True, renew, (1, 1)),
    "repeat": Verb(2, False, repeat, (2, 1)),
    "takeover": Verb(0, True, take_over, (1, 2)),
}


class Case:
    """One verb in a session of its own: `prepare`, `act`, and `check` what is stored."""

    def __init__(self, name: str, word: str, beside, clock) -> None:
        self.verb, self.name, self.word = VERBS[name], name, word
        self._beside, self._clock = beside, clock
        self._ticket = None

    async def prepare(self) -> None:
        await talk(self._beside, self.word, self.verb.turns)
        if self.verb.pending:
            self._ticket = (await self._beside.accept(new(self.word, 1))).ticket

    async def act(self, store) -> float:
        """Do it, and return how long that took."""
        started = time.monotonic()
        given = await self.verb.act(store, self.word, self._ticket)
        spent = time.monotonic() - started
        self._ticket = given or self._ticket
        return spent

    async def check(self) -> None:
        """End what is pending and find every turn once, in order, under its one request."""
        seq, attempt = self.verb.place
        count = max(self.verb.turns, seq)
        if self._ticket is not None:
            assert (self._ticket.seq, self._ticket.attempt) == (seq, attempt), self.word
            if self.name != "finish":
                await self._beside.finish(self._ticket, DONE)
        turns = await self._beside.page(OWNER, f"{self.word}-session", limit=99)
        expected = [(n, f"{self.word}-request-{n}", attempt if n == seq else 1) for n in range(1, count + 1)]
        assert [(t.seq, t.request_id, t.attempt) for t in turns] == expected, self.word
        assert {(t.status, t.assistant) for t in turns} == {("complete", "Hi.")}, self.word


async def requests_of(store, proxy, beside, clock) -> dict[str, list[str]]:
    """Return the operations that each verb sends when nothing goes wrong."""
    proxy.faults = Faults()
    cases = {name: Case(name, f"clean-{name}", beside, clock) for name in VERBS}
    for case in cases.values():
        await case.prepare()
    clock.now += items.LEASE_S + 1
    for case in cases.values():
        await case.act(store)
    clock.now -= items.LEASE_S + 1
    for case in cases.values():
        await case.check()
    return {name: proxy.faults.operations(case.word) for name, case in cases.items()}


async def struck(kind, *, forwarded, times, store, proxy, beside, clock) -> list[tuple[Case, int, list[str]]]:
    """Let a fault strike at each request of each verb in turn, all of them side by side, and check every end.

    Returns:
        Each case with the number of requests that it takes undisturbed, and those that it took.
    """
    clean = await requests_of(store, proxy, beside, clock)
    cases = [
        (Case(name, f"{kind}-{name}-{at}-", beside, clock), at, len(sent))
        for name, sent in clean.items()
        for at in range(1, len(sent) + 1)
    ]
    for case, _, _ in cases:
        await case.prepare()
    faults = (Fault(kind, forwarded, word=case.word, at=at, times=times) for case, at, _ in cases)
    proxy.faults = Faults(*faults)
    clock.now += items.LEASE_S + 1
    spent = await asyncio.gather(*(case.act(store) for case, _, _ in cases))
    clock.now -= items.LEASE_S + 1
    assert max(spent) < BUDGET_S
    assert proxy.faults.struck == times * len(cases)
    for case, _, _ in cases:
        await case.check()
    return [(case, count, proxy.faults.operations(case.word)) for case, _, count in cases]


def check_counts(results: list[tuple[Case, int, list[str]]], more: int) -> None:
    """Check that each case took so many requests more than undisturbed; a busy machine makes a few time out beside."""
    for case, count, sent in results:
        assert len(sent) >= count + more, f"{case.word} sent {sent}"
    beyond = [sent for _, count, sent in results if len(sent) > count + more]
    assert 4 * len(beyond) <= len(results), beyond


async def test_the_verbs_send_what_the_table_of_costs_says(store, proxy, beside, clock) -> None:
    sent = await requests_of(store, proxy, beside, clock)
    assert sent["open"] == sent["accept"] == sent["finish"] == ["TransactWriteItems"]
    assert sent["load"] == ["Query"]
    assert sent["renew"] == ["UpdateItem"]
    assert sent["stale"] == ["TransactWriteItems"] * 2
    assert sent["repeat"] == ["TransactWriteItems", "GetItem", "GetItem"]
    assert sent["takeover"] == ["TransactWriteItems", "GetItem", "GetItem", "TransactWriteItems"]


@pytest.mark.parametrize("forwarded", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
async def test_one_fault_at_any_request_of_any_verb_leaves_one_turn_and_no_error(
    kind, forwarded, store, proxy, beside, clock
) -> None:
    results = await struck(kind, forwarded=forwarded, times=1, store=store, proxy=proxy, beside=beside, clock=clock)
    assert len(results) >= len(VERBS) + 4
    check_counts(results, 0 if kind == "delay" else 1)


@pytest.mark.parametrize(("kind", "forwarded"), [("drop", True), ("error", True), ("error", False), ("throttle", True)])
async def test_two_faults_in_a_row_are_survived_by_the_sdks_own_sending_again(
    kind, forwarded, store, proxy, beside, clock
) -> None:
    results = await struck(kind, forwarded=forwarded, times=2, store=store, proxy=proxy, beside=beside, clock=clock)
    check_counts(results, 2)


@pytest.mark.parametrize(("kind", "forwarded"), [("drop", True), ("drop", False), ("error", True), ("error", False)])
async def test_as_many_faults_in_a_row_as_the_sdk_sends_are_survived_by_the_stores_own_sending_again(
    kind, forwarded, store, proxy, beside, clock
) -> None:
    results = await struck(kind, forwarded=forwarded, times=3, store=store, proxy=proxy, beside=beside, clock=clock)
    check_counts(results, 3)


@pytest.mark.parametrize("forwarded", [False, True], ids=["before", "after"])
async def test_throttling_beyond_the_sdks_tries_is_survived_within_the_stores_own(
    forwarded, store, proxy, beside, clock
) -> None:
    results = await struck(
        "throttle", forwarded=forwarded, times=4, store=store, proxy=proxy, beside=beside, clock=clock
    )
    check_counts(results, 4)


@pytest.mark.parametrize(
    ("kind", "forwarded"),
    [("drop", False), ("drop", True), ("hang", False), ("hang", True), ("error", True), ("throttle", False)],
)
async def test_a_fault_without_end_is_store_failed_within_the_budget_and_sending_again_later_leaves_one_turn(
    kind, forwarded, store, proxy, beside, clock
) -> None:
    cases = [Case(name, f"broken-{name}-", beside, clock) for name in VERBS if name != "takeover"]
    for case in cases:
        await case.prepare()
    proxy.faults = Faults(Fault(kind, forwarded, times=10**6))
    started = time.monotonic()
    ends = await asyncio.gather(*(case.act(store) for case in cases), return_exceptions=True)
    assert time.monotonic() - started < BUDGET_S
    assert [type(end) for end in ends] == [StoreFailed] * len(cases)
    assert {end.retry_after for end in ends} == {5}
    proxy.faults = Faults()
    clock.now += items.LEASE_S + 1  # what was accepted, and not acknowledged, is taken over
    for case in cases:
        number = case.verb.place[0]
        accepted = await store.accept(new(case.word, number, after=case.verb.turns))
        if accepted.ticket is not None:
            await store.finish(accepted.ticket, DONE)
        turns = await beside.page(OWNER, f"{case.word}-session", limit=9)
        assert [(t.seq, t.request_id) for t in turns] == [
            (n, f"{case.word}-request-{n}") for n in range(1, max(number, case.verb.turns) + 1)
        ]
        assert {t.status for t in turns} == {"complete"}
