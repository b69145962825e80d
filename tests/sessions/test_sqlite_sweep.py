"""What has expired leaves the file, a few rows at a time, and nothing else does."""

import pytest

from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import items
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
from tests.sessions.sqlite_parts import OWNER, fill_in_bulk, new

pytestmark = pytest.mark.anyio
KEPT_S = 3600.0


def counts(store) -> dict[str, int]:
    tables = ("owners", "sessions", "turns", "requests")
    return {table: store._read.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


async def talk(store, session: str, turns: int, owner: Owner = OWNER, text: str = "q") -> None:
    for number in range(1, turns + 1):
        turn = new(text, f"{session}-{number}", session, owner)
        await store.finish((await store.accept(turn)).ticket, Outcome("complete", "stop", text))


@pytest.fixture
def short_lived(file, clock):
    store = SQLiteStore(file, clock=clock, retention_s=KEPT_S)
    yield store
    store.close()


async def test_opening_a_session_removes_what_has_expired_with_its_owner_and_nothing_else(short_lived, clock) -> None:
    await talk(short_lived, "session-old", 5, Owner(user="zq73xkanary"), "zq73xkanary")
    await short_lived.purge(Owner(user="zq73xkanary-too"), closed_s=KEPT_S)
    clock.now += KEPT_S - 60
    await talk(short_lived, "session-kept", 3)
    clock.now += 60
    assert counts(short_lived) == {"owners": 3, "sessions": 2, "turns": 8, "requests": 8}
    await talk(short_lived, "session-new", 1)
    assert counts(short_lived) == {"owners": 1, "sessions": 2, "turns": 4, "requests": 4}
    assert [t.seq for t in await short_lived.page(OWNER, "session-kept", limit=9)] == [1, 2, 3]
    await short_lived.delete(OWNER, "session-new")  # empties the log too
    for part in short_lived._file.parent.iterdir():
        assert b"zq73xkanary" not in part.read_bytes()


async def test_a_file_of_sessions_that_come_and_go_stops_growing(short_lived, clock, file) -> None:
    sizes = []
    for number in range(360):
        clock.now += KEPT_S / 60  # sixty are alive at any time
        fill_in_bulk_for(file, f"session-{number}", clock.now)
        await talk(short_lived, f"session-own-{number}", 1)
        if number % 60 == 59:
            short_lived._write.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            sizes.append(file.stat().st_size)
    assert counts(short_lived)["sessions"] <= 60 * 2 * 1.5
    assert sizes[-1] <= 1.25 * sizes[1]
    assert await short_lived.check() == ()


def fill_in_bulk_for(file, session: str, now: float) -> None:
    fill_in_bulk(file, session, 20, now=now, text="some words " * 50, retention_s=KEPT_S)


async def test_a_long_session_goes_in_steps_and_reads_as_gone_all_the_while(short_lived, clock, file) -> None:
    fill_in_bulk(file, "long-session", 500, now=clock.now, retention_s=KEPT_S)
    clock.now += KEPT_S + 1
    left = []
    for number in range(9):
        await talk(short_lived, f"session-{number}", 1)
        left.append(counts(short_lived)["turns"] - (number + 1))
        assert await short_lived.load(OWNER, "long-session", limit=9) == await short_lived.load(OWNER, "none", limit=9)
        assert await short_lived.check() == ()
    assert left[:3] == [436, 372, 308]
    assert left[-1] == 0
    assert counts(short_lived) == {"owners": 1, "sessions": 9, "turns": 9, "requests": 9}


async def test_a_long_session_that_never_ends_sweeps_too(file, clock) -> None:
    store = SQLiteStore(file, clock=clock)
    await talk(store, "my-session", 20)
    clock.now += items.REQUEST_S
    await talk(store, "my-other-session", 1)
    assert counts(store) == {"owners": 1, "sessions": 2, "turns": 21, "requests": 1}
    clock.now += items.REQUEST_S
    for number in range(21, 34):
        await store.accept(NewTurn(OWNER, "my-session", f"later-{number}", "q", 1))
    assert counts(store)["requests"] == 13  # turn 33 found the old one
    assert len(await store.page(OWNER, "my-session", limit=99)) == 33
    store.close()
