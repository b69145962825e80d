"""Admission: what fits the cache starts, sessions take turns, a flood shuts nobody out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkit.errors import Overloaded, TooLarge
from chatkit.models.admission import Admission


def test_one_starts_when_its_whole_need_fits_what_is_left() -> None:
    admission = Admission(most_running=8, most_waiting=8, tokens=320)
    for number in range(3):
        assert admission.ask(number, tokens=150) is None
    assert admission.admit() == [0, 1]  # 160 tokens each, in blocks of 32
    assert admission.admit() == []
    admission.leave(0)
    assert admission.admit() == [2]


def test_nobody_overtakes_a_large_one() -> None:
    admission = Admission(most_running=8, most_waiting=8, tokens=320)
    for number, tokens in enumerate([200, 300, 32, 32]):
        admission.ask(number, tokens=tokens)
    assert admission.admit() == [0]
    admission.leave(0)
    assert admission.admit() == [1]
    admission.leave(1)
    assert admission.admit() == [2, 3]


@pytest.mark.parametrize("tokens", [321, 10_000])
def test_one_that_can_never_fit_is_refused_at_once_with_the_setting(tokens) -> None:
    admission = Admission(most_running=8, tokens=320)
    with pytest.raises(TooLarge, match=rf"may take {tokens} tokens, .* holds 320; raise kv_cache_gb") as caught:
        admission.ask(1, tokens=tokens)
    assert "\n" not in str(caught.value)
    assert admission.ask(2, tokens=320) is None
    assert admission.admit() == [2]


def test_sessions_take_turns_whatever_each_has_asked_for() -> None:
    admission = Admission(most_running=1, most_waiting=100)
    flood = range(50)
    for number in flood:
        admission.ask(number, session="flood")
    admission.ask(100, session="a")
    admission.ask(101, session="b")
    admission.ask(102, session="a")
    order = []
    while started := admission.admit():
        order += started
        admission.leave(started[0])
    assert order[:6] == [0, 100, 101, 1, 102, 2]
    assert len(order) == 53


def test_requests_without_a_session_come_first_come_first_served() -> None:
    admission = Admission(most_running=1, most_waiting=10)
    for number in range(5):
        admission.ask(number)
    order = []
    while started := admission.admit():
        order += started
        admission.leave(started[0])
    assert order == [0, 1, 2, 3, 4]


def test_a_full_queue_refuses_and_names_how_many_there_are() -> None:
    admission = Admission(most_running=2, most_waiting=3)
    for number in range(5):
        assert admission.ask(number) is None
    admission.admit()
    with pytest.raises(Overloaded, match="5 generations are running or waiting"):
        admission.ask(5)
    admission.leave(0)
    assert admission.ask(6) is None


def test_a_flood_gives_up_its_newest_for_another_session_and_not_for_itself() -> None:
    admission = Admission(most_running=1, most_waiting=4)
    for number in range(5):
        admission.ask(number, session="flood")
        admission.admit()
    with pytest.raises(Overloaded):
        admission.ask(5, session="flood")
    assert admission.ask(6, session="a") == 4
    assert admission.ask(7, session="b") == 3
    with pytest.raises(Overloaded):  # the flood has two left: with one more gone it would have fewer than "a"
        admission.ask(8, session="a")
    admission.leave(0)
    assert admission.admit() == [1]


def test_one_that_leaves_while_it_waits_is_never_started() -> None:
    admission = Admission(most_running=1, most_waiting=5)
    for number in range(3):
        admission.ask(number, session="s")
    assert admission.admit() == [0]
    admission.leave(1)
    admission.leave(99)
    admission.leave(0)
    assert admission.admit() == [2]
    admission.clear()
    assert admission.admit() == []


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "leave"]), st.sampled_from(["", "a", "b"]), st.integers(1, 400)), max_size=60
    )
)
def test_the_cache_and_the_bounds_hold_whatever_comes(steps) -> None:
    admission = Admission(most_running=3, most_waiting=4, tokens=512)
    running: dict[int, int] = {}
    waiting: set[int] = set()
    for number, (what, session, tokens) in enumerate(steps):
        if what == "ask":
            try:
                gone = admission.ask(number, session=session, tokens=tokens)
            except Overloaded:
                assert len(running) + len(waiting) == 7
            else:
                waiting = (waiting | {number}) - {gone}
        elif running:
            left = min(running)
            admission.leave(left)
            del running[left]
        for started in admission.admit():
            waiting.remove(started)
            running[started] = -(-steps[started][2] // 32) * 32
        assert len(running) <= 3
        assert sum(running.values()) <= 512
        assert len(running) + len(waiting) <= 7
        assert running or not waiting
