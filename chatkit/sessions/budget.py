"""What one call of a store may take, however many calls of a service that is."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from chatkit.errors import StoreFailed

# First and longest wait before a try is repeated, seconds, and tries in all.
_FIRST_PAUSE, _LONGEST_PAUSE, TRIES = 0.02, 0.6, 10


class Budget:
    """The time and the tries that one call of the store has, whatever it takes of DynamoDB's."""

    def __init__(self, seconds: float, *, tries: int = TRIES) -> None:
        self._end = time.monotonic() + seconds
        self._left = tries - 1
        self._longest = _FIRST_PAUSE

    def part(self, seconds: float) -> "Budget":
        """Return a budget of so many seconds, with tries of its own, that ends when this one does at the latest."""
        return Budget(min(seconds, self._end - time.monotonic()))

    def check(self) -> None:
        """Stop when the time is over.

        Raises:
            StoreFailed: it is.
        """
        if time.monotonic() >= self._end:
            raise StoreFailed("the session store did not answer in time; send the request again later")

    def pause(self) -> None:
        """Wait a random while before the next try, so that those who collided do not meet again.

        Raises:
            StoreFailed: the tries or the time are used up.
        """
        if not self._left:
            raise StoreFailed("the session store is busy; send the request again later")
        self._left -= 1
        time.sleep(random.uniform(0, self._longest))
        self._longest = min(_LONGEST_PAUSE, 2 * self._longest)
        self.check()

    @contextmanager
    def lock(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock for the length of the block.

        Raises:
            StoreFailed: it was not free in time.
        """
        if not lock.acquire(timeout=max(0.0, self._end - time.monotonic())):
            raise StoreFailed("the session store is busy; send the request again later")
        try:
            yield
        finally:
            lock.release()
