"""The breaker and the waits before another try, on a clock of the test's own."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from chatkit.models.upstream_breaker import FAILURES, FIRST_WAIT, MOST_WAIT, Breaker, retry_after, wait_before
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def open_breaker(clock) -> Breaker:
    breaker = Breaker(clock)
    opened = [breaker.failed(breaker.admit()) for _ in range(FAILURES)]
    assert opened == [False] * (FAILURES - 1) + [True]
    return breaker


def test_failures_that_are_not_in_a_row_leave_it_closed(clock) -> None:
    breaker = Breaker(clock)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert breaker.admit() == "yes"
            breaker.failed("yes")
        breaker.succeeded()
    assert not breaker.refuses


def test_open_it_admits_nobody_until_the_wait_is_over_and_then_one_probe(open_breaker, clock) -> None:
    assert open_breaker.admit() == "no"
    clock.now += FIRST_WAIT - 0.01
    assert open_breaker.refuses
    clock.now += 0.01
    assert not open_breaker.refuses
    assert [open_breaker.admit() for _ in range(3)] == ["probe", "no", "no"]
    open_breaker.succeeded()
    assert [open_breaker.admit() for _ in range(3)] == ["yes", "yes", "yes"]


def test_a_probe_that_fails_doubles_the_wait_up_to_the_most(open_breaker, clock) -> None:
    waits = []
    for _ in range(6):
        while open_breaker.admit() == "no":
            clock.now += 1
        assert open_breaker.failed("probe")
        before = clock.now
        while open_breaker.refuses:
            clock.now += 1
        waits.append(clock.now - before)
    assert waits == [10, 20, 40, MOST_WAIT, MOST_WAIT, MOST_WAIT]


def test_a_probe_that_is_left_makes_room_for_another(open_breaker, clock) -> None:
    clock.now += FIRST_WAIT
    assert open_breaker.admit() == "probe"
    open_breaker.left("yes")  # another's end says nothing about the probe
    assert open_breaker.admit() == "no"
    open_breaker.left("probe")
    assert open_breaker.admit() == "probe"


def test_requests_from_before_it_opened_neither_prolong_nor_end_a_probe(open_breaker, clock) -> None:
    clock.now += FIRST_WAIT / 2
    assert not open_breaker.failed("yes")
    clock.now += FIRST_WAIT / 2
    assert open_breaker.admit() == "probe"
    assert not open_breaker.failed("yes")
    assert open_breaker.refuses


def test_waits_grow_are_spread_and_are_never_less_than_what_is_asked_for() -> None:
    assert [wait_before(n, None, jitter=lambda: 0.0) for n in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert [wait_before(n, None, jitter=lambda: 1.0) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert wait_before(1, 3.0) == 3.0
    assert len({wait_before(1, None) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("2", 2.0), ("0.5", 0.5), ("soon", None), ("-1", None), ("nan", None), ("inf", None)],
)
def test_retry_after_is_read_leniently(value, seconds) -> None:
    assert retry_after(value) == seconds


def test_retry_after_may_be_a_date() -> None:
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60))) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
