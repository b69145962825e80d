"""What a removal leaves in a file: nothing, and where that cannot be done at once, no error for what is stored."""

import random
import sqlite3
from contextlib import closing

import pytest

from chatkit.sessions import sqlite_erasing, sqlite_file
from chatkit.sessions.key_shelves import SQLiteKeys
from chatkit.sessions.session_keys import WrappedKey
from chatkit.types import Owner
from tests.sessions.sqlite_parts import OWNER, fill, fill_in_bulk, new, python

pytestmark = pytest.mark.anyio
SETUP = """
import resource, sqlite3
from chatkit.sessions import sqlite_erasing
from chatkit.sessions.key_shelves import SQLiteKeys
from chatkit.sessions.session_keys import WrappedKey
file = Path(sys.argv[1])
def room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""


def said_by(script: str, *arguments) -> tuple[list[str], str]:
    """Return what a process of its own said, and its complaints."""
    process = python(SETUP + script, *arguments)
    out, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    return out.splitlines(), complaints


def test_a_turn_that_is_stored_is_no_error_when_the_disk_is_full_as_the_log_of_an_older_removal_is_emptied(
    file,
) -> None:
    lines, complaints = said_by(
        """
async def main():
    sqlite_erasing._REWRITTEN = 0
    store = SQLiteStore(file)
    for number in range(12):
        await store.accept(new("x" * 250_000, number, "long-session"))
    await store.accept(new("bye", "bye", "session-b"))
    await store.delete(Owner(), "session-b")
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM turns").fetchone()
    for number in range(12, 16):
        await store.accept(new("x" * 250_000, number, "long-session"))
    await store.accept(new("bye", "bye", "session-b"))
    await store.delete(Owner(), "session-b")
    reader.close()
    room(file.stat().st_size + 8192)
    for number in range(40):
        print((await store.accept(new("hello", f"small-{number}"))).ticket.seq)
    room(resource.RLIM_INFINITY)
    store.close()
asyncio.run(main())
""",
        file,
    )
    assert lines == [str(seq) for seq in range(1, 41)]
    assert "is in use, what was removed stays in it for now" in complaints.splitlines()[0]
    assert "cannot be emptied (" in complaints.splitlines()[1]


def test_a_removal_that_is_stored_is_no_error_when_there_is_no_room_to_write_the_file_anew(file) -> None:
    lines, complaints = said_by(
        """
async def main():
    store = SQLiteStore(file)
    for number in range(6):
        await store.accept(new("x" * 250_000, number, "long-session"))
    await store.accept(new("bye", "bye"))
    await store.accept(new("bye", "bye-b", "session-b"))
    await store.delete(Owner(), "session-b")
    room(300_000)
    await store.delete(Owner(), "my-session")
    print([head.session_id for head in (await store.sessions(Owner(), limit=9)).sessions])
    room(resource.RLIM_INFINITY)
    await store.delete(Owner(), "not-there")
    store.close()
asyncio.run(main())
""",
        file,
    )
    assert lines == ["['long-session']"]
    assert complaints.count("\n") == 1
    assert "cannot be emptied (" in complaints


def test_a_key_that_is_forgotten_is_no_error_when_there_is_no_room_to_write_the_file_anew(file) -> None:
    lines, complaints = said_by(
        """
keys = SQLiteKeys(file)
for number in range(1000):
    keys.swap("owner", f"session-{number}", None, WrappedKey(b"k" * 100))
keys.put("owner", "session-0", WrappedKey(b"-mark"))
room(60_000)
keys.put("owner", "session-1", WrappedKey(b"-mark"))
print(keys.get("owner", "session-1").is_mark)
room(resource.RLIM_INFINITY)
keys.close()
""",
        file,
    )
    assert lines == ["True"]
    assert complaints.count("\n") == 1
    assert "cannot be written anew (disk I/O error), a forgotten key may be in it" in complaints


def test_a_forgotten_key_is_nowhere_in_the_file_whatever_keys_came_beside_it(tmp_path) -> None:
    chance, file = random.Random(0), tmp_path / "keys.sqlite3"
    keys = SQLiteKeys(file)
    names = [f"{chance.getrandbits(64):x}" for _ in range(150)]
    wrapped = {name: WrappedKey(f"zq73xkanary{name}".encode() * chance.randrange(3, 9)) for name in names}
    for name in names:
        keys.swap("owner", name, None, wrapped[name])
    for name in names[:145]:
        keys.swap("owner", name, wrapped[name], None)
    for name in names[145:]:
        keys.put("owner", name, WrappedKey(b"-mark"))
    assert [part.read_bytes().count(b"zq73xkanary") for part in tmp_path.iterdir()] == [0, 0, 0]
    keys.close()


async def test_a_large_file_is_not_written_anew_for_a_removal(file, store, monkeypatch) -> None:
    fill_in_bulk(file, "long-session", 300, text="some words " * 40)
    await fill(store, 1)
    ran: list[str] = []
    store._write.set_trace_callback(ran.append)
    monkeypatch.setattr(sqlite_erasing, "_REWRITTEN", 100_000)
    await store.delete(OWNER, "my-session")
    assert "VACUUM" not in ran
    assert (await store.accept(new("again", 1))).ticket.seq == 1
    monkeypatch.undo()
    await store.delete(OWNER, "my-session")
    assert ran.count("VACUUM") == 1
    assert await store.check() == ()


async def test_a_removal_of_nothing_writes_no_file_anew_and_empties_no_log(file, store, tmp_path) -> None:
    await fill(store, 1)
    keys, ran = SQLiteKeys(tmp_path / "keys.sqlite3"), []
    store._write.set_trace_callback(ran.append)
    keys._connection.set_trace_callback(ran.append)
    await store.delete(OWNER, "not-there")
    await store.purge(Owner(user="nobody"))
    keys.put("owner", "session", WrappedKey(b"-mark"))
    keys.clear("nobody")
    assert not [said for said in ran if said == "VACUUM" or "checkpoint" in said]
    await store.delete(OWNER, "my-session")
    keys.put("owner", "session", WrappedKey(b"-other"))
    assert ran.count("VACUUM") == 2
    keys.close()


async def test_a_file_that_takes_long_to_write_anew_rests_between_two_times(file, store, monkeypatch) -> None:
    monkeypatch.setattr(sqlite_erasing, "_LARGE", 1)
    monkeypatch.setattr(sqlite_erasing, "_REST", 10**9)
    await fill(store, 1)
    for number in range(3):
        await store.accept(new("bye", f"bye-{number}", f"session-{number}"))
    ran: list[str] = []
    store._write.set_trace_callback(ran.append)
    for number in range(3):
        await store.delete(OWNER, f"session-{number}")
    assert (ran.count("VACUUM"), file.with_name(f"{file.name}-wal").stat().st_size) == (1, 0)
    store._erasing._rests_until = 1e-9  # it is over
    await store.accept(new("more", 2))
    assert ran.count("VACUUM") == 2


async def test_what_a_process_that_has_ended_left_is_erased_by_the_next_that_writes(file, store) -> None:
    await store.accept(new("hello", 1))
    for number in range(2):
        await store.accept(new("zq73xkanary", "bye", "session-b"))
        reader = sqlite3.connect(file, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM turns").fetchone()
        lines, complaints = said_by(
            """
async def main():
    store = SQLiteStore(file)
    await store.delete(Owner(), "session-b")
    import os; print("removed", flush=True); os._exit(0)
asyncio.run(main())
""",
            file,
        )
        assert (lines, "is in use" in complaints) == (["removed"], True)
        reader.close()
        assert file.with_name(f"{file.name}-wal").read_bytes().count(b"zq73xkanary")
        for turn in range(16):
            await store.accept(new("hello", f"more-{number}-{turn}"))
        assert [part.read_bytes().count(b"zq73xkanary") for part in file.parent.iterdir()] == [0, 0, 0]
        assert store._write.execute("PRAGMA application_id").fetchone() == (0,)


def test_the_log_is_emptied_also_where_the_file_cannot_be_written_anew(file, caplog) -> None:
    file.parent.mkdir()
    fill_in_bulk(file, "long-session", 300, text="some words " * 40)
    with closing(sqlite_file.connect(file)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'turns'").fetchone()
    with file.open("r+b") as damaged:
        damaged.seek((page - 1) * 8192)
        damaged.write(b"\xff" * 8192)
    ran: list[str] = []
    with closing(sqlite_file.connect(file)) as connection:
        connection.set_trace_callback(ran.append)
        erasing = sqlite_erasing.Erasing(connection, file, "what was removed")
        erasing.note()
        erasing.after_write()
        assert "cannot be written anew (database disk image is malformed), what was removed may be in it" in caplog.text
        assert file.with_name(f"{file.name}-wal").stat().st_size == 0
        for _ in range(40):
            erasing.after_write()
    assert ran.count("VACUUM") == 1
