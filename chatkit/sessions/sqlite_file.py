"""The file behind SQLiteStore: its tables, how an older file becomes what a file is now, and how it is connected to.

What DynamoDB has as items by partition and sort key is rows of four tables here, under the same keys with each part
written once: owners, sessions of an owner, turns of a session by their number, requests of an owner.
"""

import errno
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from chatkit.errors import StoreFailed
from chatkit.sessions import items

T = TypeVar("T")

SCHEMA_VERSION = 2
# Another process may hold the write lock for a commit or a checkpoint; longer is a fault. Milliseconds.
BUSY_MS = 5000
# Another process may be rewriting an old file, some minutes for a very large one. Milliseconds.
_MIGRATION_MS = 1_800_000
# Turns of a page or a text are rows of 1 to 2 KB. On pages of 4 KiB a sixth is left empty behind them, on these half
# of that; benchmarks/sessions_size.py measures it. Bytes. A file keeps the size that it was made with.
_PAGE = 8192

# A commit that finds the log longer than this writes it into the file. A turn adds some ten pages: at SQLite's 1,000
# one turn in a hundred waits for that, and the more scattered its pages, the longer. 32 MB of log on disk. Pages.
_LOG_PAGES = 4000

# Turns are a rowid table, which appends and fills its pages; one WITHOUT ROWID gives every row of more than 1 KB a page
# of its own for what is over that. `opened` and `expires` are a session's own item's, fixed when it is opened, and
# null where that cannot be read. `closed` is until when an owner is shut out. `more` is what a request's item has
# beyond the columns, as JSON.
_SCHEMA = (
    "CREATE TABLE owners (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, closed INTEGER)",
    "CREATE INDEX closings ON owners (closed) WHERE closed IS NOT NULL",
    "CREATE TABLE sessions (id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, "
    "opened REAL, expires INTEGER, UNIQUE (owner, name))",
    "CREATE INDEX lists ON sessions (owner, opened, name)",
    "CREATE INDEX session_ends ON sessions (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE turns (session INTEGER NOT NULL, seq INTEGER NOT NULL, body TEXT NOT NULL, lease REAL, "
    "UNIQUE (session, seq))",
    "CREATE TABLE requests (owner INTEGER NOT NULL, name TEXT NOT NULL, session TEXT, seq INTEGER, expires INTEGER, "
    "more TEXT, PRIMARY KEY (owner, name)) WITHOUT ROWID",
    "CREATE INDEX request_ends ON requests (expires)",
)

# Format 1 was one table `items (pk, sk, body, lease)`, WITHOUT ROWID, under the keys of sessions.items. `place` is a
# key as far as its last '#': T#tenant#U#user#S# for a session, …#R# for a request.
_ITEMS = (
    "WITH old AS (SELECT *, substr(place, 1, length(place) - 3) AS who, substr(place, -2, 1) AS kind, "
    "substr(pk, length(place) + 1) AS name FROM (SELECT *, rtrim(pk, replace(pk, '#', '')) AS place FROM items))"
)
_OPENED = "CASE WHEN json_valid(m.body) THEN json_extract(m.body, '$.created_at') END"
_FIELD = "CASE WHEN json_valid(old.body) THEN json_extract(old.body, '$.{}') END"
_ACCEPTED = (
    "(SELECT CASE WHEN json_valid(t.body) THEN json_extract(t.body, '$.created_at') END FROM sessions s "
    "JOIN turns t ON t.session = s.id WHERE s.owner = o.id AND s.name = quoted({}) AND t.seq = {})"
)
_FROM_1 = (
    *_SCHEMA,
    f"INSERT INTO owners (name) {_ITEMS} SELECT DISTINCT who FROM old",
    # A session whose own item is missing keeps its turns; what is in its place reads as damaged.
    f"INSERT INTO sessions (owner, name, body, opened) {_ITEMS} "
    f"SELECT o.id, k.name, coalesce(m.body, ''), {_OPENED} "
    "FROM (SELECT DISTINCT pk, who, name FROM old WHERE kind = 'S') k JOIN owners o ON o.name = k.who "
    f"LEFT JOIN items m ON m.pk = k.pk AND m.sk = '{items.META}' ORDER BY 4",
    f"INSERT INTO turns (session, seq, body, lease) {_ITEMS} "
    "SELECT s.id, CAST(substr(old.sk, 3) AS INTEGER), old.body, old.lease FROM old JOIN owners o ON o.name = old.who "
    "JOIN sessions s ON s.owner = o.id AND s.name = old.name "
    f"WHERE old.kind = 'S' AND old.sk <> '{items.META}' ORDER BY old.pk, old.sk",
    # Requests were kept for ever. From now on they end after their time, counted from when the turn was accepted.
    f"INSERT INTO requests (owner, name, session, seq, expires) {_ITEMS} "
    f"SELECT o.id, old.name, {_FIELD.format('session_id')}, {_FIELD.format('seq')}, "
    f"CAST(coalesce({_ACCEPTED.format(_FIELD.format('session_id'), _FIELD.format('seq'))}, :now) AS INTEGER) "
    f"+ {int(items.REQUEST_S)} FROM old JOIN owners o ON o.name = old.who WHERE old.kind = 'R'",
)


def open_file(file: Path) -> sqlite3.Connection:
    """Return a connection to a file of the present format; make it, or bring it there from an older one.

    Raises:
        StoreFailed: it was written by a newer version or by another program.
        sqlite3.Error: it cannot be opened or written; what was there is as it was.
    """
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    try:
        version = waited(lambda: _version_now(connection, file))
        if version == 0:
            connection.execute(f"PRAGMA page_size = {_PAGE}")
        _prepare(connection)
        if version < SCHEMA_VERSION:
            _migrate(connection, file)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(file: Path) -> sqlite3.Connection:
    """Return a further connection to a file that `open_file` has opened."""
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    _prepare(connection)
    return connection


def next_step(error: Exception) -> str:
    """Return what to do about a file that cannot be opened."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the rest of it says more exactly what
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
        return "move the file away or set --home"
    if code == sqlite3.SQLITE_READONLY or getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "make file and folder writable, or copy the file to a folder that is and name that with --home"
    return "check its folder"


def log_ahead(connection: sqlite3.Connection) -> None:
    """Put a file into write-ahead mode; one that another process is putting there is waited for."""
    waited(lambda: connection.execute("PRAGMA journal_mode = WAL"))


def waited(work: Callable[[], T]) -> T:
    """Run what SQLite refuses at once while another process makes the file, until it can be done."""
    until = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _prepare(connection: sqlite3.Connection) -> None:
    log_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    connection.execute("PRAGMA secure_delete = ON")  # what is removed or replaced is overwritten with zeros


def _version_now(connection: sqlite3.Connection, file: Path) -> int:
    """Return the format of a file at one moment, for another process may be making it."""
    connection.execute("BEGIN")
    try:
        return _version(connection, file)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection, file: Path) -> int:
    """Return the format of a file, 0 of an empty one."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise StoreFailed(
            f"the session store {str(file)!r} has format {version}, this chatkit reads {SCHEMA_VERSION}; update it"
        )
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreFailed(
            f"the session store {str(file)!r} cannot be opened: it is another program's database; move the file away "
            "or set --home"
        )
    return version


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    """Bring the file to the present format in one transaction; another process that does the same is waited for."""
    connection.execute(f"PRAGMA busy_timeout = {_MIGRATION_MS}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, file)
        if version == 0:
            _run(connection, _SCHEMA)
        elif version == 1:
            _from_1(connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


def _from_1(connection: sqlite3.Connection) -> None:
    connection.create_function("quoted", 1, lambda name: None if name is None else quote(str(name), safe=""))
    _run(connection, _FROM_1)
    before, after = connection.execute(
        f"SELECT (SELECT count(*) FROM items WHERE sk <> '{items.META}'), "
        "(SELECT count(*) FROM turns) + (SELECT count(*) FROM requests)"
    ).fetchone()
    if before != after:
        raise sqlite3.DatabaseError(f"of {before} entries of format 1 only {after} have a place in format 2")
    connection.execute("DROP TABLE items")


def _run(connection: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    for statement in statements:
        connection.execute(statement, {"now": time.time()} if ":now" in statement else ())
