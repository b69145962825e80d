"""The tables of a SQLite file as records under the keys of sessions.items; what runs in here has a transaction around.

`Rows` is what sessions.records works on; the rest is what only this store can do in one statement: everything of an
owner, a list, and what has expired.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from chatkit.errors import StoreFailed
from chatkit.sessions import items, shapes
from chatkit.types import Owner

Item = dict[str, Any]
_OWNER = "(SELECT id FROM owners WHERE name = ?)"
_SESSION = "(SELECT s.id FROM owners o JOIN sessions s ON s.owner = o.id WHERE o.name = ? AND s.name = ?)"
# An owner's name goes with the last that is under it.
_TIDY = (
    "DELETE FROM owners WHERE id = ?1 AND closed IS NULL AND NOT EXISTS (SELECT 1 FROM sessions WHERE owner = ?1) "
    "AND NOT EXISTS (SELECT 1 FROM requests WHERE owner = ?1)"
)
_LIST = """
SELECT s.name, CAST(s.body AS BLOB), s.opened, s.expires FROM owners o JOIN sessions s ON s.owner = o.id
WHERE o.name = ?1 AND s.opened <= ?2 AND (s.opened, s.name) < (?2, ?3)
ORDER BY s.opened DESC, s.name DESC
"""
# Those of an older file whose own item cannot be read come last, as if opened at the beginning of time.
_LIST_UNDATED = """
SELECT s.name, CAST(s.body AS BLOB), 0.0, s.expires FROM owners o JOIN sessions s ON s.owner = o.id
WHERE o.name = ?1 AND s.opened IS NULL AND (0, s.name) < (?2, ?3)
ORDER BY s.name DESC
"""
# What to do about a damaged entry, by its key.
_NEW_REQUEST = "send a new request_id"
_STEPS = {items.META: "start a new session", items.OWNER: "have everything of this owner removed once more"}
_POINTER = ("session_id", "seq", "expires_at")


class Rows:
    """See sessions.records.Records."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, partition: str, key: str) -> Item | None:
        """Return an item.

        Raises:
            StoreFailed: what is there cannot be read.
        """
        owner, kind, name = _parts(partition)
        if kind == "O":
            row = self._one("SELECT closed FROM owners WHERE name = ? AND closed IS NOT NULL", owner)
            item = None if row is None or not shapes.is_moment(row[0]) else {"expires_at": row[0]}
        elif kind == "R":
            columns = f"SELECT session, seq, expires, more FROM requests WHERE owner = {_OWNER} AND name = ?"
            row = self._one(columns, owner, name)
            item = None if row is None else _request(*row)
        elif key == items.META:
            row = self._one(f"SELECT CAST(body AS BLOB) FROM sessions WHERE owner = {_OWNER} AND name = ?", owner, name)
            item = None if row is None else head_of(row[0])
        else:
            turn = f"SELECT CAST(body AS BLOB), lease FROM turns WHERE session = {_SESSION} AND seq = ?"
            row = self._one(turn, owner, name, _seq(key))
            item = None if row is None else item_of(*row)
            item = item if item is not None and shapes.is_sound(key, item) else None
        if row is not None and item is None:
            raise StoreFailed(f"the session store holds a damaged entry {key!r}; {_STEPS.get(key, _NEW_REQUEST)}")
        return item

    def put(self, partition: str, key: str, item: Item) -> None:
        """Write an item; a session's own goes before its turns, and when it was opened and ends never changes."""
        owner, kind, name = _parts(partition)
        run = self._connection.execute
        if kind == "O":
            mark = "INSERT INTO owners (name, closed) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET closed = ?2"
            run(mark, (owner, item["expires_at"]))
        elif kind == "R":
            more = {field: value for field, value in item.items() if field not in _POINTER}
            pointer = (item["session_id"], item["seq"], item.get("expires_at"), _body(more) if more else None)
            run(f"INSERT OR REPLACE INTO requests VALUES ({_OWNER}, ?, ?, ?, ?, ?)", (owner, name, *pointer))
        elif key == items.META:
            run("INSERT OR IGNORE INTO owners (name) VALUES (?)", (owner,))
            run(
                f"INSERT INTO sessions (owner, name, body, opened, expires) VALUES ({_OWNER}, ?, ?, ?, ?) "
                "ON CONFLICT (owner, name) DO UPDATE SET body = excluded.body",
                (owner, name, _body(item), item["created_at"], item.get("expires_at")),
            )
        else:
            kept = {field: value for field, value in item.items() if field != "lease"}
            run(
                f"INSERT INTO turns (session, seq, body, lease) VALUES ({_SESSION}, ?, ?, ?) "
                "ON CONFLICT (session, seq) DO UPDATE SET body = excluded.body, lease = excluded.lease",
                (owner, name, _seq(key), _body(kept), item.get("lease")),
            )

    def drop(self, partition: str) -> None:
        """Remove every item of a partition."""
        owner, kind, name = _parts(partition)
        run = self._connection.execute
        whose = self._one("SELECT id FROM owners WHERE name = ?", owner)
        if whose is None:
            return
        if kind == "S":
            run(f"DELETE FROM turns WHERE session = {_SESSION}", (owner, name))
            run("DELETE FROM sessions WHERE owner = ? AND name = ?", (*whose, name))
        elif kind == "R":
            run("DELETE FROM requests WHERE owner = ? AND name = ?", (*whose, name))
        else:
            run("UPDATE owners SET closed = NULL WHERE id = ?", whose)
        run(_TIDY, whose)

    def rows(self, partition: str, *, after: str | None = None) -> Iterator[tuple[str, Item | None]]:
        """Yield keys and items of a session; see sessions.records.Records."""
        owner, _, name = _parts(partition)
        session = self._one(
            f"SELECT id, CAST(body AS BLOB) FROM sessions WHERE owner = {_OWNER} AND name = ?", owner, name
        )
        if session is None:
            return
        if after is None:
            yield items.META, head_of(session[1])
        order = "ORDER BY seq DESC" if after is None else "AND seq > ? ORDER BY seq"
        query = f"SELECT seq, CAST(body AS BLOB), lease FROM turns WHERE session = ? {order}"
        start = session[:1] if after is None else (session[0], _seq(after))
        with contextlib.closing(
            self._connection.execute(query, start)
        ) as rows:  # an open one keeps the log from emptying
            for seq, body, lease in rows:
                yield items.turn_key(seq), item_of(body, lease)
        if after is not None:
            yield items.META, head_of(session[1])

    def _one(self, query: str, *values: Any) -> Any:
        return self._connection.execute(query, values).fetchone()


def heads(
    connection: sqlite3.Connection, owner: Owner, opened: float, session_id: str
) -> Iterator[tuple[str, Item | None, float, float | None]]:
    """Yield partitions and own items of an owner's sessions, when they were opened and end, the last opened first.

    Args:
        opened, session_id: yields those that come after it.
    """
    before = items.session_key(owner, "")
    start = (items.owner_key(owner), opened, items.session_key(owner, session_id).removeprefix(before))
    for query in (_LIST, _LIST_UNDATED):
        with contextlib.closing(connection.execute(query, start)) as rows:
            for name, body, opened_at, expires in rows:
                yield before + name, item_of(body), opened_at, expires if shapes.is_moment(expires) else None


def remove_owner(connection: sqlite3.Connection, owner: Owner, now: float) -> int:
    """Remove all rows of an owner but its mark; return how many sessions there were that had not expired."""
    row = connection.execute("SELECT id FROM owners WHERE name = ?", (items.owner_key(owner),)).fetchone()
    if row is None:
        return 0
    counted = "SELECT count(*) FROM sessions WHERE owner = ? AND (expires IS NULL OR expires > ?)"
    found = connection.execute(counted, (*row, now)).fetchone()[0]
    connection.execute("DELETE FROM turns WHERE session IN (SELECT id FROM sessions WHERE owner = ?)", row)
    connection.execute("DELETE FROM sessions WHERE owner = ?", row)
    connection.execute("DELETE FROM requests WHERE owner = ?", row)
    connection.execute(_TIDY, row)
    return int(found)


def sweep(connection: sqlite3.Connection, now: float, most: int) -> None:
    """Remove rows that have expired, those that ended first, `most` of each kind."""
    run = connection.execute
    owners = set(run("SELECT id FROM owners WHERE closed <= ? LIMIT ?", (now, most)).fetchall())
    run("UPDATE owners SET closed = NULL WHERE id IN (SELECT id FROM owners WHERE closed <= ? LIMIT ?)", (now, most))
    ended = "SELECT owner, name FROM requests WHERE expires <= ? ORDER BY expires LIMIT ?"
    for owner, name in run(ended, (now, most)).fetchall():
        owners.add((owner,))
        run("DELETE FROM requests WHERE owner = ? AND name = ?", (owner, name))
    left = most
    ended = "SELECT id, owner FROM sessions WHERE expires <= ? ORDER BY expires LIMIT ?"
    for session, owner in run(ended, (now, most)).fetchall():
        turns = "DELETE FROM turns WHERE rowid IN (SELECT rowid FROM turns WHERE session = ? ORDER BY seq LIMIT ?)"
        left -= run(turns, (session, left)).rowcount
        if left <= 0:  # there may be more turns; without them its own row stays, and it still reads as expired
            break
        run("DELETE FROM sessions WHERE id = ?", (session,))
        owners.add((owner,))
    for row in owners:
        run(_TIDY, row)


def item_of(body: bytes, lease: float | None = None) -> Item | None:
    """Return the item of a row, None for a damaged one."""
    try:
        item = dict(json.loads(body))
    except (ValueError, TypeError, RecursionError):
        return None
    return item if lease is None else item | {"lease": lease}


def head_of(body: bytes) -> Item | None:
    """Return a session's own item, None for a damaged one."""
    item = item_of(body)
    return item if item is not None and shapes.head_of("", item) is not None else None


def _request(session: Any, seq: Any, expires: Any, more: str | None) -> Item | None:
    if not isinstance(session, str) or not isinstance(seq, int) or not isinstance(expires, int | float | None):
        return None
    item = {"session_id": session, "seq": seq} | ({} if expires is None else {"expires_at": expires})
    if more is None:
        return item
    rest = item_of(more.encode()) if isinstance(more, str) else None
    return None if rest is None else item | rest


def _parts(partition: str) -> tuple[str, str, str]:
    """Return the owner's key, the kind and the name that a partition is made of; see sessions.items."""
    parts = partition.split("#")
    return "#".join(parts[:4]), parts[4], "".join(parts[5:])


def _seq(key: str) -> int:
    return int(key.removeprefix("T#"))


def _body(item: Item) -> str:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"))
