"""Ctrl-C as a message to the piece of work that runs, not an exception anywhere."""

import asyncio
import atexit
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Ctrl-C ended the work, which has cleaned up behind itself."""


class Interrupts:
    """While entered, Ctrl-C cancels what `stoppable` runs, once, and otherwise what it runs next.

    So a second Ctrl-C cannot break into the clean-up that the first one began, and none is lost between two pieces of
    work; `forget` is for those who do not mean the next one.
    """

    def __init__(self) -> None:
        self._work: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        self._pending = False
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        """Take SIGINT over; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._caught)
            # While the interpreter ends, a late Ctrl-C would turn the exit code into a signal's or print a traceback.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        """Give SIGINT back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._work is None or self._loop is None:
            self._pending = True
        elif not self._asked:
            self._asked = True
            self._loop.call_soon_threadsafe(self._work.cancel)

    def forget(self) -> None:
        """Forget a Ctrl-C that came while nothing ran."""
        self._pending = False

    def stop_next(self) -> None:
        """Take a Ctrl-C that came by another way than the signal; it stops what runs next."""
        self._pending = True

    async def stoppable(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end.

        Raises:
            Stopped: Ctrl-C came first.
        """
        self._loop, self._asked = asyncio.get_running_loop(), False
        self._work = task = asyncio.create_task(work)
        if self._pending:
            self._pending, self._asked = False, True
            task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            if self._asked:
                raise Stopped from None
            raise
        finally:
            self._work = None
        self._pending = self._pending or self._asked  # it came too late for this work
        return result
