"""Several processes at one SQLite file: made by all at once, and emptied of what was removed while one is reading."""

import contextlib
import multiprocessing
import sqlite3

import pytest

from chatkit.sessions import sqlite_file
from chatkit.sessions.key_shelves import SQLiteKeys
from chatkit.sessions.session_keys import WrappedKey
from chatkit.sessions.sqlite import SQLiteStore
from tests.sessions.sqlite_parts import OWNER, fill, new

pytestmark = pytest.mark.anyio
PROCESSES, FILES = 4, 40


def open_at_once(kind, files, barrier, ends) -> None:
    """Open each file when all are there, and tell how that ended."""
    for file in files:
        barrier.wait(60)
        try:
            kind(file).close()
            ends.put("opened")
        except Exception as error:  # to be told to the test, whatever it is
            ends.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("kind", [SQLiteStore, SQLiteKeys])
def test_a_new_file_is_opened_by_every_process_that_opens_it_at_the_same_moment(tmp_path, kind) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, ends = context.Barrier(PROCESSES), context.Queue()
    files = [tmp_path / str(number) / "sessions.sqlite3" for number in range(FILES)]
    started = [context.Process(target=open_at_once, args=(kind, files, barrier, ends)) for _ in range(PROCESSES)]
    for process in started:
        process.start()
    assert {ends.get(timeout=120) for _ in range(FILES * PROCESSES)} == {"opened"}
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * PROCESSES


def test_a_file_that_another_process_makes_between_two_looks_is_no_other_programs(tmp_path) -> None:
    file = tmp_path / "sessions.sqlite3"

    class Slow(sqlite3.Connection):
        """Somebody else makes the file as soon as its format has been read."""

        def execute(self, statement, *values):
            found = super().execute(statement, *values)
            if statement == "PRAGMA user_version" and not made:
                made.append(True)
                rows = found.fetchall()
                sqlite_file.open_file(file).close()
                return super().execute(f"SELECT {rows[0][0]}")
            return found

    made: list[bool] = []
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, factory=Slow)) as connection:
        assert sqlite_file._version_now(connection, file) == 0
        assert sqlite_file._version_now(connection, file) == sqlite_file.SCHEMA_VERSION
    assert made == [True]


@contextlib.contextmanager
def reading(file):
    """Read a file for as long as the block, as a check or a backup does."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield
        connection.execute("ROLLBACK")


def log_of(file):
    return file.with_name(f"{file.name}-wal")


async def test_removing_beside_a_long_reader_waits_a_moment_and_holds_nobody_up(file, store) -> None:
    waits = []

    class Noting:
        """The writer's connection, which tells how long it may wait when it erases."""

        def __getattr__(self, name):
            return getattr(writer, name)

        def execute(self, statement, *values):
            if "wal_checkpoint" in statement or statement == "VACUUM":
                waits.append(writer.execute("PRAGMA busy_timeout").fetchone()[0])
            return writer.execute(statement, *values)

    await fill(store, 2)
    writer = store._erasing._connection
    store._erasing._connection = Noting()
    with reading(file):
        await store.accept(new("another", "b", "session-b"))
        await store.delete(OWNER, "my-session")
        await store.delete(OWNER, "session-b")
    assert len(waits) == 4
    assert max(waits) <= 50
    assert writer.execute("PRAGMA busy_timeout").fetchone() == (5000,)


async def test_what_was_removed_leaves_the_log_when_the_reader_has_gone(file, store, caplog) -> None:
    await store.accept(new("a secret to forget", "a"))
    with reading(file):
        await store.accept(new("something else", "b", "session-b"))
        await store.delete(OWNER, "my-session")
        assert b"a secret to forget" in log_of(file).read_bytes()
    assert "what was removed stays in it for now" in caplog.text
    for number in range(20):
        await store.accept(new("hello", number, "session-b"))
    assert b"a secret to forget" not in log_of(file).read_bytes()
    assert b"a secret to forget" not in file.read_bytes()


def test_a_forgotten_key_leaves_the_log_when_the_reader_has_gone(tmp_path, caplog) -> None:
    file = tmp_path / "keys.sqlite3"
    secret = b"a wrapped key to forget"
    with contextlib.closing(SQLiteKeys(file)) as keys:
        keys.swap("owner", "session", None, WrappedKey(secret))
        with reading(file):
            keys.put("owner", "session", WrappedKey(b""))
            assert secret in log_of(file).read_bytes()
        assert "a forgotten key stays in it for now" in caplog.text
        for number in range(20):
            keys.swap("owner", f"session-{number}", None, WrappedKey(b"another"))
        assert secret not in log_of(file).read_bytes()
        assert secret not in file.read_bytes()
