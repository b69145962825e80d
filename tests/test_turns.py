"""Live turns: one task each, a log anybody may read, and an end whatever happens."""

import asyncio

import pytest

from chatkit.errors import Conflict, Unavailable
from chatkit.turns import LiveTurn, LiveTurns
from chatkit.types import Error, Reply, TextDelta

REPLY = Reply("done", "session-1", "request-1", 1, "stop")
pytestmark = pytest.mark.anyio


async def three(live):
    yield TextDelta("a")
    yield TextDelta("b")
    yield REPLY


def waiting(live):
    """A turn that goes on until it is told to stop, and then says so."""

    async def events():
        stop = asyncio.Event()
        live.stop_with(stop.set)
        yield TextDelta("a")
        await stop.wait()
        yield REPLY

    return events()


async def test_every_subscriber_sees_every_event_from_the_first() -> None:
    live = LiveTurns().start("key", three)
    first = [event async for event in live.events()]
    late = [event async for event in live.events()]
    assert first == late == [TextDelta("a"), TextDelta("b"), REPLY]
    assert await live.result() is REPLY


async def test_an_error_of_the_tree_ends_the_log_and_is_raised_from_the_result() -> None:
    async def failing(live):
        yield TextDelta("a")
        raise Conflict("taken")

    live = LiveTurns().start("key", failing)
    events = [event async for event in live.events()]
    assert isinstance(events[-1], Error)
    with pytest.raises(Conflict, match="taken"):
        await live.result()


async def test_a_defect_ends_the_log_without_its_words(caplog) -> None:
    async def broken(live):
        raise ValueError("inner secret")
        yield

    with pytest.raises(Unavailable) as caught:
        await LiveTurns().start("key", broken).result()
    assert "secret" not in str(caught.value)
    assert "inner secret" in caplog.text


async def test_a_turn_that_ends_without_a_word_still_ends_its_log() -> None:
    async def silent(live):
        return
        yield

    with pytest.raises(Unavailable, match="cancelled before it was accepted"):
        await LiveTurns().start("key", silent).result()


async def test_the_last_listener_to_leave_cancels_the_turn() -> None:
    turns = LiveTurns()
    live = turns.start("key", waiting)
    one, two = live.events(), live.events()
    assert await anext(one) == await anext(two) == TextDelta("a")
    await one.aclose()
    assert not live.cancelled
    await two.aclose()
    assert live.cancelled
    await live.ended()


async def test_a_patient_turn_runs_on_when_nobody_listens() -> None:
    live = LiveTurns().start("key", waiting, patient=True)
    listener = live.events()
    await anext(listener)
    await listener.aclose()
    assert not live.cancelled
    live.expire()
    assert await live.result() is REPLY


async def test_an_event_counts_as_sent_once_the_next_one_is_asked_for() -> None:
    live = LiveTurns().start("key", three)
    await live.ended()
    listener = live.events()
    await anext(listener)
    assert live.sent_text() == ""
    await anext(listener)
    assert live.sent_text() == "a"
    await anext(listener)
    assert live.sent_text() == "ab"
    await listener.aclose()


async def test_a_stop_that_comes_before_there_is_work_stops_it_at_once() -> None:
    live, stopped = LiveTurn(), []
    live.cancel()
    live.cancel()
    live.stop_with(lambda: stopped.append("now"))
    assert stopped == ["now"]
    late = LiveTurn()
    late.expire()
    late.stop_with(lambda: stopped.append("late"))
    assert stopped == ["now", "late"]
    assert not late.cancelled


async def test_a_running_turn_is_found_until_it_ends() -> None:
    turns = LiveTurns()
    live = turns.start("key", waiting)
    assert turns.find("key") is live
    assert len(turns) == 1
    live.expire()
    await live.result()
    await asyncio.sleep(0)
    assert turns.find("key") is None
    assert len(turns) == 0


async def test_a_repeat_of_a_cancelled_turn_is_a_turn_of_its_own_that_begins_after_it() -> None:
    turns, order = LiveTurns(), []

    def slow_to_stop(live):
        async def events():
            stop = asyncio.Event()
            live.stop_with(stop.set)
            await stop.wait()
            await asyncio.sleep(0.01)
            order.append("old ended")
            yield REPLY

        return events()

    async def again(live):
        order.append("new began")
        yield REPLY

    old = turns.start("key", slow_to_stop)
    await asyncio.sleep(0)
    old.cancel()
    assert turns.find("key") is None
    new = turns.start("key", again)
    assert turns.find("key") is new
    await new.result()
    assert order == ["old ended", "new began"]
    await asyncio.sleep(0)
    assert len(turns) == 0


async def test_drain_lets_turns_end_and_then_cancels_and_waits_for_the_rest() -> None:
    turns, stored = LiveTurns(), []

    def storing(live):
        async def events():
            stop = asyncio.Event()
            live.stop_with(stop.set)
            await stop.wait()
            await asyncio.sleep(0.01)
            stored.append("aborted")
            yield REPLY

        return events()

    quick = turns.start("quick", three, patient=True)
    long = turns.start("long", storing, patient=True)
    await turns.drain(0)
    assert not quick.cancelled or await quick.result() is REPLY
    assert long.cancelled
    assert stored == ["aborted"]


async def test_drain_of_nothing_returns_at_once() -> None:
    await asyncio.wait_for(LiveTurns().drain(60), 1)
