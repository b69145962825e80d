"""When to ask an upstream server again: waits between tries, and a breaker that stops asking one that keeps failing."""

import asyncio
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

# Tries of one request in all, and what their waits may add up to, seconds. The caller is waiting meanwhile.
TRIES = 4
WAIT_BUDGET = 8.0
# A breaker opens after this many failures in a row, and asks again after the first wait, then twice that, to the most.
FAILURES = 5
FIRST_WAIT, MOST_WAIT = 5.0, 60.0

_SECONDS = re.compile(r"\d{1,9}(\.\d+)?")

Admission = Literal["no", "yes", "probe"]


def wait_before(attempt: int, retry_after: float | None, *, jitter: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait before try `attempt` + 1: a quarter, a half, one, … and up to as much again."""
    own: float = 0.25 * 2 ** (attempt - 1) * (1 + jitter())
    return max(own, retry_after or 0.0)


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, a number or a date; None where it says nothing."""
    if not value:
        return None
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max((at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


class Breaker:
    """Closed while requests succeed; open after `FAILURES` in a row; then one probe at a time decides.

    Args:
        clock: seconds; the event loop's unless told.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._failures = 0
        self._wait = FIRST_WAIT
        self._open_until: float | None = None
        self._probing = False

    @property
    def refuses(self) -> bool:
        """Whether a request made now would be turned away."""
        if self._open_until is None:
            return False
        return self._probing or self._clock() < self._open_until

    def admit(self) -> Admission:
        """Return whether a request may go out, and whether it is the probe; how it ends has to be told."""
        if self.refuses:
            return "no"
        self._probing = self._open_until is not None
        return "probe" if self._probing else "yes"

    def succeeded(self) -> None:
        """Note an answer: the server works."""
        self._failures, self._wait, self._open_until, self._probing = 0, FIRST_WAIT, None, False

    def failed(self, admission: Admission) -> bool:
        """Note a failure and return whether it opened the breaker."""
        self._failures += 1
        if admission == "probe":
            self._wait = min(2 * self._wait, MOST_WAIT)
            self._probing = False
        elif self._open_until is not None or self._failures < FAILURES:
            return False  # not enough, or sent before the breaker opened
        self._open_until = self._clock() + self._wait
        return True

    def left(self, admission: Admission) -> None:
        """Note a request that ended without saying anything about the server."""
        if admission == "probe":
            self._probing = False
