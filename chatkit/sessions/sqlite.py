"""Turns in one SQLite file: write-ahead log, every commit synced to disk before it is acknowledged."""

import asyncio
import contextlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from chatkit.conversation import Conversation
from chatkit.errors import StoreFailed
from chatkit.protocols import CLOSED_S, Accepted, NewTurn, Outcome, SessionHead, SessionList, Ticket
from chatkit.sessions import items, records
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMA_VERSION = 2
# Another process may hold the write lock for a commit or a checkpoint; longer is a fault. Milliseconds.
_BUSY_MS = 5000

# A session's owner, as far as the last '#' of its key, and when it was opened; null where the item is damaged.
_OWNER = "rtrim(pk, replace(pk, '#', ''))"
_OPENED = "CASE WHEN json_valid(body) THEN json_extract(body, '$.created_at') END"
# An index is an addition that older versions can live with, so it leaves the number of the format alone.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS items (
    pk TEXT NOT NULL,
    sk TEXT NOT NULL,
    body TEXT NOT NULL,
    lease REAL,
    expires INTEGER,
    PRIMARY KEY (pk, sk)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS heads ON items ({_OWNER}, {_OPENED}, pk) WHERE sk = '{items.META}';
"""
_HEADS = f"""
SELECT pk, CAST(body AS BLOB) FROM items
WHERE sk = '{items.META}' AND {_OWNER} = ?3 AND {_OPENED} <= ?1 AND ({_OPENED}, pk) < (?1, ?2)
ORDER BY {_OPENED} DESC, pk DESC
"""


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
            self._write = _open(file)
            self._read = _connect(file)
            self._rows, self._rows_read = _Rows(self._write), _Rows(self._read)
        except (sqlite3.Error, OSError) as error:
            step = "move the file away or set --home" if _is_no_store(error) else "check its folder"
            raise StoreFailed(f"the session store {str(file)!r} cannot be opened: {error}; {step}") from error

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns; see protocols.TurnStore."""
        return await self._run(
            self._reader, lambda: records.load(self._rows_read, owner, session_id, limit, self._clock())
        )

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn durably; see protocols.TurnStore."""
        return await self._run(self._writer, lambda: self._transaction(lambda: self._accept(turn)))

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        await self._run(
            self._writer, lambda: self._transaction(lambda: records.renew(self._rows, ticket, self._clock()))
        )

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended; see protocols.TurnStore."""
        await self._run(
            self._writer, lambda: self._transaction(lambda: records.finish(self._rows, ticket, outcome, self._clock()))
        )

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions; see protocols.SessionArchive."""
        start = (math.inf, "") if cursor is None else items.position_of(owner, cursor)
        return await self._run(self._reader, lambda: self._sessions(owner, limit, *start))

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first; see protocols.SessionArchive."""
        return await self._run(
            self._reader, lambda: records.page(self._rows_read, owner, session_id, limit, after, self._clock())
        )

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Remove a session, its bytes in the file included; see protocols.SessionArchive."""
        await self._run(self._writer, lambda: self._erase(lambda: records.delete(self._rows, owner, session_id)))

    async def purge(self, owner: Owner, *, closed_s: float = CLOSED_S) -> int:
        """Remove everything of an owner in one transaction; see protocols.SessionArchive."""
        return await self._run(self._writer, lambda: self._erase(lambda: self._purge(owner, closed_s)))

    async def restore(self, owner: Owner, session_id: str, turns: Sequence[Turn], *, expires_at: float | None) -> None:
        """Write a session in one transaction; see protocols.SessionArchive."""

        def write() -> None:
            records.restore(self._rows, owner, session_id, turns, expires_at, self._clock())

        await self._run(self._writer, lambda: self._transaction(write))

    def close(self) -> None:
        """Wait for what runs and close the file."""
        self._writer.shutdown()
        self._reader.shutdown()
        self._read.close()
        self._write.close()

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        except sqlite3.Error as error:
            log.error("the session store %s failed: %s", self._file, error)
            raise StoreFailed("the session store did not answer; send the request again later") from error

    def _transaction(self, work: Callable[[], T]) -> T:
        self._write.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._write.execute("COMMIT")
        except BaseException:
            if self._write.in_transaction:
                self._write.execute("ROLLBACK")
            raise
        return result

    def _accept(self, turn: NewTurn) -> Accepted:
        return records.accept(self._rows, turn, self._clock(), self._retention_s)

    def _purge(self, owner: Owner, closed_s: float) -> int:
        start = f"{items.owner_key(owner)}#"
        between = (start, start[:-1] + "$")  # the next character: whatever begins with `start` lies between
        found = self._write.execute(
            f"SELECT count(*) FROM items WHERE pk >= ? AND pk < ? AND sk = '{items.META}'", between
        ).fetchone()[0]
        self._write.execute("DELETE FROM items WHERE pk >= ? AND pk < ?", between)
        if closed_s > 0:
            mark = items.new_mark(self._clock(), closed_s)
            self._rows.put(items.owner_mark_key(owner), items.OWNER, mark)
        return int(found)

    def _sessions(self, owner: Owner, limit: int, opened: float, session_id: str) -> SessionList:
        start = (opened, items.session_key(owner, session_id), items.session_key(owner, ""))
        heads: list[SessionHead] = []
        with contextlib.closing(self._read.execute(_HEADS, start)) as rows:  # one left open keeps the log from emptying
            for partition, body in rows:
                if len(heads) == limit:
                    return SessionList(tuple(heads), items.cursor_of(owner, heads[-1]))
                head = _item(body, None)
                if head is None or "version" not in head:
                    log.error("entry %s of a session is damaged and left out", items.META)
                elif not items.is_gone(head, self._clock()):
                    heads.append(items.head_of(partition, head))
        return SessionList(tuple(heads))

    def _erase(self, remove: Callable[[], T]) -> T:
        removed = self._transaction(remove)
        # The log still has the pages as they were. Emptying it waits for readers; one that stays leaves it to later.
        if self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            log.warning("the write-ahead log of %s is in use, what was removed stays in it for now", self._file)
        return removed


class _Rows:
    """The table as records; see sessions.records.Records."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, partition: str, key: str) -> dict[str, Any] | None:
        row = self._connection.execute(
            "SELECT CAST(body AS BLOB), lease FROM items WHERE pk = ? AND sk = ?", (partition, key)
        ).fetchone()
        item = None if row is None else _item(*row)
        if row is not None and item is None:
            raise StoreFailed(f"the session store holds a damaged entry {key!r}; send a new request_id")
        return item

    def put(self, partition: str, key: str, item: dict[str, Any]) -> None:
        kept = {name: value for name, value in item.items() if name != "lease"}
        body = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
        row = (partition, key, body, item.get("lease"), item.get("expires_at"))
        self._connection.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", row)

    def drop(self, partition: str) -> None:
        self._connection.execute("DELETE FROM items WHERE pk = ?", (partition,))

    def rows(self, partition: str, *, after: str | None = None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        order = "ORDER BY sk DESC" if after is None else "AND sk > ? ORDER BY sk"
        query = f"SELECT sk, CAST(body AS BLOB), lease FROM items WHERE pk = ? {order}"
        found = self._connection.execute(query, (partition,) if after is None else (partition, after))
        with contextlib.closing(found) as rows:  # one left open keeps the log from emptying
            for key, body, lease in rows:
                yield key, _item(body, lease)


def _item(body: bytes, lease: float | None) -> dict[str, Any] | None:
    """Return the item of a row, None for a damaged one."""
    try:
        item = dict(json.loads(body))
    except (ValueError, TypeError):
        return None
    return item if lease is None else item | {"lease": lease}


def _open(file: Path) -> sqlite3.Connection:
    connection = _connect(file)
    try:
        _migrate(connection, file)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")  # what is removed or replaced is overwritten with zeros
    return connection


def _is_no_store(error: Exception) -> bool:
    """Whether the file is there and is something else: no database, a damaged one, or another program's."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the rest of it says more exactly what
    return code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StoreFailed(
            f"the session store {str(file)!r} has format {version}, this chatkit reads {SCHEMA_VERSION}; update it"
        )
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
