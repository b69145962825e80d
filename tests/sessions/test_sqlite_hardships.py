"""Long sessions, odd names, damage, disks that are full or read only, and clocks that jump: order and history stay."""

import contextlib
import os
import sqlite3
import subprocess
import time

import pytest

from chatkit.conversation import Conversation
from chatkit.errors import Conflict, NotFound, StoreFailed
from chatkit.protocols import NewTurn, Outcome, SessionHead
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
from tests.sessions.sqlite_parts import OWNER, behind_its_back, fill, fill_in_bulk, new, python

pytestmark = pytest.mark.anyio
TURN_2 = "seq = 2 AND session = (SELECT id FROM sessions WHERE name = 'my-session')"
DAY = 86400.0


async def test_a_session_of_ten_thousand_turns_is_read_and_goes_on(file, store) -> None:
    fill_in_bulk(file, "long-session", 10_000, now=time.time())
    loaded = (await store.load(OWNER, "long-session", limit=40)).turns
    assert [t.seq for t in loaded] == list(range(9961, 10_001))
    read: list[int] = []
    while page := await store.page(OWNER, "long-session", limit=999, after=len(read)):
        assert [(t.user, t.assistant) for t in page] == [(f"q{t.seq}", f"a{t.seq}") for t in page]
        read += [t.seq for t in page]
    assert read == list(range(1, 10_001))
    assert (await store.accept(NewTurn(OWNER, "long-session", "next", "q", 1, after=10_000))).ticket.seq == 10_001
    assert (await store.accept(NewTurn(OWNER, "long-session", "edit", "q", 1, replaces=3))).ticket.seq == 10_002
    assert [t.seq for t in await store.load(OWNER, "long-session", limit=40)] == [1, 2, 10_002]
    assert (await store.accept(NewTurn(OWNER, "long-session", "request-long-session-1", "q1", 2))).repeat.seq == 1
    assert [head.turns for head in (await store.sessions(OWNER, limit=9)).sessions] == [10_002]


async def steps(store, work) -> int:
    """Return how many instructions of SQLite's machine the reader takes."""
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1

    store._read.set_progress_handler(count, 1)
    await work
    store._read.set_progress_handler(None, 1)
    return taken


async def test_what_a_long_session_costs_to_load_is_what_a_short_one_costs(file, store) -> None:
    fill_in_bulk(file, "short-session", 50)
    fill_in_bulk(file, "long-session", 10_000)
    for verb, more in ((store.load, {}), (store.page, {"after": 20})):
        short = await steps(store, verb(OWNER, "short-session", limit=20, **more))
        assert 20 < short < 2000
        assert await steps(store, verb(OWNER, "long-session", limit=20, **more)) == short


async def test_names_of_every_odd_character_are_names(file, store) -> None:
    odd = [chr(code) for code in range(1, 128)] + list("äß漢🙂\u2028\u200b\ufeff\U0010ffff")
    names = [f"{letter}{number:07}" for number, letter in enumerate(odd)] + ["".join(odd), "../../etc/passwd", "%00"]
    for number, name in enumerate(names):
        turn = NewTurn(Owner(name, name), name, f"r{name}", f"text {number}", 6 + len(str(number)))
        await store.finish((await store.accept(turn)).ticket, Outcome("complete", "stop", name))
    for number, name in enumerate(names):
        owner = Owner(name, name)
        (kept,) = await store.page(owner, name, limit=9)
        assert (kept.user, kept.assistant, kept.request_id) == (f"text {number}", name, f"r{name}")
        (head,) = (await store.sessions(owner, limit=9)).sessions
        assert head.session_id == name
    assert await store.check() == ()
    for name in names[::2]:
        await store.delete(Owner(name, name), name)
    for name in names[1::2]:
        assert await store.purge(Owner(name, name), closed_s=0) == 1
    for table in ("owners", "sessions", "turns", "requests"):
        assert store._read.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


@pytest.mark.parametrize("damage", ["{", "null", "", b"\xff\xfe\x80", '{"seq": 2, "user": "q", "user_length": 1}'])
async def test_a_damaged_turn_is_left_out_and_the_rest_of_the_session_stays(file, store, caplog, damage) -> None:
    await fill(store, 3)
    value = damage if isinstance(damage, str) else sqlite3.Binary(damage)
    assert behind_its_back(file, f"UPDATE turns SET body = CAST(? AS TEXT) WHERE {TURN_2}", value) == 1
    assert [t.seq for t in await store.load(OWNER, "my-session", limit=9)] == [1, 3]
    assert [t.seq for t in await store.page(OWNER, "my-session", limit=9)] == [1, 3]
    assert "T#0000000002 of a session is damaged" in caplog.text
    with pytest.raises((StoreFailed, Conflict)):
        await store.accept(new("another", 2))
    assert (await store.accept(new("new", 4))).ticket.seq == 4


@pytest.mark.parametrize("damage", ["{", "null", "{}", '{"version": 1}', '{"version": "x", "created_at": 5}'])
async def test_a_damaged_session_is_listed_as_damaged_and_the_rest_stays(file, store, damage) -> None:
    for name in ("my-session", "my-session-2"):
        await store.accept(NewTurn(OWNER, name, f"request-{name}", "q", 1))
    assert behind_its_back(file, "UPDATE sessions SET body = ? WHERE name = 'my-session'", damage) == 1
    whole, damaged = (await store.sessions(OWNER, limit=9)).sessions
    assert (whole.session_id, whole.turns, whole.damaged) == ("my-session-2", 1, False)
    assert damaged == SessionHead("my-session", 0, damaged.created_at, damaged=True)
    assert 0 < damaged.created_at < whole.created_at + 1
    assert [t.user for t in await store.load(OWNER, "my-session", limit=9)] == ["q"]
    assert [t.user for t in await store.page(OWNER, "my-session", limit=9)] == ["q"]
    await store.delete(OWNER, "my-session")
    assert b'request-my-session"' not in file.read_bytes()
    assert await store.check() == ()


@pytest.mark.parametrize("damage", ["{", '{"version": "x", "created_at": 5}'])
async def test_a_session_whose_own_entry_is_damaged_takes_no_turn_and_says_so(file, store, damage) -> None:
    await fill(store, 2)
    behind_its_back(file, "UPDATE sessions SET body = ?", damage)
    with pytest.raises(StoreFailed, match="holds a damaged entry 'Z#META'; start a new session"):
        await store.accept(new("q", 3))
    assert [t.seq for t in await store.load(OWNER, "my-session", limit=9)] == [1, 2]


async def test_damaged_sessions_of_an_older_file_are_listed_last_page_by_page(file, store) -> None:
    names = [f"session-{number}" for number in range(6)]
    for name in names:
        await store.accept(NewTurn(OWNER, name, f"request-{name}", "q", 1))
    assert behind_its_back(file, "UPDATE sessions SET body = '', opened = NULL WHERE name > 'session-2'") == 3
    found, cursor = [], None
    while not found or cursor is not None:
        page = await store.sessions(OWNER, limit=2, cursor=cursor)
        found, cursor = [*found, *((head.session_id, head.damaged) for head in page.sessions)], page.cursor
    assert sorted(found[:3]) == [(name, False) for name in names[:3]]
    assert found[3:] == [(name, True) for name in names[:2:-1]]


async def test_a_damaged_session_ends_when_it_was_to_end_and_says_when(file, clock) -> None:
    store = SQLiteStore(file, clock=clock, retention_s=10.0)
    await fill(store, 2)
    behind_its_back(file, "UPDATE sessions SET body = '['")
    assert (await store.load(OWNER, "my-session", limit=9)).expires_at == 1010
    (head,) = (await store.sessions(OWNER, limit=9)).sessions
    assert head == SessionHead("my-session", 0, 1000.0, 1010, damaged=True)
    clock.now = 1010
    assert (await store.sessions(OWNER, limit=9)).sessions == ()
    assert await store.page(OWNER, "my-session", limit=9) == ()
    assert await store.load(OWNER, "my-session", limit=9) == Conversation()
    store.close()


async def test_a_session_is_removed_though_its_entries_are_damaged(file, store) -> None:
    await fill(store, 3)
    behind_its_back(file, "UPDATE sessions SET body = '['")
    behind_its_back(file, "UPDATE requests SET session = NULL WHERE name = 'request-1'")
    behind_its_back(file, "UPDATE turns SET body = json_set(body, '$.request_id', 5) WHERE seq = 2")
    await store.delete(OWNER, "my-session")
    assert store._read.execute("SELECT name FROM requests").fetchall() == [("request-2",)]
    assert store._read.execute("SELECT (SELECT count(*) FROM sessions) + (SELECT count(*) FROM turns)").fetchone() == (
        0,
    )


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
    assert lines[1] == "['a1', 'a2', 'a3']"
    assert int(lines[2]) >= 4
    assert complaints.count("\n") == 1
    assert complaints.startswith(f"the session store {file} failed: ")


async def talk_until_refused(store, size: int) -> int:
    """Have turns until the store refuses one; return how many were acknowledged, and all of them are there."""
    done = 0
    with contextlib.suppress(StoreFailed):
        for number in range(1, 1000):
            ticket = (await store.accept(new("x" * size, number))).ticket
            await store.finish(ticket, Outcome("complete", "stop", f"a{number}"))
            done = number
    with pytest.raises(StoreFailed, match="the session store did not answer; send the request again later"):
        await store.accept(new("x" * size, "one more"))
    turns = await store.page(OWNER, "my-session", limit=1000)
    assert [t.seq for t in turns] == list(range(1, len(turns) + 1))
    assert [t.assistant for t in turns][:done] == [f"a{n}" for n in range(1, done + 1)]
    assert done <= len(turns) <= done + 1
    return done


async def test_a_file_that_may_not_grow_takes_turns_again_once_something_is_removed(file, store, caplog) -> None:
    fill_in_bulk(file, "old-session", 200, text="some words " * 50)
    pages = store._write.execute("PRAGMA page_count").fetchone()[0]
    store._write.execute(f"PRAGMA max_page_count = {pages + 20}")
    assert await talk_until_refused(store, 20_000) > 2
    assert caplog.records[-1].getMessage() == f"the session store {file} failed: database or disk is full"
    assert len(await store.page(OWNER, "old-session", limit=999)) == 200
    turns = await store.page(OWNER, "my-session", limit=999)
    await store.delete(OWNER, "old-session")
    assert (await store.accept(new("x" * 20_000, "next"))).ticket.seq == len(turns) + 1
    assert await store.check() == ()


def mount(how: str, folder) -> None:
    subprocess.run(["mount", "-o", how, folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a file system can be mounted by root alone: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_real_full_disk_keeps_what_was_acknowledged_and_goes_on_when_there_is_room(disk, caplog) -> None:
    (disk / "ballast").write_bytes(b"x" * 1_000_000)
    store = SQLiteStore(disk / "sessions.sqlite3")
    assert await talk_until_refused(store, 5000) > 10
    assert "database or disk is full" in caplog.text
    turns = await store.page(OWNER, "my-session", limit=1000)
    store.close()
    store = SQLiteStore(disk / "sessions.sqlite3")  # a service that is started again there
    assert await store.page(OWNER, "my-session", limit=1000) == turns
    (disk / "ballast").unlink()
    assert (await store.accept(new("next", "next"))).ticket.seq == len(turns) + 1
    assert await store.check() == ()
    store.close()


async def test_a_file_on_a_disk_that_is_read_only_is_refused_and_its_copy_elsewhere_is_good(disk, tmp_path) -> None:
    store = SQLiteStore(disk / "sessions.sqlite3")
    await fill(store, 3)
    store.close()
    mount("remount,ro", disk)
    with pytest.raises(StoreFailed, match=r"Read-only file system.*; make file and folder writable, or copy the file"):
        SQLiteStore(disk / "sessions.sqlite3")
    copy = tmp_path / "sessions.sqlite3"
    copy.write_bytes((disk / "sessions.sqlite3").read_bytes())
    store = SQLiteStore(copy)
    assert [t.assistant for t in await store.load(OWNER, "my-session", limit=9)] == ["a1", "a2", "a3"]
    store.close()
    mount("remount,rw", disk)
    store = SQLiteStore(disk / "sessions.sqlite3")
    assert (await store.accept(new("q", 4))).ticket.seq == 4
    store.close()


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="file permissions of another user need POSIX")
@pytest.mark.parametrize("there", [True, False])
async def test_a_read_only_folder_is_store_failed_in_one_line_that_says_what_to_do(tmp_path, there) -> None:
    target = tmp_path / "closed" / "sessions.sqlite3"
    target.parent.mkdir()
    if there:
        store = SQLiteStore(target)
        await fill(store, 2)
        store.close()
        target.chmod(0o444)
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
    assert "copy the file to a folder that is and name that with --home" in out
    assert out.count("\n") == 1
    assert complaints == ""


async def test_a_folder_that_cannot_be_made_is_store_failed_naming_the_file(tmp_path) -> None:
    (tmp_path / "home").write_text("in the way")
    with pytest.raises(StoreFailed, match=r"sessions\.sqlite3' cannot be opened: .*; check its folder") as caught:
        SQLiteStore(tmp_path / "home" / "sessions.sqlite3")
    assert "\n" not in str(caught.value)


async def test_a_clock_that_jumps_a_day_forth_and_back_changes_no_order(file, clock) -> None:
    store = SQLiteStore(file, clock=clock)
    clock.now = now = 100 * DAY
    for number, jump in enumerate((0, DAY, -DAY, 0, 2 * DAY, -2 * DAY, 1), start=1):
        clock.now = now + jump
        await store.finish((await store.accept(new("q", number))).ticket, Outcome("complete", "stop", f"a{number}"))
        turns = (await store.load(OWNER, "my-session", limit=99)).turns
        assert [t.assistant for t in turns] == [f"a{n}" for n in range(1, number + 1)]
    assert await store.page(OWNER, "my-session", limit=99) == turns
    assert (await store.accept(new("q", 1))).repeat.seq == 1
    assert await store.check() == ()
    store.close()


async def test_a_turn_that_a_jump_of_the_clock_overtakes_is_taken_up_and_never_answered_twice(file, clock) -> None:
    store = SQLiteStore(file, clock=clock)
    first = (await store.accept(new("q", 1))).ticket
    clock.now += DAY
    second = (await store.accept(new("q", 1))).ticket
    assert (second.seq, second.attempt) == (1, 2)
    clock.now -= DAY
    with pytest.raises(Conflict):
        await store.finish(first, Outcome("complete", "stop", "first"))
    await store.finish(second, Outcome("complete", "stop", "second"))
    assert [t.assistant for t in await store.load(OWNER, "my-session", limit=9)] == ["second"]
    store.close()


async def test_a_session_seen_as_expired_by_a_clock_ahead_is_there_again_when_it_is_set_right(file, clock) -> None:
    store = SQLiteStore(file, clock=clock, retention_s=DAY / 2)
    await store.finish((await store.accept(new("q", 1, "session-a"))).ticket, Outcome("complete", "stop", "a"))
    clock.now += DAY
    with pytest.raises(NotFound):
        await store.page(OWNER, "session-a", limit=9)
    clock.now -= DAY
    assert [t.assistant for t in await store.page(OWNER, "session-a", limit=9)] == ["a"]
    store.close()
