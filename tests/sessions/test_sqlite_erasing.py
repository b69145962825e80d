"""What a removal leaves in a file: nothing, and where that cannot be done at once, no error for what is stored."""

import random

import pytest

from chatkit.sessions import sqlite_erasing
from chatkit.sessions.key_shelves import SQLiteKeys
from chatkit.sessions.session_keys import WrappedKey
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
    await store.delete(Owner(), "not-there")
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
    assert "a forgotten key stays in it for now" in complaints


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
