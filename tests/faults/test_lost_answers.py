"""Lost answers, throttling, errors and time-outs at every request of every verb: one turn, and no error for it."""

import asyncio

import pytest

from chatkit.sessions import items
from tests.faults.proxy import KINDS, Fault, Faults
from tests.faults.verbs import BUDGET_S, SENT, VERBS, Case

pytestmark = pytest.mark.anyio


# The SDK's read time-out: a request that takes longer, on a busy machine, is sent again whatever strikes it.
SLOW_S = 2.0


async def struck(kind, *, forwarded, times, store, proxy, beside, clock) -> list[tuple[Case, int, list[str], float]]:
    """Let a fault strike at each request of each verb in turn, all of them side by side, and check every end.

    Returns:
        Each case with the number of requests that it takes undisturbed, those that it took, and its seconds.
    """
    cases = [
        (Case(name, f"{kind}-{name}-{at}-", beside), at, len(sent))
        for name, sent in SENT.items()
        for at in range(1, len(sent) + 1)
    ]
    await asyncio.gather(*(case.prepare() for case, _, _ in cases))
    faults = (Fault(kind, forwarded, word=case.word, at=at, times=times) for case, at, _ in cases)
    proxy.faults = Faults(*faults)
    clock.now += items.LEASE_S + 1
    spent = await asyncio.gather(*(case.act(store) for case, _, _ in cases))
    clock.now -= items.LEASE_S + 1
    assert max(spent) < BUDGET_S
    assert proxy.faults.struck == times * len(cases)
    await asyncio.gather(*(case.check() for case, _, _ in cases))
    sent = (proxy.faults.operations(case.word) for case, _, _ in cases)
    return [(case, count, each, took) for (case, _, count), each, took in zip(cases, sent, spent, strict=True)]


def check_counts(results: list[tuple[Case, int, list[str], float]], more: int) -> None:
    """Check that each case took so many requests more than undisturbed, a slow one perhaps others beside."""
    for case, count, sent, took in results:
        assert len(sent) >= count + more, f"{case.word} sent {sent}"
        assert len(sent) == count + more or took > SLOW_S, f"{case.word} sent {sent} in {took:.2f} s"


async def test_the_verbs_send_what_the_table_of_costs_says(store, proxy, beside, clock) -> None:
    cases = {name: Case(name, f"clean-{name}", beside) for name in VERBS}
    await asyncio.gather(*(case.prepare() for case in cases.values()))
    clock.now += items.LEASE_S + 1
    await asyncio.gather(*(case.act(store) for case in cases.values()))
    clock.now -= items.LEASE_S + 1
    await asyncio.gather(*(case.check() for case in cases.values()))
    assert {name: proxy.faults.operations(case.word) for name, case in cases.items()} == SENT


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
