"""What the check of a file finds: each kind of damage is named, and a good file has none."""

import asyncio
from dataclasses import replace

import pytest

from chatkit.protocols import Outcome
from chatkit.sessions import sqlite_check
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
from tests.sessions.sqlite_parts import behind_its_back, fill, fill_in_bulk, new

pytestmark = pytest.mark.anyio
MINE = "session 'my-session' of owner T#default#U#anonymous"
TURN = "SELECT id FROM sessions WHERE name = 'my-session'"


@pytest.fixture
async def filled(file, store):
    """A store with five turns in `my-session`, and three in one of another owner."""
    await fill(store, 5)
    fill_in_bulk(file, "session-b", 3, owner=Owner(user="b"))
    return store


async def test_a_good_file_has_no_faults_whatever_is_in_it(filled) -> None:
    ticket = (await filled.accept(new("q", 6))).ticket
    await filled.finish(ticket, Outcome("blocked", "content_filter", label="needs caution"))
    await filled.accept(replace(new("again", 7), replaces=2))
    await filled.accept(replace(new("", 8), status="blocked", label="needs caution"))
    turns = await filled.page(Owner(user="b"), "session-b", limit=9)
    await filled.restore(Owner(user="c"), "ä漢🙂 #S#", turns, expires_at=None)
    await filled.delete(Owner(user="b"), "session-b")
    await filled.purge(Owner(user="d"))
    assert await filled.check() == ()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DELETE FROM turns WHERE seq = 3", [f"{MINE} has no turn 3"]),
        ("DELETE FROM turns WHERE seq IN (2, 3, 4)", [f"{MINE} has no turns 2 to 4"]),
        ("DELETE FROM turns WHERE seq = 1", [f"{MINE} has no turn 1"]),
        ("DELETE FROM turns WHERE seq = 5", [f"{MINE} counts 5 turns, and its newest is 4"]),
        ("UPDATE turns SET body = '{' WHERE seq = 2", [f"turn 2 of {MINE} cannot be read"]),
        ("UPDATE turns SET body = CAST(x'fffe80' AS TEXT) WHERE seq = 2", [f"turn 2 of {MINE} cannot be read"]),
        ("UPDATE turns SET body = '{\"seq\": 2}' WHERE seq = 2", [f"turn 2 of {MINE} cannot be read"]),
        (
            "UPDATE turns SET body = json_set(body, '$.seq', 9) WHERE seq = 2",
            [f"turn 2 of {MINE} says that it is turn 9"],
        ),
        (
            "UPDATE turns SET body = json_set(body, '$.replaces', 2) WHERE seq = 2",
            [f"turn 2 of {MINE} replaces 2, which is no older turn"],
        ),
        (
            "UPDATE turns SET body = json_set(body, '$.request_id', 'else') WHERE seq = 4",
            [f"turn 4 of {MINE} has lost its request 'else'",
             "request 'request-4' of owner T#default#U#anonymous points at turn 4 of session 'my-session', "
             "which is of request 'else'"],
        ),
    ],
)  # fmt: skip
async def test_a_damaged_turn_is_named(filled, file, damage, said) -> None:
    where = f"{damage} AND session = ({TURN})"
    assert behind_its_back(file, where) > 0
    found = await filled.check()
    gone = [s for s in found if "which is not there" in s]
    assert [s for s in found if s not in gone] == said
    removed = behind_its_back(
        file,
        f"DELETE FROM requests WHERE seq NOT IN (SELECT seq FROM turns WHERE session = ({TURN})) "
        "AND session = 'my-session'",
    )
    assert len(gone) == removed


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE sessions SET body = 'null'", f"the own entry of {MINE} cannot be read"),
        ('UPDATE sessions SET body = \'{"version": "x", "created_at": 5}\'', f"the own entry of {MINE} cannot be read"),
        ("UPDATE sessions SET body = json_set(body, '$.version', 7)", f"{MINE} counts 7 turns, and its newest is 5"),
        ("UPDATE sessions SET body = json_set(body, '$.version', 4)", f"{MINE} counts 4 turns, and its newest is 5"),
    ],
)
async def test_a_damaged_session_is_named(filled, file, damage, said) -> None:
    assert behind_its_back(file, f"{damage} WHERE name = 'my-session'") == 1
    assert await filled.check() == (said,)


async def test_a_turn_whose_number_is_none_is_named_and_the_rest_is_looked_at(filled, file) -> None:
    behind_its_back(file, f"UPDATE turns SET seq = 'x' WHERE session = ({TURN}) AND seq = 5")
    behind_its_back(file, f"UPDATE turns SET seq = 3.5 WHERE session = ({TURN}) AND seq = 4")
    found = await filled.check()
    assert f"{MINE} has a turn of the number 'x', which is none" in found
    assert f"{MINE} has a turn of the number 3.5, which is none" in found
    assert f"{MINE} counts 5 turns, and its newest is 3" in found


async def test_turns_and_requests_that_belong_to_nothing_are_named(filled, file) -> None:
    (number,) = filled._read.execute(TURN).fetchone()
    behind_its_back(file, "DELETE FROM sessions WHERE name = 'my-session'")
    behind_its_back(file, "DELETE FROM requests WHERE seq > 1")
    owner = "owner T#default#U#anonymous"
    assert await filled.check() == (
        f"5 turns are in no session; the number of theirs was {number}",
        f"request 'request-1' of {owner} points at turn 1 of session 'my-session', which is not there",
    )


async def test_a_turn_whose_request_is_lost_or_another_turns_is_named(file, clock) -> None:
    clock.now = 1_700_000_000.0
    store = SQLiteStore(file, clock=clock)
    await fill(store, 5)
    behind_its_back(file, "DELETE FROM requests WHERE name = 'request-2'")
    behind_its_back(file, "UPDATE turns SET body = json_set(body, '$.request_id', 'request-3') WHERE seq = 4")
    owner, other = Owner(), Owner(user="other")
    fill_in_bulk(file, "session-b", 1, owner=owner, now=clock.now)
    fill_in_bulk(file, "session-b", 1, owner=other, now=clock.now)
    body = "UPDATE turns SET body = json_set(body, '$.request_id', 'request-session-b-1') WHERE seq = 5"
    behind_its_back(file, f"{body} AND session = ({TURN})")
    found = await store.check()
    assert found[:3] == (
        f"turn 2 of {MINE} has lost its request 'request-2'",
        f"turns 3 and 4 of {MINE} have one request id",
        f"turn 5 of {MINE} and turn 1 of session 'session-b' have one request id",
    )
    assert [sentence.split(" of owner ")[0] for sentence in found[3:]] == ["request 'request-4'", "request 'request-5'"]
    clock.now += 7 * 86400
    assert await store.check() == (f"turns 3 and 4 of {MINE} have one request id",)
    store.close()


async def test_a_request_id_that_is_used_again_when_it_is_forgotten_is_no_fault(file, clock) -> None:
    store = SQLiteStore(file, clock=clock)
    for _ in range(3):
        await fill(store, 1)
        clock.now += 7 * 86400 + 1
    turns = await store.page(Owner(), "my-session", limit=9)
    assert [turn.request_id for turn in turns] == ["request-1"] * 3
    assert await store.check() == ()
    await store.restore(Owner(user="heir"), "my-session", turns, expires_at=None)
    assert await store.check() == ()
    store.close()


async def test_a_damaged_request_is_named(filled, file) -> None:
    behind_its_back(file, "UPDATE requests SET session = NULL WHERE name = 'request-2'")
    behind_its_back(file, "UPDATE requests SET seq = 4 WHERE name = 'request-3'")
    owner = "owner T#default#U#anonymous"
    assert await filled.check() == (
        f"request 'request-2' of {owner} cannot be read",
        f"request 'request-3' of {owner} points at turn 4 of session 'my-session', which is of request 'request-4'",
    )


async def test_what_has_expired_is_not_looked_at(file, clock) -> None:
    store = SQLiteStore(file, clock=clock, retention_s=10.0)
    await fill(store, 3)
    behind_its_back(file, "DELETE FROM turns WHERE seq = 1")
    assert len(await store.check()) == 2
    clock.now += 10
    assert await store.check() == ()
    store.close()


async def test_pages_that_were_overwritten_are_named_and_it_goes_on_as_far_as_it_can(file) -> None:
    store = SQLiteStore(file)
    fill_in_bulk(file, "my-session", 300, text="some words " * 40)
    store.close()
    with file.open("r+b") as damaged:
        damaged.seek(8192 * 12)
        damaged.write(b"\xa5" * 8192 * 3)
    store = SQLiteStore(file)
    found = await store.check()
    assert found[0].startswith(("the database is damaged: ", "the database cannot be read to its end: "))
    assert any(MINE in sentence or "table of sessions" in sentence for sentence in found[1:])
    assert all(len(sentence) < 500 for sentence in found)
    store.close()


async def test_a_list_of_faults_has_an_end(file, store, monkeypatch) -> None:
    monkeypatch.setattr(sqlite_check, "MOST", 5)
    fill_in_bulk(file, "my-session", 30)
    behind_its_back(file, "UPDATE turns SET body = ''")
    found = await store.check()
    assert found == (
        *(f"turn {n} of {MINE} cannot be read" for n in range(1, 6)),
        "there is more; these are the first 5",
    )


async def test_turns_go_on_while_a_file_is_checked_as_it_was_at_the_start(file, store) -> None:
    fill_in_bulk(file, "long-session", 2000, text="some words " * 20)
    results = await asyncio.gather(store.check(), fill(store, 30), store.check())
    assert (results[0], results[2]) == ((), ())
    assert await store.check() == ()
