"""The SQLite store on a real disk: what is acknowledged is there, whatever happens to the process."""

import asyncio
import os
import signal
import sqlite3
import stat
import time

import pytest

from chatkit.errors import StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import sqlite_rows
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.sessions.sqlite_file import SCHEMA_VERSION
from chatkit.types import Owner
from tests.sessions.sqlite_parts import OWNER, fill, new, python

pytestmark = pytest.mark.anyio


async def test_every_commit_is_synced_to_a_write_ahead_log(store) -> None:
    for connection in (store._read, store._write):
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)
        assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (4000,)
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (5000,)
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
    assert await store.check() == ()
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
    assert await store.check() == ()


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


async def test_no_transaction_is_open_while_a_turn_is_being_answered(file, store) -> None:
    ticket = (await store.accept(new("q", 1))).ticket
    await store.load(OWNER, "my-session", limit=9)
    assert not store._write.in_transaction
    assert not store._read.in_transaction
    other = sqlite3.connect(file, isolation_level=None, timeout=0)
    other.execute("BEGIN EXCLUSIVE")
    other.execute("ROLLBACK")
    other.close()
    await store.renew(ticket)


async def test_lists_go_through_an_index_of_their_own(store) -> None:
    start = ("", 1.0, "")
    plan = [row[-1] for row in store._read.execute(f"EXPLAIN QUERY PLAN {sqlite_rows._LIST}", start)]
    assert plan == [
        "SEARCH o USING COVERING INDEX sqlite_autoindex_owners_1 (name=?)",
        "SEARCH s USING INDEX lists (owner=? AND opened<?)",
    ]


async def test_a_reader_that_keeps_the_log_delays_the_overwriting_and_not_the_removal(file, store, caplog) -> None:
    await fill(store, 1)
    store._write.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM turns").fetchall()
    await store.delete(OWNER, "my-session")
    assert "is in use, what was removed stays in it for now" in caplog.text
    assert (await store.sessions(OWNER, limit=9)).sessions == ()
    reader.execute("ROLLBACK")
    reader.close()
    await store.delete(OWNER, "my-session")
    assert file.with_name(file.name + "-wal").stat().st_size == 0


# How many words a message has at least, how many more that of the next session, how much longer the answers are.
@pytest.mark.parametrize(("removal", "layout"), [("delete", (5, 11, 3)), ("delete", (3, 19, 1)), ("purge", (8, 36, 3))])
async def test_what_is_removed_is_nowhere_in_the_file_however_turns_lay_beside_one_another(
    file, store, removal, layout
) -> None:
    """Turns of 16 sessions at once: pages are split and joined, and each may leave copies behind."""
    (least, more, longer), removed, text = layout, Owner(user="zq73xkanary"), "zq73xkanary "
    for number in range(12):
        tickets = []
        for session in range(16):
            owner = removed if session % 4 == 0 else OWNER
            words = (text if owner == removed else "other words ") * (least + more * session % 40)
            turn = new(words, f"{session}-{number}", f"session-{session}-of-{owner.user}", owner)
            tickets.append(((await store.accept(turn)).ticket, words))
        for ticket, words in tickets:
            await store.finish(ticket, Outcome("complete", "stop", words * longer))
    if removal == "purge":
        assert await store.purge(removed, closed_s=0) == 4
    else:
        for session in range(0, 16, 4):
            await store.delete(removed, f"session-{session}-of-{removed.user}")
    assert b"other words" in file.read_bytes()
    for part in file.parent.iterdir():
        assert part.read_bytes().count(b"zq73xkanary") == 0
    assert await store.check() == ()


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
