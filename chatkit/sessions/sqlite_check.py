"""What is wrong with a SQLite file, in plain sentences: the database itself, every session, every request."""

import itertools
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from chatkit.session_lines import Repeats
from chatkit.sessions import items, shapes, whole
from chatkit.sessions.sqlite_rows import head_of, item_of
from chatkit.types import Turn

# A file that is damaged throughout is not listed to its end.
MOST = 1000

_SESSIONS = """
SELECT s.id, o.name, s.name, CAST(s.body AS BLOB), s.opened, s.expires, t.seq, CAST(t.body AS BLOB), t.lease
FROM sessions s LEFT JOIN owners o ON o.id = s.owner LEFT JOIN turns t ON t.session = s.id
WHERE s.expires IS NULL OR s.expires > ?
ORDER BY s.id, t.seq
"""
_REQUEST_OF = """
SELECT r.session, r.seq FROM owners o JOIN requests r ON r.owner = o.id WHERE o.name = ? AND r.name = ?
"""
_LOST_TURNS = "SELECT session, count(*) FROM turns WHERE session NOT IN (SELECT id FROM sessions) GROUP BY session"
_REQUESTS = """
SELECT o.name, r.name, r.session, r.seq FROM requests r LEFT JOIN owners o ON o.id = r.owner
WHERE r.expires IS NULL OR r.expires > ?
"""
_POINTED_AT = """
SELECT CAST(t.body AS BLOB), t.lease FROM owners o JOIN sessions s ON s.owner = o.id JOIN turns t ON t.session = s.id
WHERE o.name = ? AND s.name = ? AND t.seq = ?
"""


def check(connection: sqlite3.Connection, now: float) -> tuple[str, ...]:
    """Return a sentence for each thing that is wrong, at most `MOST` and one that says so; reads row by row."""
    connection.execute("BEGIN")  # one moment of the file, whoever writes to it meanwhile
    try:
        found = tuple(itertools.islice(_all(connection, now), MOST))
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return (*found, f"there is more; these are the first {MOST}") if len(found) == MOST else found


def _all(connection: sqlite3.Connection, now: float) -> Iterator[str]:
    parts = {
        "database": _page_faults,
        "table of owners": _owners_faults,
        "table of sessions": _turns_faults,
        "table of requests": _requests_faults,
    }
    for name, faults in parts.items():
        try:
            yield from faults(connection, now)
        except sqlite3.Error as error:
            yield f"the {name} cannot be read to its end: {error}"


def _page_faults(connection: sqlite3.Connection, now: float) -> Iterator[str]:
    for (line,) in connection.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"the database is damaged: {line}"


def _owners_faults(connection: sqlite3.Connection, now: float) -> Iterator[str]:
    for name, closed in connection.execute("SELECT name, closed FROM owners WHERE closed IS NOT NULL"):
        if not shapes.is_moment(closed):
            yield f"until when {_owner(name)} is shut out cannot be read; have everything of it removed once more"


def _turns_faults(connection: sqlite3.Connection, now: float) -> Iterator[str]:
    rows = connection.execute(_SESSIONS, (now,))
    for (_, owner, name, body, *columns), turns in itertools.groupby(rows, lambda row: row[:6]):
        session = _Session(connection, now, owner, str(name))
        newest = yield from session.faults(row[6:] for row in turns if row[6] is not None)
        yield from session.head_faults(head_of(body), columns, newest)
    for session, count in connection.execute(_LOST_TURNS):
        yield f"{count} turns are in no session; the number of theirs was {session}"


def _requests_faults(connection: sqlite3.Connection, now: float) -> Iterator[str]:
    for owner, name, session, seq in connection.execute(_REQUESTS, (now,)):
        yield from _request_faults(connection, owner, name, session, seq)


@dataclass(frozen=True, slots=True)
class _Session:
    """One session as it is named in the file."""

    connection: sqlite3.Connection
    now: float
    owner: str | None
    name: str

    @property
    def session_id(self) -> str:
        return items.session_id_of(f"#{self.name}")

    @property
    def place(self) -> str:
        return f"session {self.session_id!r} of {_owner(self.owner)}"

    def faults(self, turns: Iterable[tuple[int, bytes, Any]]) -> Generator[str, None, int]:
        """Say what is wrong with its turns; return the number of the newest."""
        newest, repeats = 0, Repeats()
        for seq, body, lease in turns:
            if type(seq) is not int:
                yield f"{self.place} has a turn of the number {seq!r:.40}, which is none"
                continue
            if seq == newest + 2:
                yield f"{self.place} has no turn {newest + 1}"
            elif seq != newest + 1:
                yield f"{self.place} has no turns {newest + 1} to {seq - 1}"
            newest = seq
            turn = _turn(body, lease)
            yield from _turn_faults(f"turn {seq} of {self.place}", seq, turn)
            if turn is None or turn.seq != seq:
                continue
            before = repeats.before(turn)
            if before is not None:
                yield f"turns {before} and {seq} of {self.place} have one request id"
            if whole.is_remembered(turn, self.now):
                yield from self._request_faults(turn)
        return newest

    def head_faults(self, head: dict[str, Any] | None, columns: list[Any], newest: int) -> Iterator[str]:
        """Say what is wrong with its own entry, of which lists and the sweep know moments from `columns`."""
        if head is None:
            yield f"the own entry of {self.place} cannot be read"
            return
        if head["version"] != newest:
            yield f"{self.place} counts {head['version']} turns, and its newest is {newest}"
        if columns != [head["created_at"], head.get("expires_at")]:
            yield f"{self.place} is listed as of other moments than its own entry says"

    def _request_faults(self, turn: Turn) -> Iterator[str]:
        """Say what a repeat of a turn's request would not find; an entry that is wrong in itself is not said here."""
        name = quote(turn.request_id, safe="")
        row = self.connection.execute(_REQUEST_OF, (self.owner, name)).fetchone()
        if row is None:
            yield f"turn {turn.seq} of {self.place} has lost its request {turn.request_id!r}"
            return
        session, seq = row
        if session in (None, self.session_id):
            return
        found = self.connection.execute(_POINTED_AT, (self.owner, quote(str(session), safe=""), seq)).fetchone()
        other = None if found is None else _turn(*found)
        if other is not None and other.request_id == turn.request_id:
            yield f"turn {turn.seq} of {self.place} and turn {seq} of session {session!r} have one request id"


def _turn(body: bytes, lease: Any) -> Turn | None:
    """Return the turn of a row, of whatever number that says it is; None for a damaged one."""
    item = item_of(body, lease)
    return items.turn_of(item, expired=False) if item is not None and shapes.is_turn(item) else None


def _turn_faults(place: str, seq: int, turn: Turn | None) -> Iterator[str]:
    if turn is None:
        yield f"{place} cannot be read"
    elif turn.seq != seq:
        yield f"{place} says that it is turn {turn.seq}"
    elif turn.replaces is not None and not 1 <= turn.replaces < seq:
        yield f"{place} replaces {turn.replaces}, which is no older turn"


def _request_faults(
    connection: sqlite3.Connection, owner: str | None, name: str, session: Any, seq: Any
) -> Iterator[str]:
    request = items.session_id_of(f"#{name}")
    place = f"request {request!r} of {_owner(owner)}"
    if not isinstance(session, str) or not isinstance(seq, int):
        yield f"{place} cannot be read"
        return
    row = connection.execute(_POINTED_AT, (owner, quote(session, safe=""), seq)).fetchone()
    if row is None:
        yield f"{place} points at turn {seq} of session {session!r}, which is not there"
        return
    item = item_of(row[0])
    if item is not None and item.get("request_id", request) != request:
        yield f"{place} points at turn {seq} of session {session!r}, which is of request {item['request_id']!r}"


def _owner(name: str | None) -> str:
    """Return how an owner is named to the operator."""
    return "an owner that is not there" if name is None else f"owner {name}"
