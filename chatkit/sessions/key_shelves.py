"""Where the wrapped keys of sessions are kept: a file of their own beside SQLite's, or a table beside DynamoDB's."""

import base64
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chatkit.errors import ConfigError, StoreFailed
from chatkit.sessions import sqlite_file
from chatkit.sessions.attributes import expressions
from chatkit.sessions.budget import Budget
from chatkit.sessions.connection import code_of
from chatkit.sessions.session_keys import WrappedKey
from chatkit.sessions.sqlite_erasing import Erasing
from chatkit.sessions.table import Table

log = logging.getLogger(__name__)

# What a call may take in all, seconds; removing everything of an owner takes many.
_BUDGET_S, _CLEAR_S = 4.0, 600.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    owner TEXT NOT NULL, session TEXT NOT NULL, wrapped BLOB NOT NULL, expires INTEGER, PRIMARY KEY (owner, session)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS key_ends ON keys (expires) WHERE expires IS NOT NULL;
PRAGMA user_version = 1;
"""


class SQLiteKeys:
    """Wrapped keys in a SQLite file.

    Args:
        file: None keeps them in memory, for sessions that are there too.

    Raises:
        StoreFailed: the file cannot be opened.
    """

    def __init__(self, file: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        try:
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its log the same rights
            self._connection = _open(":memory:" if file is None else file)
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(
                f"the keys of sessions {str(file)!r} cannot be opened: {error}; check the file"
            ) from error
        self._erasing = Erasing(self._connection, file, "a forgotten key")

    def get(self, owner: str, session: str) -> WrappedKey | None:
        """Return what is kept now."""
        with self._asked() as connection:
            found = connection.execute(
                "SELECT wrapped, expires FROM keys WHERE owner = ? AND session = ?", (owner, session)
            ).fetchone()
        return None if found is None else WrappedKey(bytes(found[0]), found[1])

    def swap(self, owner: str, session: str, old: WrappedKey | None, new: WrappedKey | None) -> None:
        """Put `new` in the place of `old`; see session_keys.KeyShelf. What has expired goes with it."""
        place = (owner, session) if old is None else (owner, session, old.wrapped)
        with self._asked() as connection:
            connection.execute("DELETE FROM keys WHERE expires <= ? AND session <> ?", (self._clock(), session))
            if new is None:
                connection.execute("DELETE FROM keys WHERE owner = ? AND session = ? AND wrapped = ?", place)
            elif old is None:
                connection.execute(
                    "INSERT OR IGNORE INTO keys VALUES (?, ?, ?, ?)", (*place, new.wrapped, new.expires_at)
                )
            else:
                connection.execute(
                    "UPDATE keys SET wrapped = ?, expires = ? WHERE owner = ? AND session = ? AND wrapped = ?",
                    (new.wrapped, new.expires_at, *place),
                )
            self._erasing.after_write()

    def put(self, owner: str, session: str, new: WrappedKey) -> None:
        """Put a mark in the place of whatever is kept, the bytes in the file included."""
        place = (owner, session)
        with self._removing() as connection:
            if connection.execute("DELETE FROM keys WHERE owner = ? AND session = ?", place).rowcount:
                self._erasing.note()
            else:
                self._erasing.want()
            connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (*place, new.wrapped, new.expires_at))

    def clear(self, owner: str) -> None:
        """Remove everything of an owner, the bytes in the file included."""
        with self._removing() as connection:
            if connection.execute("DELETE FROM keys WHERE owner = ?", (owner,)).rowcount:
                self._erasing.note()
            else:
                self._erasing.want()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._erasing.close()
            self._connection.close()

    @contextlib.contextmanager
    def _removing(self) -> Iterator[sqlite3.Connection]:
        """Commit all of it or nothing, and then erase what was removed."""
        with self._asked() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            self._erasing.after_write()

    @contextlib.contextmanager
    def _asked(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._connection
        except sqlite3.Error as error:
            log.error("the keys of sessions %s failed: %s", self._file, error)
            raise StoreFailed("the keys of sessions did not answer; send the request again later") from error


def _open(file: Path | str) -> sqlite3.Connection:
    timeout = sqlite_file.BUSY_MS / 1000
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=timeout)
    try:
        sqlite_file.log_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # what is removed or replaced is overwritten with zeros
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


class DynamoDBKeys:
    """Wrapped keys in a DynamoDB table of their own, of the same form as the sessions'.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: the table, credentials, region or permission are missing.
        StoreFailed: nobody answers.
    """

    def __init__(self, table: str, *, region: str = "", endpoint: str = "") -> None:
        self._table = Table(table, region=region, endpoint=endpoint)
        try:
            self._table.check()
        except BaseException as error:
            self._table.close()
            if isinstance(error, ConfigError) and code_of(error.__cause__) == "ResourceNotFoundException":
                raise ConfigError(
                    f"the DynamoDB table {table!r}, which keeps the keys of sessions, does not exist; run chatkit "
                    "sessions create-table with session_keys set as it is here"
                ) from error
            raise

    def get(self, owner: str, session: str) -> WrappedKey | None:
        """Return what is kept now."""
        found = self._table.get(Budget(_BUDGET_S), owner, session)
        if found is None:
            return None
        try:
            return WrappedKey(base64.b64decode(str(found.get("wrapped")), validate=True), found.get("expires_at"))
        except ValueError:
            return WrappedKey(b"")  # written over by another program: the key of no session

    def swap(self, owner: str, session: str, old: WrappedKey | None, new: WrappedKey | None) -> None:
        """Put `new` in the place of `old`; see session_keys.KeyShelf."""
        condition: dict[str, Any] = {"condition": "attribute_not_exists(#pk)"}
        if old is not None:
            condition = {"condition": "#wrapped = :wrapped", "wrapped": _text(old)}
        # A transaction, for sent again it is not made again: a key whose writing nobody acknowledged may have been used
        # and forgotten meanwhile, and must not come back.
        action = (
            self._table.drop(owner, session, **condition)
            if new is None
            else self._table.put(owner, session, _item(new), **condition)
        )
        self._table.transact(Budget(_BUDGET_S), (action,))

    def put(self, owner: str, session: str, new: WrappedKey) -> None:
        """Put a mark in the place of whatever is kept."""
        budget, wanted = Budget(_BUDGET_S), _item(new)
        while True:
            # It asks for what was there: one that comes late, when its caller has given up, another has removed the
            # session and opened it again, must not take the key of that.
            found = self._table.get(budget, owner, session)
            condition: dict[str, Any] = {"condition": "attribute_not_exists(#pk)"}
            if found is not None and "wrapped" in found:
                condition = {"condition": "#wrapped = :wrapped", "wrapped": found["wrapped"]}
            elif found is not None:
                condition = {"condition": "attribute_exists(#pk) AND attribute_not_exists(#wrapped)"}
            failed = self._table.transact(budget, (self._table.put(owner, session, wanted, **condition),))
            if not failed:
                return
            budget.pause()  # somebody else has changed it

    def clear(self, owner: str) -> None:
        """Remove everything of an owner."""
        budget = Budget(_CLEAR_S, tries=1000)
        wanted = expressions(keys="#pk = :pk", projection="#pk, #sk", pk=owner)
        rows = list(self._table.query(budget, ConsistentRead=True, **wanted))
        self._table.remove(budget, owner, [row["sk"] for row in rows])

    def close(self) -> None:
        """Close the connections."""
        self._table.close()


def _item(key: WrappedKey) -> dict[str, Any]:
    item: dict[str, Any] = {"wrapped": _text(key)}
    return item if key.expires_at is None else item | {"expires_at": key.expires_at}


def _text(key: WrappedKey) -> str:
    return base64.b64encode(key.wrapped).decode()
