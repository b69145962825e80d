"""A key for each session: made once, kept wrapped and apart from the text, and forgotten for good.

Where the wrapped keys lie, owners and sessions go by digests: what is left of a forgotten one names nobody.
"""

import hashlib
import logging
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from chatkit.errors import ConfigError
from chatkit.sessions import items
from chatkit.sessions.sealing import SessionKey
from chatkit.types import Owner

log = logging.getLogger(__name__)

# What stands in the place of the key of a session that is being removed begins so; no wrapped key does.
_FORGOTTEN = b"-"
# A key outlives its session by this, which is more than it takes from making the key to opening the session. Seconds.
_SLACK_S = 60


class CannotUnwrap(Exception):
    """A wrapped key is damaged, is another session's, or was wrapped under another master key."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A session's key as it is kept, or the mark of a removal in its place. No two are alike.

    Attributes:
        expires_at: whole epoch seconds; None for one that is kept until its session is removed.
    """

    wrapped: bytes
    expires_at: int | None = None

    @property
    def is_mark(self) -> bool:
        """Whether it is the mark of a removal."""
        return self.wrapped.startswith(_FORGOTTEN)

    def outlives(self, ends: float | None) -> bool:
        """Whether it is kept for as long as a session that ends at `ends`, epoch seconds; None is never."""
        if ends is None or self.expires_at is None:
            return ends is None and self.expires_at is None
        return self.expires_at >= ends


class KeyShelf(Protocol):
    """Where wrapped keys are kept, by digests of owner and session. Its methods wait; any thread may call them.

    Raises:
        StoreFailed: from any method, it was not acknowledged.
        ConfigError: from any method, it is not set up.
    """

    def get(self, owner: str, session: str) -> WrappedKey | None:
        """Return what is kept now, an expired one too."""
        ...

    def swap(self, owner: str, session: str, old: WrappedKey | None, new: WrappedKey | None) -> None:
        """Put `new` in the place of `old`, or nothing for None; leaves alone what is not `old` any more."""
        ...

    def put(self, owner: str, session: str, new: WrappedKey) -> None:
        """Put a mark in the place of whatever is kept, and leave no trace of that."""
        ...

    def clear(self, owner: str) -> None:
        """Remove everything of an owner, and leave no trace of it."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class MasterKey(Protocol):
    """What wraps the sessions' keys. Its methods may wait; any thread may call them."""

    def new(self, session: str) -> tuple[bytes, bytes]:
        """Return a fresh key of `sealing.KEY_BYTES` for the session of this digest, and the same wrapped.

        Raises:
            StoreFailed: whoever holds the master key does not answer.
            ConfigError: they refuse.
        """
        ...

    def unwrap(self, wrapped: bytes, session: str) -> bytes:
        """Return the key that was wrapped for the session of this digest.

        Raises:
            CannotUnwrap: it was not, or not so, or not by this master key.
            StoreFailed: whoever holds the master key does not answer.
            ConfigError: they refuse.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class KeyRing:
    """The keys of sessions: those on the shelf, wrapped, and those used of late, unwrapped, in memory.

    Its methods wait; any thread may call them.

    Args:
        lifetime_s: seconds that a session is read with a key before the shelf is asked whether that is still there.
            What is written always asks.
        most: keys held in memory; those of more than `lifetime_s` ago are let go of when the next one is wanted.
    """

    def __init__(
        self,
        shelf: KeyShelf,
        master: MasterKey,
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        lifetime_s: float = 60.0,
        most: int = 1024,
    ) -> None:
        self._shelf = shelf
        self._master = master
        self._clock = clock
        self._timer = timer
        self._lifetime_s = lifetime_s
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[bytes, SessionKey, float]] = OrderedDict()

    def check(self, setting: str) -> None:
        """Unwrap what the first of all services wrapped: the master key is the same, and may be used.

        Raises:
            ConfigError: it is not, or may not.
            StoreFailed: shelf or master key are out of reach.
        """
        owner, session = _digest("-"), _digest("check")
        kept = self._shelf.get(owner, session)
        if kept is None:
            self._shelf.swap(owner, session, None, WrappedKey(self._master.new(session)[1]))
            kept = self._shelf.get(owner, session)
        try:
            self._master.unwrap(b"" if kept is None else kept.wrapped, session)
        except CannotUnwrap:
            raise ConfigError(
                f"session_keys is {setting!r}, which is not the key that the sessions here were encrypted under; set "
                "that one again, or move these sessions and their keys away"
            ) from None

    def held(self, owner: Owner, session_id: str) -> SessionKey | None:
        """Return the key to read a session with; one that was forgotten elsewhere for `lifetime_s` more at most."""
        with self._lock:
            self._drop_aged()
            held = self._held.get(_places(owner, session_id)[1])
        return self.fresh(owner, session_id)[1] if held is None else held[1]

    def _drop_aged(self) -> None:
        """Let go of the keys that nobody has looked up for `lifetime_s`; the lock is held."""
        while self._held and next(iter(self._held.values()))[2] <= self._timer():  # in the order of their last look
            self._held.popitem(last=False)

    def fresh(self, owner: Owner, session_id: str) -> tuple[WrappedKey | None, SessionKey | None]:
        """Return what is kept for a session now, and the key that it is; None for one that has expired or is none."""
        whose, place = _places(owner, session_id)
        kept = self._shelf.get(whose, place)
        ended = kept is None or kept.is_mark or (kept.expires_at is not None and kept.expires_at <= self._clock())
        key = None if kept is None or ended else self._unwrapped(owner, session_id, place, kept.wrapped)
        with self._lock:
            self._held.pop(place, None)
            if kept is not None and key is not None:
                self._held[place] = (kept.wrapped, key, self._timer() + self._lifetime_s)
            self._drop_aged()
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return kept, key

    def make(self, owner: Owner, session_id: str, old: WrappedKey | None, ends: float | None) -> WrappedKey:
        """Make a key for a session that ends at `ends`, epoch seconds, unless something else than `old` is there now.

        Which key it has now, this or another, `fresh` tells: two processes that open one session agree on one.
        """
        whose, place = _places(owner, session_id)
        expires_at = None if ends is None else math.ceil(ends) + _SLACK_S
        new = WrappedKey(self._master.new(place)[1], expires_at)
        self._shelf.swap(whose, place, old, new)
        return new

    def unmake(self, owner: Owner, session_id: str, kept: WrappedKey) -> None:
        """Remove the key of a session that was then not opened, or the mark of a removal that has ended."""
        self._shelf.swap(*_places(owner, session_id), kept, None)

    def forget(self, owner: Owner, session_id: str) -> WrappedKey:
        """Remove a session's key for good, and return the mark in its place; until that is gone there is no new one."""
        whose, place = _places(owner, session_id)
        mark = WrappedKey(_FORGOTTEN + secrets.token_bytes(16))
        self._shelf.put(whose, place, mark)
        with self._lock:
            self._held.pop(place, None)
        return mark

    def forget_all(self, owner: Owner) -> None:
        """Remove every key of an owner for good."""
        self._shelf.clear(_digest(items.owner_key(owner)))
        with self._lock:
            self._held.clear()  # it goes by digests, which do not tell whose a key is

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()
        self._shelf.close()
        self._master.close()

    def _unwrapped(self, owner: Owner, session_id: str, place: str, wrapped: bytes) -> SessionKey | None:
        """Return a kept key unwrapped, from memory where it is known there; None for a damaged one."""
        with self._lock:
            held = self._held.get(place)
        if held is not None and held[0] == wrapped:
            return held[1]
        try:
            return SessionKey(owner, session_id, self._master.unwrap(wrapped, place))
        except CannotUnwrap:
            log.error("the key of a session is damaged or another session's: what it encrypts is left out")
            return None


def _places(owner: Owner, session_id: str) -> tuple[str, str]:
    return _digest(items.owner_key(owner)), _digest(items.session_key(owner, session_id))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
