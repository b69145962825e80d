"""The keys of sessions: who makes them, how long they are kept, and what is said where they are missing or wrong."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from chatkit import wiring
from chatkit.errors import Conflict, NotFound, StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import key_shelves
from chatkit.sessions.encryption import EncryptedStore
from chatkit.sessions.key_shelves import DynamoDBKeys, SQLiteKeys
from chatkit.sessions.master_keys import KeyFile
from chatkit.sessions.session_keys import CannotUnwrap, KeyRing, WrappedKey
from chatkit.settings import load_settings
from chatkit.testing import MemoryStore
from chatkit.types import Owner
from tests import ministack
from tests.encrypted import key_file
from tests.faults.proxy import Fault, Faults, Proxy

pytestmark = pytest.mark.anyio
OWNER = Owner()
DAY = 86400.0


@pytest.fixture
def master(tmp_path):
    return key_file(tmp_path)


@pytest.fixture(params=["sqlite", "dynamodb"])
def shelf(request, tmp_path):
    if request.param == "sqlite":
        made = SQLiteKeys(tmp_path / "home" / "session-keys.sqlite3", clock=lambda: 0.0)
    else:
        address = request.getfixturevalue("dynamodb")
        made = DynamoDBKeys(ministack.new_table(address), endpoint=address)
    yield made
    made.close()


@pytest.fixture
def proxy(dynamodb):
    made = Proxy(dynamodb)
    yield made
    made.close()


def new(number=1, session_id="my-session", text="Hello", **more) -> NewTurn:
    return NewTurn(OWNER, session_id, f"request-{session_id}-{number}", text, len(text), **more)


async def talk(store, number=1, session_id="my-session", **more) -> None:
    ticket = (await store.accept(new(number, session_id, **more))).ticket
    await store.finish(ticket, Outcome("complete", "stop", "Hi."))


async def answers(store, session_id="my-session") -> list[str]:
    return [turn.assistant for turn in await store.load(OWNER, session_id, limit=99)]


def opened(home, session_keys="", **more):
    return wiring.open_store(load_settings({"home": str(home), "session_keys": str(session_keys), **more}))


def test_a_shelf_swaps_what_is_there_and_leaves_alone_what_is_not(shelf) -> None:
    first, second, mark = WrappedKey(b"first", 2000), WrappedKey(b"second"), WrappedKey(b"-mark")
    assert shelf.get("me", "one") is None
    shelf.swap("me", "one", second, first)
    assert shelf.get("me", "one") is None
    shelf.swap("me", "one", None, first)
    shelf.swap("me", "one", None, second)
    shelf.swap("me", "one", second, mark)
    shelf.swap("me", "one", second, None)
    assert shelf.get("me", "one") == first
    shelf.swap("me", "one", first, second)
    assert shelf.get("me", "one") == second
    shelf.put("me", "one", mark)
    assert shelf.get("me", "one") == mark
    shelf.swap("me", "one", mark, None)
    assert shelf.get("me", "one") is None


def test_the_file_of_keys_is_synced_and_overwritten_with_zeros_and_for_its_owner_alone(tmp_path) -> None:
    shelf = SQLiteKeys(tmp_path / "home" / "keys.sqlite3")
    shelf.swap("me", "one", None, WrappedKey(b"key"))
    asked = ("journal_mode", "synchronous", "secure_delete")
    set_to = [shelf._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]
    assert set_to == ["wal", 2, 1]  # FULL, ON
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "home").iterdir()}
    assert modes == {"keys.sqlite3": 0o600, "keys.sqlite3-shm": 0o600, "keys.sqlite3-wal": 0o600}
    shelf.close()


def test_a_shelf_that_cannot_be_opened_or_read_is_store_failed(tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreFailed, match=r"the keys of sessions '.*' cannot be opened: .*; check the file"):
        SQLiteKeys(tmp_path / "file" / "keys.sqlite3")
    with pytest.raises(StoreFailed, match="cannot be opened: file is not a database"):
        SQLiteKeys(tmp_path / "file")
    shelf = SQLiteKeys(tmp_path / "keys.sqlite3")
    shelf._connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "keys.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailed, match="the keys of sessions did not answer; send the request again later"):
        shelf.swap("me", "one", None, WrappedKey(b"key"))
    assert caplog.messages == [f"the keys of sessions {tmp_path / 'keys.sqlite3'} failed: database is locked"]
    other.close()
    shelf.close()


def test_a_file_that_another_process_is_making_is_waited_for(tmp_path) -> None:
    other = sqlite3.connect(tmp_path / "keys.sqlite3", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE another (name TEXT)")
    ending = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    ending.start()
    SQLiteKeys(tmp_path / "keys.sqlite3").close()
    ending.join()
    other.close()


def test_a_shelf_is_cleared_of_one_owner(shelf) -> None:
    for number in range(60):
        shelf.swap("me", f"session-{number}", None, WrappedKey(b"key"))
    shelf.put("me too", "one", WrappedKey(b"key"))
    for _ in range(2):
        shelf.clear("me")
    assert [shelf.get("me", f"session-{number}") for number in range(60)] == [None] * 60
    assert shelf.get("me too", "one") == WrappedKey(b"key")


def test_what_another_program_wrote_is_the_key_of_no_session(dynamodb, master) -> None:
    table = ministack.new_table(dynamodb)
    shelf = DynamoDBKeys(table, endpoint=dynamodb)
    ring = KeyRing(shelf, KeyFile(master))
    ring.make(OWNER, "my-session", None, None)
    (item,) = (row for row in _items(dynamodb, table))
    for wrong in ({"S": "?"}, {"S": "é"}, {"N": "1"}, {"NULL": True}, {"S": ""}):
        _put(dynamodb, table, item | {"wrapped": wrong})
        kept, key = ring.fresh(OWNER, "my-session")
        assert (kept.is_mark, key) == (False, None)
    ring.close()


def started(*command) -> subprocess.Popen:
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _items(address, table):
    return _client(address).scan(TableName=table)["Items"]


def _put(address, table, item) -> None:
    _client(address).put_item(TableName=table, Item=item)


def _client(address):
    return ministack._maker(address).client


def test_a_wrapped_key_opens_for_its_session_and_its_master_key_alone(tmp_path, master) -> None:
    one, other = KeyFile(master), KeyFile(key_file(tmp_path, "other.key"))
    key, wrapped = one.new("a")
    assert (len(key), KeyFile(master).unwrap(wrapped, "a")) == (64, key)
    assert one.new("a")[0] != key
    assert key not in wrapped
    for wrong, session, by in (
        (wrapped, "b", one),
        (wrapped, "a", other),
        (wrapped[:-1], "a", one),
        (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), "a", one),
        (wrapped[:12], "a", one),
        (b"", "a", one),
    ):
        with pytest.raises(CannotUnwrap):
            by.unwrap(wrong, session)


def test_sessions_and_owners_have_keys_of_their_own(master, shelf) -> None:
    ring = KeyRing(shelf, KeyFile(master))
    owners = [(OWNER, "one"), (OWNER, "two"), (Owner(user="other"), "one"), (Owner("default#U", "anonymous"), "one")]
    for owner, session in owners:
        ring.make(owner, session, None, None)
    wrapped = {ring.fresh(owner, session)[0].wrapped for owner, session in owners}
    assert len(wrapped) == 4
    sealed = ring.held(OWNER, "one").seal("text", "request", "user")
    for owner, session in owners[1:]:
        with pytest.raises(ValueError, match="not encrypted under this key"):
            ring.held(owner, session).unseal(sealed, "request", "user")
    assert ring.held(OWNER, "one").unseal(sealed, "request", "user") == "text"


async def test_many_who_open_one_session_at_once_agree_on_one_key(tmp_path, master) -> None:
    script = """
import asyncio, sys
from chatkit import wiring
from chatkit.protocols import NewTurn, Outcome
from chatkit.settings import load_settings
from chatkit.types import Owner
async def main(home, keys, name):
    store = wiring.open_store(load_settings({"home": home, "session_keys": keys}))
    async def say(session):
        turn = NewTurn(Owner(), f"session-{session}", f"request-{session}-{name}", name, len(name))
        await store.finish((await store.accept(turn)).ticket, Outcome("complete", "stop", name))
    await asyncio.gather(*(say(session) for session in range(20)))
    store.close()
asyncio.run(main(*sys.argv[1:]))
"""
    arguments = [sys.executable, "-c", script, tmp_path / "home", f"file:{master}"]
    openers = [started(*arguments, name) for name in "abc"]
    assert [(opener.communicate(timeout=120)[1], opener.returncode) for opener in openers] == [("", 0)] * 3
    store = opened(tmp_path / "home", f"file:{master}")
    for session in range(20):
        turns = await store.load(OWNER, f"session-{session}", limit=9)
        assert sorted((turn.user, turn.assistant) for turn in turns) == [("a", "a"), ("b", "b"), ("c", "c")]
    store.close()


async def test_many_rings_over_one_table_agree_on_one_key(dynamodb, master) -> None:
    table = ministack.new_table(dynamodb)
    shelves = [DynamoDBKeys(table, endpoint=dynamodb) for _ in range(4)]
    rings = [KeyRing(shelf, KeyFile(master)) for shelf in shelves]
    for session in range(10):
        name = f"session-{session}"
        makers = (asyncio.to_thread(ring.make, OWNER, name, None, None) for ring in rings for _ in range(2))
        await asyncio.gather(*makers)
        assert len({ring.fresh(OWNER, name)[0].wrapped for ring in rings}) == 1
    assert len(_items(dynamodb, table)) == 10
    for shelf in shelves:
        shelf.close()


async def test_a_key_ends_with_its_session_and_the_next_one_of_that_name_has_another(tmp_path, master) -> None:
    now = [1000.0]
    file = tmp_path / "session-keys.sqlite3"
    clock = partial(sum, now)
    plain, shelf = MemoryStore(clock=clock, retention_s=DAY), SQLiteKeys(file, clock=clock)
    store = EncryptedStore(plain, KeyRing(shelf, KeyFile(master), clock=clock), clock=clock, retention_s=DAY)
    await talk(store)
    with sqlite3.connect(file) as rows:
        ((first, ends),) = rows.execute("SELECT wrapped, expires FROM keys").fetchall()
        assert ends == 1000 + DAY + 60
        now[0] += DAY - 1
        await talk(store, 2)
        assert await answers(store) == ["Hi.", "Hi."]
        now[0] += 2  # the session has ended, its key not yet
        assert await answers(store) == []
        await talk(store, 3)
        ((second, ends),) = rows.execute("SELECT wrapped, expires FROM keys").fetchall()
        assert (second != first, ends) == (True, 1001 + 2 * DAY + 60)
        assert await answers(store) == ["Hi."]
        now[0] += 2 * DAY
        await talk(store, session_id="another-session")
        assert rows.execute("SELECT count(*) FROM keys WHERE wrapped = ?", (second,)).fetchone() == (0,)
    rows.close()
    store.close()


async def test_a_purge_forgets_every_key_of_its_owner_and_no_other(tmp_path, master) -> None:
    home, other = tmp_path / "home", Owner(user="other")
    store = opened(home, f"file:{master}")
    await talk(store)
    await talk(store, session_id="s-mine", opens_session=True)
    kept = (await store.accept(NewTurn(other, "my-session", "request-1", "theirs", 6))).ticket
    assert _count(home) == 4  # and that of the check
    assert await store.purge(OWNER) == 2
    assert _count(home) == 2
    with pytest.raises(Conflict, match="everything of this owner is being removed"):
        await store.accept(new(2))
    await store.finish(kept, Outcome("complete", "stop", "Hi."))
    assert [turn.user for turn in await store.load(other, "my-session", limit=9)] == ["theirs"]
    await store.purge(OWNER, closed_s=0)
    await talk(store, 3)
    assert await answers(store) == ["Hi."]
    store.close()


def _count(home) -> int:
    with sqlite3.connect(home / "session-keys.sqlite3") as rows:
        (count,) = rows.execute("SELECT count(*) FROM keys").fetchone()
    rows.close()
    return count


async def test_a_request_that_opens_nothing_leaves_no_key(tmp_path, master) -> None:
    store = opened(tmp_path / "home", f"file:{master}")
    opening = NewTurn(OWNER, "s-first", "request-1", "Hello", 5, opens_session=True)
    await store.finish((await store.accept(opening)).ticket, Outcome("complete", "stop", "Hi."))
    before = _count(tmp_path / "home")
    again = NewTurn(OWNER, "s-second", "request-1", "Hello", 5, opens_session=True)
    assert (await store.accept(again)).repeat.assistant == "Hi."
    with pytest.raises(Conflict):
        await store.accept(NewTurn(OWNER, "s-third", "request-1", "Hullo", 5, opens_session=True))
    with pytest.raises(NotFound):
        await store.accept(NewTurn(OWNER, "s-fourth", "request-2", "Hello", 5))
    assert _count(tmp_path / "home") == before
    store.close()


async def test_keys_held_in_memory_are_bounded(master) -> None:
    ring = KeyRing(SQLiteKeys(None), KeyFile(master), most=8)
    for number in range(20):
        ring.make(OWNER, f"session-{number}", None, None)
        assert ring.held(OWNER, f"session-{number}") is not None
    assert len(ring._held) == 8
    ring.close()
    assert len(ring._held) == 0


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("operation", "at"), [("GetItem", 1), *(("TransactWriteItems", at) for at in (1, 2, 3))])
@pytest.mark.parametrize(("kind", "forwarded"), [("drop", True), ("drop", False), ("error", True), ("throttle", False)])
async def test_a_lost_answer_about_a_key_leaves_one_key_and_no_error(
    dynamodb, proxy, master, operation, kind, forwarded, times, at
) -> None:
    table = ministack.new_table(dynamodb)
    store = EncryptedStore(MemoryStore(), KeyRing(DynamoDBKeys(table, endpoint=proxy.address), KeyFile(master)))
    proxy.faults = Faults(Fault(kind, forwarded, operation, at=at, times=times))
    await talk(store)
    assert len(_items(dynamodb, table)) == 1
    assert await answers(store) == ["Hi."]
    await store.delete(OWNER, "my-session")
    assert (proxy.faults.struck, _items(dynamodb, table)) == (times, [])
    store.close()


def test_a_mark_of_a_removal_that_comes_late_leaves_the_key_of_a_session_that_was_opened_again(
    dynamodb, monkeypatch
) -> None:
    table = ministack.new_table(dynamodb)
    shelf, other = DynamoDBKeys(table, endpoint=dynamodb), DynamoDBKeys(table, endpoint=dynamodb)
    shelf.swap("me", "one", None, WrappedKey(b"first"))
    send, newer = shelf._table.client.transact_write_items, WrappedKey(b"newer")

    def late(**sent):
        """The one who removed has given up; another removes the session too, and opens it again."""
        other.put("me", "one", WrappedKey(b"-other"))
        other.swap("me", "one", WrappedKey(b"-other"), None)
        other.swap("me", "one", None, newer)
        time.sleep(0.5)
        return send(**sent)

    monkeypatch.setattr(shelf._table.client, "transact_write_items", late)
    monkeypatch.setattr(key_shelves, "_BUDGET_S", 0.5)
    with pytest.raises(StoreFailed):
        shelf.put("me", "one", WrappedKey(b"-mark"))
    monkeypatch.undo()
    assert other.get("me", "one") == newer
    shelf.put("me", "one", WrappedKey(b"-mark"))
    assert other.get("me", "one") == WrappedKey(b"-mark")
    shelf.close()
    other.close()


async def test_keys_out_of_reach_are_store_failed_and_nothing_is_written(dynamodb, proxy, master) -> None:
    table, plain = ministack.new_table(dynamodb), MemoryStore()
    store = EncryptedStore(plain, KeyRing(DynamoDBKeys(table, endpoint=proxy.address), KeyFile(master)))
    ticket = (await store.accept(new(session_id="open-session"))).ticket
    before = repr(plain._kept.partitions)
    proxy.meddle = lambda operation, forward: None
    calls = (
        lambda: store.accept(new()),
        lambda: store.finish(ticket, Outcome("complete", "stop", "Hi.")),
        lambda: store.delete(OWNER, "open-session"),
        lambda: store.purge(OWNER),
    )
    for call in calls:
        with pytest.raises(StoreFailed, match="send the request again later") as caught:
            await call()
        assert caught.value.retry_after == 5
    assert repr(plain._kept.partitions) == before
    proxy.meddle = lambda operation, forward: forward()
    await store.finish(ticket, Outcome("complete", "stop", "Hi."))
    assert await answers(store, "open-session") == ["Hi."]
    store.close()
