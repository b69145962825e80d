"""A store that answers no more: 503 within the budget, and one turn when the request is sent again later."""

import asyncio
import time

import pytest

from chatkit.errors import StoreFailed
from chatkit.sessions import items
from tests.faults.proxy import Fault, Faults
from tests.faults.verbs import BUDGET_S, DONE, OWNER, VERBS, Case, new

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("kind", "forwarded"),
    [("drop", False), ("drop", True), ("hang", False), ("hang", True), ("error", True), ("throttle", False)],
)
async def test_a_fault_without_end_is_store_failed_within_the_budget_and_sending_again_later_leaves_one_turn(
    kind, forwarded, store, proxy, beside, clock
) -> None:
    cases = [Case(name, f"broken-{name}-", beside) for name in VERBS if name != "takeover"]
    await asyncio.gather(*(case.prepare() for case in cases))
    proxy.faults = Faults(Fault(kind, forwarded, times=10**6))
    started = time.monotonic()
    ends = await asyncio.gather(*(case.act(store) for case in cases), return_exceptions=True)
    assert time.monotonic() - started < BUDGET_S
    assert [type(end) for end in ends] == [StoreFailed] * len(cases)
    assert {end.retry_after for end in ends} == {5}
    await asyncio.to_thread(store.close)  # what was given up goes on to its next step, and may still be stored
    clock.now += items.LEASE_S + 1  # what was accepted, and not acknowledged, is taken over
    for case in cases:
        number = case.verb.place[0]
        accepted = await beside.accept(new(case.word, number, after=case.verb.turns))
        if accepted.ticket is not None:
            await beside.finish(accepted.ticket, DONE)
        turns = await beside.page(OWNER, f"{case.word}-session", limit=9)
        assert [(t.seq, t.request_id) for t in turns] == [
            (n, f"{case.word}-request-{n}") for n in range(1, max(number, case.verb.turns) + 1)
        ]
        assert {t.status for t in turns} == {"complete"}
