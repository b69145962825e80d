"""Encrypted sessions on real files and a real server: what thieves, backups and other processes see of them."""

import logging
import shutil
import sqlite3
from contextlib import contextmanager
from dataclasses import replace

import pytest

from chatkit import wiring
from chatkit.errors import Conflict, NotFound, StoreFailed, TooLarge
from chatkit.protocols import NewTurn, Outcome, Ticket
from chatkit.sessions import encryption, sealing
from chatkit.sessions.encryption import EncryptedStore
from chatkit.sessions.key_shelves import SQLiteKeys
from chatkit.sessions.master_keys import KeyFile
from chatkit.sessions.session_keys import KeyRing
from chatkit.settings import load_settings
from chatkit.testing import MemoryStore
from chatkit.types import Owner, Passage, Usage
from tests import ministack
from tests.encrypted import key_file

pytestmark = pytest.mark.anyio
OWNER = Owner()
SAID = ("zq81user", "zq82answer", "zq83title", "zq84source", "zq85section", "zq86id")
PASSAGE = Passage(SAID[5], "its text", SAID[2], SAID[3], SAID[4], 5, 13, 0.5)


@pytest.fixture
def master(tmp_path):
    return key_file(tmp_path)


def opened(home, master=None, **more):
    keys = {"session_keys": f"file:{master}"} if master else {}
    return wiring.open_store(load_settings({"home": str(home), **keys, **more}))


@contextmanager
def store_in(home, master=None, **more):
    store = opened(home, master, **more)
    try:
        yield store
    finally:
        store.close()


def new(number=1, text="Hello", session_id="my-session", **more) -> NewTurn:
    return NewTurn(OWNER, session_id, f"request-{session_id}-{number}", text, len(text), **more)


async def talk(store, number=1, text="Hello", answer="Hi.", session_id="my-session", passages=(), **more):
    ticket = (await store.accept(new(number, text, session_id, **more))).ticket
    await store.finish(ticket, Outcome("complete", "stop", answer, usage=Usage(3, 2), passages=passages))
    return ticket


async def said(store, session_id="my-session") -> list[tuple[str, str]]:
    return [(turn.user, turn.assistant) for turn in await store.load(OWNER, session_id, limit=99)]


def bytes_in(home) -> bytes:
    return b"".join(file.read_bytes() for file in home.iterdir())


async def have_it_said(store) -> Ticket:
    """Have a turn that is complete, a pending one, of which the ticket comes back, and a refused one."""
    await talk(store, 1, SAID[0], SAID[1], passages=(PASSAGE,))
    pending = (await store.accept(new(2, SAID[0]))).ticket
    await store.accept(NewTurn(OWNER, "my-session", "request-blocked", SAID[0], 8, "blocked", label="needs caution"))
    return pending


async def test_what_was_said_is_in_no_file_and_comes_back_as_it_was(tmp_path, master) -> None:
    home = tmp_path / "home"
    with store_in(home, master) as store:
        await have_it_said(store)
        files = {file.name for file in home.iterdir()}
        assert files >= {"sessions.sqlite3", "sessions.sqlite3-wal", "session-keys.sqlite3", "session-keys.sqlite3-wal"}
        live = bytes_in(home)
        first, pending, blocked = await store.page(OWNER, "my-session", limit=9)
    for canary in SAID:
        assert canary.encode() not in live + bytes_in(home)
    assert b"request-my-session-1" in live
    assert b"complete" in live
    assert (first.user, first.assistant, first.user_length, first.usage) == (SAID[0], SAID[1], 8, Usage(3, 2))
    (kept,) = first.passages
    assert (kept.id, kept.title, kept.source, kept.section) == (SAID[5], SAID[2], SAID[3], SAID[4])
    assert (kept.start, kept.end, kept.score, len(kept.text_hash)) == (5, 13, 0.5, 16)
    assert (pending.status, pending.user, blocked.status, blocked.user) == ("pending", SAID[0], "blocked", "")


async def test_without_a_key_what_was_said_is_in_the_files(tmp_path) -> None:
    with store_in(tmp_path / "home") as store:
        await have_it_said(store)
        live = bytes_in(tmp_path / "home")
    assert [canary for canary in SAID if canary.encode() not in live] == []


async def test_what_was_said_is_in_neither_table(dynamodb, master) -> None:
    table = f"{ministack.new_table(dynamodb)[:40]}-sealed"
    flags = {"store": "dynamodb", "dynamodb_table": table, "dynamodb_endpoint": dynamodb}
    settings = load_settings({**flags, "session_keys": f"file:{master}"})
    assert wiring.create_table(settings)
    assert not wiring.create_table(settings)
    store = wiring.open_store(settings)
    try:
        await have_it_said(store)
        assert await said(store) == [(SAID[0], SAID[1]), (SAID[0], ""), ("", "")]
    finally:
        store.close()
    everything = ministack.everything_in(dynamodb, table) + ministack.everything_in(dynamodb, f"{table}-keys")
    for canary in SAID:
        assert canary not in everything
    assert "request-my-session-1" in ministack.everything_in(dynamodb, table)
    assert "my-session" not in ministack.everything_in(dynamodb, f"{table}-keys")


async def test_a_backup_from_before_a_removal_cannot_be_read_with_the_keys_that_are_left(tmp_path, master) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup.sqlite3"
    with store_in(home, master) as store:
        await talk(store, 1, "gone", session_id="session-gone")
        await talk(store, 1, "kept", session_id="session-kept")
        with sqlite3.connect(home / "sessions.sqlite3") as source, sqlite3.connect(backup) as copy:
            source.backup(copy)
        source.close()
        copy.close()
    later = {"before": tmp_path / "before", "after": tmp_path / "after"}
    shutil.copytree(home, later["before"])
    with store_in(home, master) as store:
        await store.delete(OWNER, "session-gone")
    shutil.copytree(home, later["after"])
    found = {}
    for when, folder in later.items():
        for log_file in folder.glob("sessions.sqlite3*"):
            log_file.unlink()
        shutil.copy(backup, folder / "sessions.sqlite3")
        with store_in(folder, master) as store:
            assert await said(store, "session-kept") == [("kept", "Hi.")]
            found[when] = await said(store, "session-gone")
            if when == "after":
                with pytest.raises(NotFound, match="session-gone"):
                    await store.page(OWNER, "session-gone", limit=9)
                with pytest.raises(NotFound, match="'session-gone' is being removed, or was when that broke off"):
                    await store.accept(new(2, "more", "session-gone"))
                await store.delete(OWNER, "session-gone")
                await talk(store, 3, "new", session_id="session-gone")
                assert await said(store, "session-gone") == [("new", "Hi.")]
    assert found == {"before": [("gone", "Hi.")], "after": []}


async def test_a_forgotten_key_is_in_no_file(tmp_path, master) -> None:
    home = tmp_path / "home"
    with store_in(home, master) as store:
        await talk(store)
        with sqlite3.connect(home / "session-keys.sqlite3") as connection:
            rows = connection.execute("SELECT wrapped FROM keys ORDER BY length(wrapped)").fetchall()
        connection.close()
        assert len(rows) == 2  # one for the check of the master key
        assert all(wrapped in bytes_in(home) for (wrapped,) in rows)
        await store.delete(OWNER, "my-session")
        assert sum(wrapped in bytes_in(home) for (wrapped,) in rows) == 1


async def test_sessions_from_before_stay_readable_and_go_on_encrypted(tmp_path, master) -> None:
    home = tmp_path / "home"
    odd = f"{sealing.MARK}AAAA"
    with store_in(home) as store:
        await talk(store, 1, odd, sealing.MARK)
        broken_off = (await store.accept(new(2, "zq87plain"))).ticket
        await store.finish(broken_off, Outcome("aborted", "aborted", "h"))
    with store_in(home, master) as store:
        assert (await said(store))[0] == (odd, sealing.MARK)
        await talk(store, 3, odd, "zq88answer", after=2)
        assert await said(store) == [(odd, sealing.MARK), ("zq87plain", "h"), (odd, "zq88answer")]
        assert (await store.accept(new(1, odd))).repeat.assistant == sealing.MARK
        with pytest.raises(Conflict, match="used for another message"):
            await store.accept(new(1, "other"))
        again = (await store.accept(new(2, "zq87plain"))).ticket
        assert (again.seq, again.attempt) == (2, 2)
        await store.finish(again, Outcome("complete", "stop", "again"))
        assert (await said(store))[1] == ("zq87plain", "again")
        live = bytes_in(home)
    assert b"zq87plain" in live
    assert b"zq88answer" not in live


async def test_a_blocked_message_is_compared_and_needs_no_key(tmp_path, master) -> None:
    with store_in(tmp_path / "home", master) as store:
        refused = new(1, "bad words", status="blocked", label="needs caution")
        await store.accept(refused)
        assert (await store.accept(refused)).repeat.label == "needs caution"
        with sqlite3.connect(tmp_path / "home" / "session-keys.sqlite3") as connection:
            assert connection.execute("SELECT count(*) FROM keys").fetchone() == (1,)
        connection.close()
        await talk(store, 2, "good words")
        assert (await store.accept(new(2, "good words", status="blocked"))).repeat.assistant == "Hi."
        with pytest.raises(Conflict, match="used for another message"):
            await store.accept(new(2, "other words", status="blocked"))


def ring_of(shelf, master, **more) -> KeyRing:
    return KeyRing(shelf, KeyFile(master), **more)


async def test_a_text_that_was_moved_or_damaged_is_left_out_with_a_line_in_the_log(master, caplog) -> None:
    plain = MemoryStore()
    store = EncryptedStore(plain, ring_of(SQLiteKeys(None), master))
    for session in ("my-session", "my-session-2"):
        for number in (1, 2):
            await talk(store, number, f"hello {number}", "hello 1", session, passages=(PASSAGE,))
    rows = next(rows for key, rows in plain._kept.partitions.items() if key.endswith("#my-session"))
    other = next(rows for key, rows in plain._kept.partitions.items() if key.endswith("#my-session-2"))
    first, second = rows["T#0000000001"], rows["T#0000000002"]
    wrong = {
        "another turn's": {"user": second["user"]},
        "another session's": {"user": other["T#0000000001"]["user"]},
        "another field's": {"assistant": first["user"]},
        "another's passages": {"passages": second["passages"]},
        "a passage more": {"passages": first["passages"] * 2},
        "flipped": {"assistant": first["assistant"][:-6] + "AAAA=="},
        "cut": {"assistant": first["assistant"][:-5]},
        "plain": {"assistant": "hello 1"},
        "empty": {"user": sealing.MARK},
        "no base64": {"user": f"{sealing.MARK}?"},
    }
    for change in wrong.values():
        rows["T#0000000001"] = first | change
        caplog.clear()
        assert await said(store) == [("hello 2", "hello 1")]
        assert [turn.seq for turn in await store.page(OWNER, "my-session", limit=1)] == [2]
        assert caplog.messages == ["turn 1 of a session cannot be decrypted and is left out"] * 2
        assert "hello" not in caplog.text
    rows["T#0000000001"] = first
    assert len(await said(store)) == 2
    store.close()


async def test_a_repeat_of_a_turn_that_cannot_be_decrypted_asks_for_a_new_request_id(master) -> None:
    plain = MemoryStore()
    store = EncryptedStore(plain, ring_of(SQLiteKeys(None), master))
    await talk(store)
    rows = next(rows for key, rows in plain._kept.partitions.items() if key.endswith("#my-session"))
    rows["T#0000000001"]["assistant"] += "AAAA"
    with pytest.raises(StoreFailed, match="'request-my-session-1' is damaged; send a new request_id"):
        await store.accept(new())
    store.close()


async def test_a_message_has_to_leave_room_for_its_own_encryption(tmp_path, master) -> None:
    most = encryption.MAX_MESSAGE
    assert 190 * 1024 < most < 192 * 1024
    with store_in(tmp_path / "home", master) as store:
        with pytest.raises(TooLarge, match=f"the message has {most + 1} bytes, at most {most} are stored encrypted"):
            await store.accept(new(1, "q" * (most + 1)))
        assert (await store.sessions(OWNER, limit=9)).sessions == ()
        await talk(store, 2, "q" * most, "a" * 90_000)
        assert await said(store) == [("q" * most, "a" * 90_000)]


@pytest.mark.parametrize("kind", ["sqlite", "dynamodb"])
async def test_a_turn_too_large_is_stored_as_aborted_and_its_answer_cut(tmp_path, master, kind, request) -> None:
    more = {}
    if kind == "dynamodb":
        address = request.getfixturevalue("dynamodb")
        more = {"store": kind, "dynamodb_table": ministack.new_table(address), "dynamodb_endpoint": address}
        wiring.create_table(load_settings({**more, "session_keys": f"file:{master}"}))
    with store_in(tmp_path / "home", master, **more) as store:
        for number, (message, answer) in enumerate([("漢" * 60_000, "é" * 100_000), ("Hello", "b" * 350_000)], 1):
            ticket = (await store.accept(new(number, message, after=number - 1))).ticket
            outcome = Outcome("complete", "stop", answer, usage=Usage(3, 2), passages=(PASSAGE,) * 50)
            with pytest.raises(TooLarge, match=r"encrypted, more than the 409600 bytes .* stored as aborted"):
                await store.finish(ticket, outcome)
            turn = (await store.page(OWNER, "my-session", limit=1, after=number - 1))[0]
            assert (turn.status, turn.finish_reason, turn.user, turn.passages) == ("aborted", "length", message, ())
            assert answer.startswith(turn.assistant)
            sealed = (len(message.encode()) + len(turn.assistant.encode())) * 4 / 3
            assert 400 * 1024 - 6000 < sealed < 400 * 1024 - 4000
        ticket = (await store.accept(new(3, "Hello", after=2))).ticket
        await store.finish(ticket, Outcome("aborted", "aborted", "c" * 350_000))
        assert (await store.page(OWNER, "my-session", limit=1, after=2))[0].finish_reason == "aborted"


async def test_an_exported_session_is_restored_encrypted_and_the_other_way_round(tmp_path, master) -> None:
    with store_in(tmp_path / "plain") as plain, store_in(tmp_path / "sealed", master) as sealed:
        await plain.finish(await have_it_said(plain), Outcome("aborted", "aborted", "h"))
        turns = await plain.page(OWNER, "my-session", limit=9)
        await sealed.restore(OWNER, "s-restored", turns, expires_at=None)
        assert await sealed.page(OWNER, "s-restored", limit=9) == turns
        assert SAID[1].encode() not in bytes_in(tmp_path / "sealed")
        with pytest.raises(Conflict, match="is there already"):
            await sealed.restore(OWNER, "s-restored", turns, expires_at=None)
        back = tuple(
            replace(turn, request_id=f"back-{turn.seq}") for turn in await sealed.page(OWNER, "s-restored", limit=9)
        )
        await plain.restore(OWNER, "s-back", back, expires_at=None)
        assert await plain.page(OWNER, "s-back", limit=9) == back


async def test_nothing_that_was_said_is_logged(tmp_path, master, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with store_in(tmp_path / "home", master) as store:
        await have_it_said(store)
        with pytest.raises(Conflict):
            await store.accept(new(1, "other"))
    for canary in SAID:
        assert canary not in caplog.text
