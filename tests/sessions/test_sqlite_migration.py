"""Files of older formats, of newer ones and of other programs, opened by this one."""

import json
import sqlite3
from contextlib import closing

import pytest

from chatkit.errors import Conflict, StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import items
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.sessions.sqlite_file import SCHEMA_VERSION
from chatkit.types import Owner
from tests.sessions.sqlite_parts import OWNER, behind_its_back, fill, new, python

pytestmark = pytest.mark.anyio
# Format 1 as it was released, a turn in it and the items beside that.
SCHEMA_1 = """
CREATE TABLE items (
    pk TEXT NOT NULL, sk TEXT NOT NULL, body TEXT NOT NULL, lease REAL, PRIMARY KEY (pk, sk)
) WITHOUT ROWID;
CREATE INDEX heads ON items (
    rtrim(pk, replace(pk, '#', '')), CASE WHEN json_valid(body) THEN json_extract(body, '$.created_at') END, pk
) WHERE sk = 'Z#META';
PRAGMA user_version = 1;
"""
ODD = ["my-session", "a#S#b-------", "a%23S%23b---", "ä漢🙂-------", "%_'\"; --xx", "T#1", "O", "S#R#O"]
DAY = 86400.0


def item(seq: int, request_id: str, created_at: float, **fields) -> dict:
    row = {"seq": seq, "request_id": request_id, "attempt": 1, "status": "complete", "user": f"q{seq}"}
    row |= {"user_length": 2, "created_at": created_at, "finish_reason": "stop", "usage": [3, 2]}
    return row | {"assistant": f"a{seq} " + "漢字 " * 400} | fields


def rows_1(owner: Owner, session: str, turns: int, opened: float = 1000.0):
    """Return the rows of a session as format 1 had them; its last turn is pending."""
    key = items.session_key(owner, session)
    yield key, items.META, json.dumps({"version": turns, "created_at": opened}), None
    for seq in range(1, turns + 1):
        request = f"request-{session}-{seq}"
        pending = {"status": "pending"} if seq == turns else {}
        body = json.dumps(item(seq, request, opened + seq, **pending), ensure_ascii=False)
        yield key, items.turn_key(seq), body, opened + seq + items.LEASE_S if pending else None
        yield items.request_key(owner, request), "R", json.dumps({"session_id": session, "seq": seq}), None


def make_1(file, *sessions) -> None:
    file.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA_1)
        for rows in sessions:
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)


def contents_1(file) -> list:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        return connection.execute("SELECT * FROM items ORDER BY pk, sk").fetchall()


async def test_a_file_of_format_1_keeps_every_turn_and_request_of_every_owner(file, clock) -> None:
    owners = (OWNER, Owner("default#U", "anonymous"), Owner("S", "O"))
    make_1(file, *(rows_1(owner, name, 3) for owner in owners for name in ODD))
    clock.now = 1010.0
    store = SQLiteStore(file, clock=clock)
    for owner in owners:
        listed = (await store.sessions(owner, limit=99)).sessions
        assert {(head.session_id, head.turns, head.created_at, head.expires_at) for head in listed} == {
            (name, 3, 1000.0, None) for name in ODD
        }
        for name in ODD:
            turns = await store.page(owner, name, limit=9)
            assert [(t.seq, t.status, t.user, t.created_at) for t in turns] == [
                (1, "complete", "q1", 1001.0), (2, "complete", "q2", 1002.0), (3, "pending", "q3", 1003.0),
            ]  # fmt: skip
            assert turns[1].assistant == "a2 " + "漢字 " * 400
            again = NewTurn(owner, name, f"request-{name}-1", "q1", 2)
            assert (await store.accept(again)).repeat == turns[0]
            with pytest.raises(Conflict, match="is being answered"):
                await store.accept(NewTurn(owner, name, f"request-{name}-3", "q3", 2))
    assert await store.check() == ()
    store.close()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'items'").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_migrated_session_goes_on(file, clock) -> None:
    make_1(file, rows_1(OWNER, "my-session", 3))
    clock.now = 1030.0  # past the lease of the pending turn
    store = SQLiteStore(file, clock=clock)
    ticket = (await store.accept(new("q3", "my-session-3"))).ticket
    assert (ticket.seq, ticket.attempt) == (3, 2)
    await store.finish(ticket, Outcome("complete", "stop", "a3"))
    assert (await store.accept(new("q4", 4))).ticket.seq == 4
    assert [t.status for t in await store.load(OWNER, "my-session", limit=9)] == [*["complete"] * 3, "pending"]
    await store.delete(OWNER, "my-session")
    assert await store.check() == ()
    store.close()
    assert b"my-session" not in file.read_bytes()


async def test_requests_of_format_1_end_seven_days_after_their_turn(file, clock) -> None:
    make_1(file, rows_1(OWNER, "my-session", 2))
    clock.now = 1000.0 + items.REQUEST_S
    store = SQLiteStore(file, clock=clock)
    assert (await store.accept(new("q1", "my-session-1"))).repeat.seq == 1
    clock.now += 2
    assert (await store.accept(new("q1", "my-session-1"))).ticket.seq == 3
    store.close()


async def test_damaged_entries_of_format_1_are_kept_as_they_are_and_named(file, clock, caplog) -> None:
    make_1(file, rows_1(OWNER, "session-a", 3), rows_1(OWNER, "session-b", 2), rows_1(OWNER, "session-c", 1))
    with closing(sqlite3.connect(file)) as connection, connection:
        update = "UPDATE items SET body = ? WHERE pk = ? AND sk = ?"
        connection.execute(update, ("{", items.session_key(OWNER, "session-a"), items.turn_key(2)))
        connection.execute(update, ("null", items.request_key(OWNER, "request-session-a-1"), "R"))
        connection.execute("DELETE FROM items WHERE pk = ? AND sk = 'Z#META'", (items.session_key(OWNER, "session-b"),))
    store = SQLiteStore(file, clock=clock)
    assert [t.seq for t in await store.load(OWNER, "session-a", limit=9)] == [1, 3]
    assert [t.seq for t in await store.load(OWNER, "session-b", limit=9)] == [1, 2]
    with pytest.raises(StoreFailed, match="damaged entry 'R'"):
        await store.accept(new("q1", "session-a-1", "session-a"))
    owner = "owner T#default#U#anonymous"
    assert await store.check() == (
        f"the own entry of session 'session-b' of {owner} cannot be read",
        f"turn 2 of session 'session-a' of {owner} cannot be read",
        f"request 'request-session-a-1' of {owner} cannot be read",
    )
    store.close()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM turns WHERE body = '{'").fetchone() == (1,)


KILLED = """
import os, signal
from chatkit.sessions import sqlite_file
run = sqlite_file._run
def then_die(connection, statements):
    run(connection, statements)
    print("written", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
sqlite_file._run = then_die
SQLiteStore(Path(sys.argv[1]))
"""


async def test_a_migration_that_is_killed_before_it_commits_leaves_the_old_file_good(file) -> None:
    make_1(file, *(rows_1(OWNER, f"session-{number}", 40) for number in range(60)))
    before = contents_1(file)
    killed = python(KILLED, file)
    out, complaints = killed.communicate(timeout=60)
    assert (killed.returncode, out) == (-9, "written\n"), complaints
    assert file.with_name(file.name + "-wal").stat().st_size > 1_000_000  # some of it had reached the disk
    assert contents_1(file) == before
    store = SQLiteStore(file)
    assert len((await store.sessions(OWNER, limit=99)).sessions) == 60
    assert len(await store.page(OWNER, "session-7", limit=99)) == 40
    assert await store.check() == ()
    store.close()


@pytest.mark.parametrize("old", [True, False])
async def test_processes_that_open_a_file_at_once_all_find_it_good(file, old) -> None:
    if old:
        make_1(file, *(rows_1(OWNER, f"session-{number}", 20) for number in range(100)))
    script = """
async def main():
    store = SQLiteStore(Path(sys.argv[1]))
    accepted = await store.accept(new("q", sys.argv[2], "session-new"))
    await store.finish(accepted.ticket, Outcome("complete", "stop", "a"))
    store.close()
asyncio.run(main())
"""
    writers = [python(script, file, number) for number in range(4)]
    for writer in writers:
        _, complaints = writer.communicate(timeout=120)
        assert writer.returncode == 0, complaints
    store = SQLiteStore(file)
    assert [t.seq for t in await store.page(OWNER, "session-new", limit=9)] == [1, 2, 3, 4]
    assert len((await store.sessions(OWNER, limit=999)).sessions) == (101 if old else 1)
    assert await store.check() == ()
    store.close()


async def test_a_migration_that_a_full_disk_stops_leaves_the_old_file_good(file) -> None:
    make_1(file, *(rows_1(OWNER, f"session-{number}", 40) for number in range(60)))
    before = contents_1(file)
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
try:
    SQLiteStore(Path(sys.argv[1]))
except StoreFailed as error:
    print(error)
"""
    out, complaints = python(script, file).communicate(timeout=60)
    assert "cannot be opened: " in out, complaints
    assert out.count("\n") == 1
    assert contents_1(file) == before


async def test_a_newer_format_is_refused_and_left_alone(file, store) -> None:
    await fill(store, 1)
    behind_its_back(file, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreFailed, match=f"has format {SCHEMA_VERSION + 1}, this chatkit reads {SCHEMA_VERSION}"):
        SQLiteStore(file)
    behind_its_back(file, f"PRAGMA user_version = {SCHEMA_VERSION}")
    assert [t.seq for t in await store.load(OWNER, "my-session", limit=9)] == [1]


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
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE items (name TEXT)")
    before = file.read_bytes()
    with pytest.raises(StoreFailed, match=r"cannot be opened: .*; move the file away or set --home"):
        SQLiteStore(file)
    assert file.read_bytes() == before
