"""Live turns: each has one task that drives it to its end and one append-only log of events that anybody may read.

A consumer subscribes to the log and may leave; the turn belongs to the task. Cancelling is a message to it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable

from chatkit.errors import ChatkitError, Unavailable
from chatkit.types import Error, Event, Reply, TextDelta

log = logging.getLogger(__name__)

# A cancelled turn has this long to stop its model and store what was sent. Seconds.
_STORE_GRACE = 5.0


class LiveTurn:
    """One turn while it runs.

    Attributes:
        cancelled: somebody asked the turn to stop.
        expired: its deadline has passed.
        patient: nobody listening is no reason to stop.
        what: what the turn was started for, to be compared by whoever would join it.
    """

    def __init__(self, *, what: Hashable = None, patient: bool = False) -> None:
        self.what = what
        self.cancelled = False
        self.expired = False
        self.patient = patient
        self._events: list[Event] = []
        self._ended = False
        self._changed = asyncio.Event()
        self._delivered = 0
        self._listeners = 0
        self._stop: Callable[[], None] | None = None

    async def events(self, *, shown: bool = True) -> AsyncGenerator[Event, None]:
        """Yield every event from the first; one that is shown counts as delivered once the next one is asked for."""
        self._listeners += 1
        try:
            at = 0
            while True:
                while at < len(self._events):
                    yield self._events[at]
                    at += 1
                    self._delivered = max(self._delivered, at if shown else 0)
                if self._ended:
                    return
                await self._changed.wait()
        finally:
            self._listeners -= 1
            if not self._listeners and not self._ended and not self.patient:
                self.cancel()

    async def result(self) -> Reply:
        """Wait for the end and return the reply, or raise the error that ended the turn."""
        last: Event | None = None
        async for event in self.events(shown=False):
            last = event
        if isinstance(last, Reply):
            return last
        if isinstance(last, Error):
            raise last.error
        raise AssertionError("a turn ends with Reply or Error")

    @property
    def open(self) -> bool:
        """Whether somebody who joins now will see an answer: the turn neither ended nor was cancelled."""
        return not self._ended and not self.cancelled

    async def ended(self) -> None:
        """Wait for the end without listening."""
        while not self._ended:
            await self._changed.wait()

    def cancel(self) -> None:
        """Ask the turn to stop: it ends aborted, with what was sent. Harmless after the end, and twice."""
        self.cancelled = True
        if self._stop:
            self._stop()

    def expire(self) -> None:
        """Ask the turn to end with the text it has."""
        self.expired = True
        if self._stop:
            self._stop()

    def stop_with(self, stop: Callable[[], None]) -> None:
        """Name what ends the turn's current work; called at once when the message has come already."""
        self._stop = stop
        if self.cancelled or self.expired:
            stop()

    @property
    def first(self) -> Event | None:
        """The first event so far."""
        return self._events[0] if self._events else None

    @property
    def last(self) -> Event | None:
        """The newest event: of a turn that has ended, Reply or Error."""
        return self._events[-1] if self._events else None

    def sent_text(self) -> str:
        """Return the text that a consumer has taken: what was sent, when the only one has left."""
        return "".join(e.text for e in self._events[: self._delivered] if isinstance(e, TextDelta))

    async def drive(self, events: AsyncIterator[Event]) -> None:
        """Append the turn's events until it ends; whatever happens, the log ends with Reply or Error."""
        try:
            async for event in events:
                self._append(event)
        except ChatkitError as error:
            self._append(Error(error))
        except Exception:  # a defect must not leave consumers waiting for ever
            log.exception("a turn ended with an unexpected error")
            self._append(Error(Unavailable("the turn ended with an internal error; the log of the service has it")))
        finally:
            if not self._events or not isinstance(self._events[-1], Reply | Error):
                self._append(Error(Unavailable("the turn was cancelled before it was accepted")))
            self._ended = True
            self._wake()

    def _append(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class LiveTurns:
    """The turns that run now, by whose request they are.

    Args:
        ended: is told of each turn that has ended.
    """

    def __init__(self, ended: Callable[[LiveTurn], None] | None = None) -> None:
        self._ended = ended
        self._turns: dict[Hashable, LiveTurn] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many turns run."""
        return len(self._turns)

    def find(self, key: Hashable) -> LiveTurn | None:
        """Return the turn of this request that a repeat can join: one that runs and was not cancelled."""
        live = self._turns.get(key)
        return live if live is not None and live.open else None

    def start(
        self,
        key: Hashable,
        make: Callable[[LiveTurn], AsyncIterator[Event]],
        *,
        what: Hashable = None,
        patient: bool = False,
    ) -> LiveTurn:
        """Start a turn in a task of its own; a cancelled one of the same request ends first."""
        live = LiveTurn(what=what, patient=patient)
        before = self._turns.get(key)
        self._turns[key] = live
        task = asyncio.create_task(_drive(live, make, before))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._forget(key, live, done))
        return live

    def _forget(self, key: Hashable, live: LiveTurn, task: "asyncio.Task[None]") -> None:
        if self._turns.get(key) is live:
            del self._turns[key]
        self._tasks.discard(task)
        if self._ended is not None:
            self._ended(live)

    async def drain(self, grace: float) -> None:
        """Let running turns end within `grace` seconds, then cancel what is left and wait for it to be stored."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for live in self._turns.values():
            live.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STORE_GRACE)


async def _drive(live: LiveTurn, make: Callable[[LiveTurn], AsyncIterator[Event]], before: LiveTurn | None) -> None:
    if before is not None:
        await before.ended()
    await live.drive(make(live))
