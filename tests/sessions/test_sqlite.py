"""The SQLite store on a real disk: what is acknowledged is there, whatever happens to the process or the disk."""

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import pytest

from chatkit.errors import Conflict, StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import items, sqlite
from chatkit.sessions.sqlite import SCHEMA_VERSION, SQLiteStore
from chatkit.types import Owner

pytestmark = pytest.mark.anyio
OWNER = Owner()
PREAMBLE = """
import asyncio, sys
from pathlib import Path
from chatkit.errors import StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
def new(text, number, session="my-session"):
    return NewTurn(Owner(), session, f"request-{number}", text, len(text))
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "home" / "sessions.sqlite3"


@pytest.fixture
def store(file):
    opened = SQLiteStore(file)
    yield opened
    opened.close()


def new(text: str, number: int) -> NewTurn:
    return NewTurn(OWNER, "my-session", f"request-{number}", text, len(text))


async def fill(store, count: int, size: int = 5) -> None:
    for number in range(1, count + 1):
        accepted = await store.accept(new("q" * size, number))
        await store.finish(accepted.ticket, Outcome("complete", "stop", f"a{number}"))


def python(script: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_every_commit_is_synced_to_a_write_ahead_log(store) -> None:
    for connection in (store._read, store._write):
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert store._write.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


async def test_turns_are_there_after_closing_and_opening_again(file) -> None:
    first = SQLiteStore(file)
    await fill(first, 3)
    first.close()
    second = SQLiteStore(file)
    assert [t.assistant for t in await second.load(OWNER, "my-session", limit=9)] == ["a1", "a2", "a3"]
    second.close()


async def test_what_was_acknowledged_survives_a_killed_writer(file) -> None:
    writer = python(
        """
async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    number = 0
    while True:
        number += 1
        accepted = await store.accept(new("q", number))
        await store.finish(accepted.ticket, Outcome("complete", "stop", f"a{number}"))
        print(number, flush=True)
asyncio.run(main())
""",
        file,
    )
    acknowledged = 0
    while acknowledged < 25:
        acknowledged = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate(timeout=10)
    acknowledged = int(rest.split()[-1]) if rest.split() else acknowledged
    store = SQLiteStore(file)
    turns = (await store.load(OWNER, "my-session", limit=100_000)).turns
    assert [t.seq for t in turns] == list(range(1, len(turns) + 1))
    complete = [t for t in turns if t.status == "complete"]
    assert len(complete) >= acknowledged
    assert all(t.assistant == f"a{t.seq}" for t in complete)
    assert len(turns) - len(complete) <= 1
    after = await store.accept(new("next", 999_999))
    assert after.ticket.seq == len(turns) + 1
    store.close()


async def test_two_processes_at_once_number_one_session_without_holes(file, store) -> None:
    script = """
async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    for n in range(25):
        accepted = await store.accept(new("q", f"{sys.argv[2]}-{n}"))
        await store.finish(accepted.ticket, Outcome("complete", "stop", sys.argv[2]))
    store.close()
asyncio.run(main())
"""
    writers = [python(script, file, name) for name in ("one", "two")]
    for writer in writers:
        _, complaints = writer.communicate(timeout=60)
        assert writer.returncode == 0, complaints
    turns = (await store.load(OWNER, "my-session", limit=99)).turns
    assert [t.seq for t in turns] == list(range(1, 51))
    assert sorted(t.assistant for t in turns) == ["one"] * 25 + ["two"] * 25


async def test_a_full_disk_is_store_failed_in_one_line_and_old_turns_stay_readable(file) -> None:
    store = SQLiteStore(file)
    await fill(store, 3)
    store.close()
    process = python(
        """
import resource
async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    size = Path(sys.argv[1]).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 8192, resource.RLIM_INFINITY))
    for number in range(100, 200):
        try:
            await store.accept(new("x" * 20000, number))
        except StoreFailed as error:
            print(error)
            break
    print([t.assistant for t in await store.load(Owner(), "my-session", limit=99) if t.seq < 4])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print((await store.accept(new("small", 300))).ticket.seq)
    store.close()
asyncio.run(main())
""",
        file,
    )
    out, complaints = process.communicate(timeout=30)
    assert process.returncode == 0, complaints
    lines = out.splitlines()
    assert lines[0] == "the session store did not answer; send the request again later"
    assert lines[1:] == ["['a1', 'a2', 'a3']", "4"]
    assert complaints.count("\n") == 1
    assert complaints.startswith(f"the session store {file} failed: ")


async def test_a_folder_that_cannot_be_made_is_store_failed_naming_the_file(tmp_path) -> None:
    (tmp_path / "home").write_text("in the way")
    with pytest.raises(StoreFailed, match=r"sessions\.sqlite3' cannot be opened: .*; check its folder") as caught:
        SQLiteStore(tmp_path / "home" / "sessions.sqlite3")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="file permissions of another user need POSIX")
async def test_a_read_only_folder_is_store_failed_in_one_line(tmp_path) -> None:
    target = tmp_path / "closed" / "sessions.sqlite3"
    target.parent.mkdir()
    target.parent.chmod(0o555)
    script = """
import os
if os.geteuid() == 0:
    os.setuid(65534)
try:
    SQLiteStore(Path(sys.argv[1]))
except StoreFailed as error:
    print(error)
"""
    for folder in list(target.parents)[1:-1]:
        folder.chmod(folder.stat().st_mode | 0o055)
    out, complaints = python(script, target).communicate(timeout=30)
    assert "cannot be opened" in out, complaints
    assert out.count("\n") == 1
    assert complaints == ""


async def test_a_file_that_is_no_database_is_store_failed(file) -> None:
    file.parent.mkdir()
    file.write_bytes(b"this is no database, only a text of some length" * 100)
    with pytest.raises(StoreFailed) as caught:
        SQLiteStore(file)
    assert str(caught.value) == (
        f"the session store {str(file)!r} cannot be opened: file is not a database; move the file away or set --home"
    )


async def test_a_database_of_another_program_is_store_failed_and_left_alone(file) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE items (name TEXT)")
    connection.close()
    with pytest.raises(StoreFailed, match=r"cannot be opened: .*; move the file away or set --home"):
        SQLiteStore(file)


async def test_a_newer_format_is_refused_and_left_alone(file, store) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreFailed, match=f"has format {SCHEMA_VERSION + 1}, this chatkit reads {SCHEMA_VERSION}"):
        SQLiteStore(file)


@pytest.mark.parametrize("damage", ["{", "null", "", b"\xff\xfe\x80", '{"seq": 2, "user": "q", "user_length": 1}'])
async def test_a_damaged_turn_is_left_out_and_the_rest_of_the_session_stays(file, store, caplog, damage) -> None:
    await fill(store, 3)
    value = damage if isinstance(damage, str) else sqlite3.Binary(damage)
    with sqlite3.connect(file) as connection:
        connection.execute(
            "UPDATE items SET body = CAST(? AS TEXT) WHERE pk = ? AND sk = ?",
            (value, items.session_key(OWNER, "my-session"), items.turn_key(2)),
        )
    connection.close()
    assert [t.seq for t in await store.load(OWNER, "my-session", limit=9)] == [1, 3]
    assert "T#0000000002 of a session is damaged" in caplog.text
    with pytest.raises((StoreFailed, Conflict)):
        await store.accept(new("another", 2))
    assert (await store.accept(new("new", 4))).ticket.seq == 4


async def test_a_store_locked_by_another_process_fails_in_its_time(file, store, caplog) -> None:
    store._write.execute("PRAGMA busy_timeout = 100")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    with pytest.raises(StoreFailed, match="the session store did not answer; send the request again later"):
        await store.accept(new("q", 1))
    assert [record.getMessage() for record in caplog.records] == [
        f"the session store {file} failed: database is locked"
    ]
    assert time.monotonic() - started < 5
    assert len(await store.load(OWNER, "my-session", limit=9)) == 0  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    assert (await store.accept(new("q", 1))).ticket.seq == 1


async def test_reads_do_not_wait_for_a_write(file, store) -> None:
    await fill(store, 1)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(store.accept(new("q", 2)))
    loaded = await asyncio.wait_for(store.load(OWNER, "my-session", limit=9), 2)
    assert len(loaded) == 1
    other.execute("ROLLBACK")
    other.close()
    assert (await write).ticket.seq == 2


async def test_a_file_from_before_there_were_lists_is_listed_through_an_index_of_its_own(file) -> None:
    first = SQLiteStore(file)
    await fill(first, 2)
    first.close()
    with sqlite3.connect(file) as connection:
        connection.execute("DROP INDEX heads")
    connection.close()
    second = SQLiteStore(file)
    assert [(head.session_id, head.turns) for head in (await second.sessions(OWNER, limit=9)).sessions] == [
        ("my-session", 2)
    ]
    (plan,) = second._read.execute(f"EXPLAIN QUERY PLAN {sqlite._HEADS}", (1.0, "", "")).fetchall()
    assert plan[-1] == "SEARCH items USING INDEX heads (<expr>=? AND <expr><?)"
    second.close()


@pytest.mark.parametrize("damage", ["{", "null", "{}", '{"version": 1}', '{"version": "x", "created_at": 5}'])
async def test_a_damaged_session_is_left_out_of_the_list_and_the_rest_stays(file, store, damage) -> None:
    for name in ("my-session", "my-session-2"):
        await store.accept(NewTurn(OWNER, name, f"request-{name}", "q", 1))
    with sqlite3.connect(file) as connection:
        place = (items.session_key(OWNER, "my-session"), items.META)
        connection.execute("UPDATE items SET body = ? WHERE pk = ? AND sk = ?", (damage, *place))
    connection.close()
    assert [head.session_id for head in (await store.sessions(OWNER, limit=9)).sessions] == ["my-session-2"]
    await store.delete(OWNER, "my-session")
    assert b'request-my-session"' not in file.read_bytes()


async def test_a_reader_that_keeps_the_log_delays_the_overwriting_and_not_the_removal(file, store, caplog) -> None:
    await fill(store, 1)
    store._write.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM items").fetchall()
    await store.delete(OWNER, "my-session")
    assert "is in use, a removed session stays in it for now" in caplog.text
    assert (await store.sessions(OWNER, limit=9)).sessions == ()
    reader.execute("ROLLBACK")
    reader.close()
    await store.delete(OWNER, "my-session")
    assert file.with_name(file.name + "-wal").stat().st_size == 0


async def test_what_people_said_is_for_the_owner_of_the_file_alone(tmp_path) -> None:
    before = os.umask(0o022)
    try:
        store = SQLiteStore(tmp_path / "sessions.sqlite3")
        await store.accept(NewTurn(Owner(), "my-session", "request-1", "Hello", 5))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert set(modes) >= {"sessions.sqlite3", "sessions.sqlite3-wal"}
    assert set(modes.values()) == {0o600}
