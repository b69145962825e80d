"""The indexes of a running service: opened when first asked for, and followed when another version is made live."""

import asyncio
import errno
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chatkit.errors import BadIndex, ChatkitError, NotFound, Unavailable
from chatkit.protocols import Encoder
from chatkit.retrieval.index import SearchOptions
from chatkit.retrieval.layout import IndexFolder, Pointer
from chatkit.retrieval.opening import OpenIndex, open_index
from chatkit.retrievers import PartsRetriever, in_one
from chatkit.types import Passage, QueryPart

_log = logging.getLogger(__name__)

# Seconds between two looks at the pointers of the open indexes.
CHECK_EVERY_S = 1.0
# Indexes that are open at once; past it the one that was not asked for the longest is closed.
MOST_OPEN = 16
# Indexes that are opened beside each other.
_THREADS = 2
# Seconds until an index is tried again that failed for want of memory, files or its encoder, and not for what it is.
RETRY_S = 10.0
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO, errno.EAGAIN)
# How often a version is tried that another one replaced while it was being opened.
_ATTEMPTS = 5


class _Open:
    """One open version, and how many searches it is in the middle of."""

    def __init__(self, index: OpenIndex, version: str, pointer: Pointer | None) -> None:
        self.index = index
        self.version = version
        self.pointer = pointer
        self.searches = 0
        self.retired = False


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A version that could not be opened: where its pointer was, what was said, and until when it is not tried."""

    pointer: Pointer | None
    said: str
    until: float

    def stands(self, pointer: Pointer | None) -> bool:
        """Return whether the live version is still this one, and not to be tried yet."""
        return self.pointer == pointer and time.monotonic() < self.until


class LiveIndexes:
    """The default index and those that requests name; implements `protocols.Retriever`.

    A thread looks at the pointer of every open index once a second. Another version is opened and checked there, then
    takes over; searches end in the version they began in, which is closed after the last of them. A version that is
    bad leaves the open one in place and is warned of once; it is tried again when the pointer changes. What fails for
    another reason is tried again after some seconds.
    """

    def __init__(
        self,
        indexes: Path,
        encoder: Encoder,
        *,
        default: str,
        named: Collection[str] | None,
        options: SearchOptions | None = None,
        check_every_s: float = CHECK_EVERY_S,
        most_open: int = MOST_OPEN,
        retry_s: float = RETRY_S,
        encoders: Callable[[str], Encoder | None] = lambda source: None,
    ) -> None:
        """Open the default index.

        Args:
            indexes: the folder of all indexes.
            encoder: the one they were built with.
            default: the index that is searched where none is named.
            named: other indexes that a request may name; None for all.
            options: how they are searched.
            check_every_s: seconds between two looks at the pointers.
            most_open: indexes that are open at once.
            retry_s: seconds until what failed by no fault of the index is tried again.
            encoders: as `open_index` takes it.

        Raises:
            BadIndex: the default index is not there or cannot be used; the message has the command that mends it.
            MissingExtra: faiss is not installed.
        """
        self._indexes = indexes
        self._encoder = encoder
        self._encoders = encoders
        self._default = default
        self._named = named
        self._options = options
        self._most_open = most_open
        self._lock = threading.Lock()  # held for a few steps at a time, never while a file is read
        self._shelf: OrderedDict[str, _Open] = OrderedDict()
        self._opening: dict[str, Future[None]] = {}
        self._retry_s = retry_s
        self._refused: dict[str, _Refusal] = {}
        self._shelf[default] = self._open(IndexFolder(indexes, default))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="open-index")
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(check_every_s,), name="watch-indexes", daemon=True)
        self._watcher.start()

    async def search(
        self, query: str, *, k: int, index: str | None = None, where: Mapping[str, str] | None = None
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages of the default index, or of the one named; raises what `search_parts` does."""
        return await self.search_parts([QueryPart(query)], k=k, index=index, where=where)

    async def search_parts(
        self,
        parts: Sequence[QueryPart],
        *,
        k: int,
        index: str | None = None,
        where: Mapping[str, str] | None = None,
        rerank: bool | None = None,
        neighbours: int | None = None,
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages of the default index, or of the one named; see `VectorIndex.search_parts`.

        Raises:
            InvalidRequest: the name cannot be an index's.
            NotFound: there is no index of that name that a request may use.
            BadIndex: it is there but cannot be used; the log says why.
            Unavailable: the service is closing.
        """
        name = self._default if index is None else self._allowed(index)
        while (entry := self._enter(name)) is None:
            # Shielded: others may wait for the same index when this request is cancelled.
            if (opening := self._open_once(name)) is not None:
                await asyncio.shield(asyncio.wrap_future(opening))
        try:
            opened = entry.index
            if isinstance(opened, PartsRetriever):
                return await opened.search_parts(parts, k=k, where=where, rerank=rerank, neighbours=neighbours)
            return await opened.search(in_one(parts), k=k, where=where)
        finally:
            self._leave(entry)

    def close(self) -> None:
        """Let running searches end, close every index and stop the threads."""
        self._closed.set()
        self._watcher.join()
        self._threads.shutdown()
        with self._lock:
            entries = list(self._shelf.values())
            self._shelf.clear()
        for entry in entries:
            entry.index.close()

    def _allowed(self, name: str) -> str:
        IndexFolder(self._indexes, name)
        if name != self._default and self._named is not None and name not in self._named:
            raise _no_index(name)
        return name

    def _enter(self, name: str) -> _Open | None:
        with self._lock:
            entry = self._shelf.get(name)
            if entry is not None:
                entry.searches += 1
                self._shelf.move_to_end(name)
            return entry

    def _leave(self, entry: _Open) -> None:
        with self._lock:
            entry.searches -= 1
            over = entry.retired and not entry.searches
        if over:
            self._close_soon(entry)

    def _retire(self, entry: _Open) -> None:
        """Close a version that is not on the shelf any more, now or after its last search."""
        with self._lock:
            entry.retired = True
            over = not entry.searches
        if over:
            self._close_soon(entry)

    def _close_soon(self, entry: _Open) -> None:
        """Close in a thread: it waits for what a cancelled request left running."""
        try:
            self._threads.submit(entry.index.close)
        except RuntimeError:  # closing already
            entry.index.close()

    def _open_once(self, name: str) -> "Future[None] | None":
        """Return what opens an index for all who wait for it; None where it was put on the shelf meanwhile."""
        with self._lock:
            if name in self._shelf:
                return None
            future = self._opening.get(name)
            if future is None:
                try:
                    future = self._threads.submit(self._shelve, name)
                except RuntimeError as error:
                    raise Unavailable("the indexes are being closed; ask again when the service is back") from error
                self._opening[name] = future
            return future

    def _shelve(self, name: str) -> None:
        """Open an index that a request named and put it on the shelf, another off it where it is full."""
        try:
            entry = self._open_named(IndexFolder(self._indexes, name))
            with self._lock:
                self._shelf[name] = entry
                others = [other for other in self._shelf if other not in (self._default, name)]
                surplus = others[: max(0, len(self._shelf) - self._most_open)]
                gone = [self._shelf.pop(other) for other in surplus]
        finally:
            with self._lock:
                self._opening.pop(name, None)
        for old in gone:
            self._retire(old)

    def _open_named(self, folder: IndexFolder) -> _Open:
        """Open for a request; a version that was found bad is not read again before the pointer changes."""
        pointer = folder.pointer()
        if pointer is None:
            raise _no_index(folder.name)
        problem = BadIndex(
            f"the index {folder.name!r} is there but cannot be used; the log and `chatkit index list` say why"
        )
        if (refused := self._refused.get(folder.name)) is not None and refused.stands(pointer):
            raise problem
        try:
            entry = self._open(folder)
        except Exception as error:
            self._refuse(folder.name, pointer, error, "cannot be opened")
            raise problem from error
        self._refused.pop(folder.name, None)
        return entry

    def _refuse(self, name: str, pointer: Pointer | None, error: Exception, what: str) -> None:
        """Note a version that could not be opened, and warn of it unless that was said of it before."""
        said, before = _one_line(error), self._refused.get(name)
        wait_s = self._retry_s if _may_pass(error) else math.inf
        self._refused[name] = _Refusal(pointer, said, time.monotonic() + wait_s)
        if before is None or (before.pointer, before.said) != (pointer, said):
            _log.warning("index %r %s: %s", name, what, said)

    def _open(self, folder: IndexFolder) -> _Open:
        """Open the live version, checked; once more where another took its place meanwhile."""
        for attempt in range(1, _ATTEMPTS + 1):
            pointer = folder.pointer()
            try:
                index = open_index(folder.folder, self._encoder, options=self._options, encoders=self._encoders)
            except BadIndex:
                if attempt == _ATTEMPTS or folder.pointer() == pointer:
                    raise
            else:
                return _Open(index, pointer.text if pointer is not None else "", pointer)
        raise AssertionError("the last attempt returns or raises")

    def _watch(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            with self._lock:
                entries = list(self._shelf.items())
            for name, entry in entries:
                folder = IndexFolder(self._indexes, name)
                pointer = folder.pointer()
                refused = self._refused.get(name)
                if pointer == entry.pointer or (refused is not None and refused.stands(pointer)):
                    continue
                try:
                    self._follow(folder, entry)
                    self._refused.pop(name, None)
                except Exception as error:
                    self._refuse(name, pointer, error, f"stays at version {entry.version}")

    def _follow(self, folder: IndexFolder, old: _Open) -> None:
        """Let the version that is live now take over from `old`, if it is good."""
        new = self._open(folder)
        with self._lock:
            wanted = self._shelf.get(folder.name) is old
            if wanted:
                self._shelf[folder.name] = new
        self._retire(old if wanted else new)
        if wanted:
            _log.info("index %r is at version %s now: %d passages", folder.name, new.version, len(new.index))


def _no_index(name: str) -> NotFound:
    return NotFound(f"there is no index {name!r} that a request may name; `chatkit index list` shows those there are")


def _may_pass(error: BaseException) -> bool:
    """Return whether the same version may well be opened later: what is wrong is not, or not surely, in its files."""
    if not isinstance(error, BadIndex):
        return True
    cause = error.__cause__
    return cause is not None and (
        _may_pass(cause) if isinstance(cause, BadIndex) else getattr(cause, "errno", None) in _PASSING
    )


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return said if isinstance(error, ChatkitError) else f"{type(error).__name__}: {said}".removesuffix(": ")
