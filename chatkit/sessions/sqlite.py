"""Turns in one SQLite file: write-ahead log, every commit synced to disk before it is acknowledged."""

import asyncio
import contextlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from chatkit.conversation import Conversation
from chatkit.errors import StoreFailed
from chatkit.protocols import CLOSED_S, Accepted, NewTurn, Outcome, SessionHead, SessionList, Ticket
from chatkit.sessions import items, records, sqlite_check, sqlite_file, sqlite_rows
from chatkit.sessions.sqlite_erasing import Erasing
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
T = TypeVar("T")

# What has expired is removed in steps of so many rows of a kind, one step at the first of so many turns of a session.
# Sixteen turns add no more than 33 rows, so the file stops growing.
_SWEPT_ROWS = 64
_SWEPT_EVERY = 16


class SQLiteStore:
    """A TurnStore and SessionArchive in a file. Reads and writes have a thread and a connection each, of its own.

    Raises:
        StoreFailed: the file cannot be opened or was written by a newer version.
    """

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.time, retention_s: float | None = None) -> None:
        self._file = file
        self._clock = clock
        self._retention_s = retention_s
        self._writer = ThreadPoolExecutor(1, "sqlite-write")
        self._reader = ThreadPoolExecutor(1, "sqlite-read")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its log the same rights
            self._write = sqlite_file.open_file(file)
            self._read = sqlite_file.connect(file)
        except (sqlite3.Error, OSError) as error:
            step = sqlite_file.next_step(error)
            raise StoreFailed(f"the session store {str(file)!r} cannot be opened: {error}; {step}") from error
        self._erasing = Erasing(self._write, file, "what was removed")
        self._rows, self._rows_read = sqlite_rows.Rows(self._write), sqlite_rows.Rows(self._read)

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns; see protocols.TurnStore."""
        return await self._reading(lambda: records.load(self._rows_read, owner, session_id, limit, self._clock()))

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn durably; see protocols.TurnStore."""
        return await self._writing(lambda: self._accept(turn))

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        await self._writing(lambda: records.renew(self._rows, ticket, self._clock()))

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended; see protocols.TurnStore."""
        await self._writing(lambda: records.finish(self._rows, ticket, outcome, self._clock()))

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions; see protocols.SessionArchive."""
        start = (math.inf, "") if cursor is None else items.position_of(owner, cursor)
        return await self._reading(lambda: self._sessions(owner, limit, *start))

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first; see protocols.SessionArchive."""
        return await self._reading(
            lambda: records.page(self._rows_read, owner, session_id, limit, after, self._clock())
        )

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Remove a session, its bytes in the file included; see protocols.SessionArchive."""
        await self._writing(lambda: self._removed(lambda: records.delete(self._rows, owner, session_id)))

    async def withdraw(self, ticket: Ticket) -> bool:
        """Remove a session that has the ticket's turn alone, where that waits to be finished; whether it did."""
        return await self._writing(lambda: self._removed(lambda: records.withdraw(self._rows, ticket, self._clock())))

    async def purge(self, owner: Owner, *, closed_s: float = CLOSED_S) -> int:
        """Remove everything of an owner in one transaction; see protocols.SessionArchive."""
        return await self._writing(lambda: self._purge(owner, closed_s))

    async def restore(self, owner: Owner, session_id: str, turns: Sequence[Turn], *, expires_at: float | None) -> None:
        """Write a session in one transaction; see protocols.SessionArchive."""
        await self._writing(lambda: records.restore(self._rows, owner, session_id, turns, expires_at, self._clock()))

    async def check(self) -> tuple[str, ...]:
        """Read the whole file and return a sentence for each thing that is wrong with it; none where all is well.

        Turns go on meanwhile; what is checked is the file as it was at the start.

        Raises:
            StoreFailed: the file cannot be read at all.
        """

        def read() -> tuple[str, ...]:
            with contextlib.closing(sqlite_file.connect(self._file)) as connection:
                return sqlite_check.check(connection, self._clock())

        with self._failing():
            return await asyncio.to_thread(read)

    def close(self) -> None:
        """Wait for what runs and close the file."""
        self._writer.shutdown()
        self._reader.shutdown()
        self._read.close()
        self._erasing.close()
        self._write.close()

    async def _reading(self, work: Callable[[], T]) -> T:
        """Run in the reader's thread, all of it over one moment of the file."""

        def read() -> T:
            self._read.execute("BEGIN")
            try:
                return work()
            finally:
                if self._read.in_transaction:
                    self._read.execute("ROLLBACK")

        with self._failing():
            return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    async def _writing(self, work: Callable[[], T]) -> T:
        """Run in the writer's thread and commit all of it or nothing."""

        def write() -> T:
            self._write.execute("BEGIN IMMEDIATE")
            try:
                result = work()
                self._write.execute("COMMIT")
            except BaseException:
                if self._write.in_transaction:
                    self._write.execute("ROLLBACK")
                raise
            self._erasing.after_write()
            return result

        with self._failing():
            return await asyncio.get_running_loop().run_in_executor(self._writer, write)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Log what went wrong and tell the caller no more than that it did."""
        try:
            yield
        except sqlite3.Error as error:
            log.error("the session store %s failed: %s", self._file, error)
            raise StoreFailed("the session store did not answer; send the request again later") from error

    def _accept(self, turn: NewTurn) -> Accepted:
        now = self._clock()
        accepted = records.accept(self._rows, turn, now, self._retention_s)
        if accepted.ticket is not None and accepted.ticket.seq % _SWEPT_EVERY == 1:
            sqlite_rows.sweep(self._write, now, _SWEPT_ROWS)
        return accepted

    def _purge(self, owner: Owner, closed_s: float) -> int:
        removed = self._removed(lambda: sqlite_rows.remove_owner(self._write, owner, self._clock()))
        place = items.owner_mark_key(owner)
        if closed_s > 0:
            self._rows.put(place, items.OWNER, items.new_mark(self._clock(), closed_s))
        else:
            self._rows.drop(place)
        return removed

    def _removed(self, work: Callable[[], T]) -> T:
        """Run what removes, and where it removed anything have that erased after the commit."""
        before = self._write.total_changes
        result = work()
        if self._write.total_changes != before:
            self._erasing.note()
        else:
            self._erasing.want()
        return result

    def _sessions(self, owner: Owner, limit: int, opened: float, session_id: str) -> SessionList:
        found: list[SessionHead] = []
        for partition, item, opened_at, expires in sqlite_rows.heads(self._read, owner, opened, session_id):
            if expires is not None and expires <= self._clock():
                continue
            if len(found) == limit:
                return SessionList(tuple(found), items.cursor_of(owner, found[-1]))
            found.append(records.read_head(partition, item, opened_at, expires))
        return SessionList(tuple(found))
