"""Turns in one SQLite file: write-ahead log, every commit synced to disk before it is acknowledged."""

import asyncio
import contextlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from chatkit.conversation import Conversation
from chatkit.errors import StoreFailed
from chatkit.protocols import Accepted, NewTurn, Outcome, SessionHead, SessionList, Ticket
from chatkit.sessions import items
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMA_VERSION = 1
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

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, "sqlite-write")
        self._reader = ThreadPoolExecutor(1, "sqlite-read")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its log the same rights
            self._write = _open(file)
            self._read = _connect(file)
        except (sqlite3.Error, OSError) as error:
            step = "move the file away or set --home" if _is_no_store(error) else "check its folder"
            raise StoreFailed(f"the session store {str(file)!r} cannot be opened: {error}; {step}") from error

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns; see protocols.TurnStore."""
        return await self._run(self._reader, lambda: self._load(owner, session_id, limit))

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn durably; see protocols.TurnStore."""
        return await self._run(self._writer, lambda: self._transaction(lambda: self._accept(turn)))

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        await self._run(self._writer, lambda: self._transaction(lambda: self._renew(ticket)))

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended; see protocols.TurnStore."""
        await self._run(self._writer, lambda: self._transaction(lambda: self._finish(ticket, outcome)))

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions; see protocols.SessionArchive."""
        start = (math.inf, "") if cursor is None else items.position_of(owner, cursor)
        return await self._run(self._reader, lambda: self._sessions(owner, limit, *start))

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first; see protocols.SessionArchive."""
        return await self._run(self._reader, lambda: self._page(owner, session_id, limit, after))

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Remove a session, its bytes in the file included; see protocols.SessionArchive."""
        await self._run(self._writer, lambda: self._erase(owner, session_id))

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

    def _load(self, owner: Owner, session_id: str, limit: int) -> Conversation:
        rows = self._read.execute(
            "SELECT sk, CAST(body AS BLOB), lease FROM items WHERE pk = ? ORDER BY sk DESC LIMIT ?",
            (items.session_key(owner, session_id), limit + 1),
        ).fetchall()
        if not rows or rows[0][0] != items.META:
            if session_id.startswith("s-"):
                raise items.unknown_session(session_id)
            return Conversation()
        now = self._clock()
        turns = []
        for sk, body, lease in rows[1:]:
            turn = _decoded(sk, _turn_of, body, lease, now)
            if turn is not None:
                turns.append(turn)
        return Conversation(tuple(reversed(turns)))

    def _accept(self, turn: NewTurn) -> Accepted:
        request = self._get(items.request_key(turn.owner, turn.request_id), items.REQUEST)
        if request is not None:
            return self._accept_again(turn, request[0])
        partition = items.session_key(turn.owner, turn.session_id)
        meta = self._get(partition, items.META)
        now = self._clock()
        if meta is None:
            items.check_may_open(turn)
            head: dict[str, Any] = {"version": 0, "created_at": round(now, 3)}
        else:
            head = meta[0]
        seq = int(head["version"]) + 1
        lease = now + items.LEASE_S if turn.status == "pending" else None
        self._put(partition, items.META, head | {"version": seq})
        self._put(partition, items.turn_key(seq), items.new_item(turn, seq, now), lease)
        ticket = Ticket(turn.owner, turn.session_id, seq, turn.request_id, 1)
        self._put_request(ticket)
        return Accepted(turn.session_id, ticket)

    def _accept_again(self, turn: NewTurn, request: dict[str, Any]) -> Accepted:
        """Answer a request id that is known: replay what is finished, run again what was aborted."""
        session_id, seq = request["session_id"], request["seq"]
        partition = items.session_key(turn.owner, session_id)
        found = self._get(partition, items.turn_key(seq))
        if found is None:
            raise items.removed_session(session_id)
        item, lease = found
        now = self._clock()
        stored = items.answer_again(turn, session_id, item, expired=lease is not None and lease < now)
        if stored.status != "aborted":
            return Accepted(session_id, repeat=stored)
        attempt = stored.attempt + 1
        again = items.new_item(turn, seq, now) | {"attempt": attempt, "created_at": item["created_at"]}
        self._put(partition, items.turn_key(seq), again, now + items.LEASE_S if turn.status == "pending" else None)
        ticket = Ticket(turn.owner, session_id, seq, turn.request_id, attempt)
        self._put_request(ticket)
        return Accepted(session_id, ticket)

    def _renew(self, ticket: Ticket) -> None:
        partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
        self._owned(ticket, partition, key)
        self._write.execute(
            "UPDATE items SET lease = ? WHERE pk = ? AND sk = ?", (self._clock() + items.LEASE_S, partition, key)
        )

    def _finish(self, ticket: Ticket, outcome: Outcome) -> None:
        partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
        item = self._owned(ticket, partition, key)
        self._put(partition, key, items.ended(item, outcome))

    def _sessions(self, owner: Owner, limit: int, opened: float, session_id: str) -> SessionList:
        start = (opened, items.session_key(owner, session_id), items.session_key(owner, ""))
        heads: list[SessionHead] = []
        with contextlib.closing(self._read.execute(_HEADS, start)) as rows:  # one left open keeps the log from emptying
            for partition, body in rows:
                if len(heads) == limit:
                    return SessionList(tuple(heads), items.cursor_of(owner, heads[-1]))
                head = _decoded(items.META, lambda p, b: items.head_of(p, json.loads(b)), partition, body)
                if head is not None:
                    heads.append(head)
        return SessionList(tuple(heads))

    def _page(self, owner: Owner, session_id: str, limit: int, after: int) -> tuple[Turn, ...]:
        query = "SELECT sk, CAST(body AS BLOB), lease FROM items WHERE pk = ? AND sk > ? ORDER BY sk"
        start = (items.session_key(owner, session_id), items.turn_key(after))
        now = self._clock()
        turns: list[Turn] = []
        with contextlib.closing(self._read.execute(query, start)) as rows:
            for sk, body, lease in rows:
                if sk == items.META or len(turns) == limit:
                    return tuple(turns)
                turn = _decoded(sk, _turn_of, body, lease, now)
                if turn is not None:
                    turns.append(turn)
        raise items.unknown_session(session_id)

    def _erase(self, owner: Owner, session_id: str) -> None:
        self._transaction(lambda: self._delete(owner, session_id))
        # The log still has the pages as they were. Emptying it waits for readers; one that stays leaves it to later.
        if self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            log.warning("the write-ahead log of %s is in use, a removed session stays in it for now", self._file)

    def _delete(self, owner: Owner, session_id: str) -> None:
        partition = items.session_key(owner, session_id)
        turns = self._write.execute("SELECT sk, CAST(body AS BLOB) FROM items WHERE pk = ?", (partition,)).fetchall()
        for sk, body in turns:
            if sk == items.META:
                continue
            request = _decoded(sk, lambda b: items.request_key(owner, json.loads(b)["request_id"]), body)
            if request is not None:
                self._write.execute("DELETE FROM items WHERE pk = ?", (request,))
        self._write.execute("DELETE FROM items WHERE pk = ?", (partition,))

    def _owned(self, ticket: Ticket, partition: str, key: str) -> dict[str, Any]:
        """Return the pending item that the ticket is for."""
        found = self._get(partition, key)
        return items.check_owned(ticket, None if found is None else found[0])

    def _get(self, partition: str, key: str) -> tuple[dict[str, Any], float | None] | None:
        row = self._write.execute("SELECT body, lease FROM items WHERE pk = ? AND sk = ?", (partition, key)).fetchone()
        if row is None:
            return None
        try:
            return dict(json.loads(row[0])), row[1]
        except (ValueError, TypeError):
            raise StoreFailed(f"the session store holds a damaged entry {key!r}; send a new request_id") from None

    def _put(self, partition: str, key: str, item: dict[str, Any], lease: float | None = None) -> None:
        body = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
        self._write.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", (partition, key, body, lease))

    def _put_request(self, ticket: Ticket) -> None:
        """Point the request id at its turn; how that turn stands is read there, so the two cannot disagree."""
        body = {"session_id": ticket.session_id, "seq": ticket.seq}
        self._put(items.request_key(ticket.owner, ticket.request_id), items.REQUEST, body)


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


def _decoded(key: str, read: Callable[..., T], *row: Any) -> T | None:
    """Return what a row holds, or None for a damaged one: one bad turn does not hide the rest of its session."""
    try:
        return read(*row)
    except (ValueError, KeyError, TypeError):
        log.error("entry %s of a session is damaged and left out", key)
        return None


def _turn_of(body: bytes, lease: float | None, now: float) -> Turn:
    return items.turn_of(json.loads(body), expired=lease is not None and lease < now)
