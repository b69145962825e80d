"""Encrypted sessions that are removed while others write or read them: what is left of a forgotten key."""

import asyncio
import io
import json
from contextlib import contextmanager
from dataclasses import replace

import pytest

from chatkit import wiring
from chatkit.cli._sessions_import import import_file
from chatkit.errors import Conflict, NotFound
from chatkit.protocols import NewTurn, Outcome, Ticket
from chatkit.session_lines import Line, fields_of
from chatkit.sessions import session_keys
from chatkit.sessions.encryption import EncryptedStore
from chatkit.sessions.key_shelves import SQLiteKeys
from chatkit.sessions.master_keys import KeyFile
from chatkit.sessions.session_keys import KeyRing
from chatkit.settings import load_settings
from chatkit.testing import MemoryStore
from chatkit.types import Owner
from tests.encrypted import key_file

pytestmark = pytest.mark.anyio
OWNER = Owner()


@pytest.fixture
def master(tmp_path):
    return key_file(tmp_path)


@contextmanager
def store_in(home, master):
    store = wiring.open_store(load_settings({"home": str(home), "session_keys": f"file:{master}"}))
    try:
        yield store
    finally:
        store.close()


def ring_of(shelf, master, **more) -> KeyRing:
    return KeyRing(shelf, KeyFile(master), **more)


def new(number=1, text="Hello", session_id="my-session", **more) -> NewTurn:
    return NewTurn(OWNER, session_id, f"request-{session_id}-{number}", text, len(text), **more)


async def talk(store, number=1, text="Hello", session_id="my-session", **more):
    ticket = (await store.accept(new(number, text, session_id, **more))).ticket
    await store.finish(ticket, Outcome("complete", "stop", "Hi."))
    return ticket


async def said(store, session_id="my-session") -> list[tuple[str, str]]:
    return [(turn.user, turn.assistant) for turn in await store.load(OWNER, session_id, limit=99)]


async def test_a_session_whose_removal_broke_off_is_gone_and_stays_so_until_it_is_removed(master, caplog) -> None:
    plain, ring = MemoryStore(), ring_of(SQLiteKeys(None), master)
    store = EncryptedStore(plain, ring)
    await talk(store)
    await talk(store, session_id="s-mine", opens_session=True)
    ticket = (await store.accept(new(2, "more", after=1))).ticket
    for session in ("my-session", "s-mine"):
        ring.forget(OWNER, session)
    assert len(await store.load(OWNER, "my-session", limit=9)) == 0
    for call in (store.load, store.page):
        with pytest.raises(NotFound, match="s-mine"):
            await call(OWNER, "s-mine", limit=9)
    assert "the key of a session is forgotten: the session counts as gone" in caplog.messages
    for after in (0, 2):
        with pytest.raises(NotFound, match="is being removed, or was when that broke off; name another one"):
            await store.accept(new(3, after=after))
    for late in (ticket, Ticket(OWNER, "my-session", 2, "request-my-session-2", 1)):
        with pytest.raises(Conflict, match="no longer attempt 1's"):
            await store.finish(late, Outcome("complete", "stop", "late"))
    await store.delete(OWNER, "my-session")
    await talk(store, 1, "new")
    assert await said(store) == [("new", "Hi.")]
    store.close()


async def test_a_key_that_another_process_forgot_is_written_with_no_more(tmp_path, master) -> None:
    home = tmp_path / "home"
    with store_in(home, master) as one, store_in(home, master) as two:
        await talk(one, 1, "first")
        assert await said(two) == [("first", "Hi.")]
        await one.delete(OWNER, "my-session")
        await talk(two, 2, "second")
        assert await said(one) == [("second", "Hi.")]
        await one.delete(OWNER, "my-session")
        await talk(one, 3, "third")
        assert await said(two) == [("third", "Hi.")]  # it held the second key
    with store_in(home, master) as three:
        assert await said(three) == [("third", "Hi.")]


async def test_a_removed_and_opened_session_does_not_take_the_answer_of_the_old_one(tmp_path, master) -> None:
    with store_in(tmp_path / "home", master) as one, store_in(tmp_path / "home", master) as two:
        old = (await one.accept(new(1, "same"))).ticket
        await two.delete(OWNER, "my-session")
        fresh = (await two.accept(new(1, "same"))).ticket  # as its client sent it again
        with pytest.raises(Conflict, match="no longer attempt 1's"):
            await one.finish(old, Outcome("complete", "stop", "old"))
        await two.finish(fresh, Outcome("complete", "stop", "fresh"))
        assert await said(one) == [("same", "fresh")]


async def test_another_process_reads_with_a_forgotten_key_for_its_lifetime_and_no_longer(master) -> None:
    plain, shelf, now = MemoryStore(), SQLiteKeys(None), [0.0]
    store = EncryptedStore(plain, ring_of(shelf, master, timer=lambda: now[0]))
    await talk(store)
    ring_of(shelf, master).forget(OWNER, "my-session")
    now[0] = 59.0
    assert await said(store) == [("Hello", "Hi.")]
    now[0] = 60.0
    assert await said(store) == []
    now[0] = 0.0
    assert await said(store) == []
    store.close()


async def test_a_key_that_nobody_looked_up_for_its_lifetime_is_let_go_of_when_the_next_is_wanted(master) -> None:
    now = [0.0]
    ring = ring_of(SQLiteKeys(None), master, timer=lambda: now[0])
    for number, moment in enumerate((0.0, 30.0, 59.0), start=1):
        now[0] = moment
        ring.make(OWNER, f"session-{number}", None, None)
        ring.held(OWNER, f"session-{number}")
    ring.held(OWNER, "session-1")
    assert len(ring._held) == 3
    now[0] = 60.0
    ring.held(OWNER, "session-3")
    assert len(ring._held) == 2
    ring.fresh(OWNER, "session-2")  # looked up again
    now[0] = 119.0
    ring.fresh(OWNER, "session-of-nobody")
    assert list(ring._held) == [session_keys._places(OWNER, "session-2")[1]]
    ring.close()


async def test_a_message_on_its_way_while_its_session_is_removed_opens_none_that_nobody_can_read(
    tmp_path, master
) -> None:
    with store_in(tmp_path / "home", master) as one, store_in(tmp_path / "home", master) as two:
        for old in (True, False):  # a session that is there, and one that is not
            if old:
                await talk(one, 1, "first")
            there, go = asyncio.Event(), asyncio.Event()
            accept = one._store.accept

            async def held_up(turn, there=there, go=go, accept=accept):
                there.set()
                await go.wait()
                return await accept(turn)

            one._store.accept = held_up
            late = asyncio.create_task(one.accept(new(2, "late")))
            await there.wait()
            await two.delete(OWNER, "my-session")
            go.set()
            with pytest.raises(NotFound, match="was removed while this message was on its way; send it again"):
                await late
            one._store.accept = accept
            assert (await one.sessions(OWNER, limit=9)).sessions == ()
            await talk(one, 2, "late")
            assert await said(two) == [("late", "Hi.")]
            await two.delete(OWNER, "my-session")


async def test_a_session_that_others_opened_while_a_message_was_on_its_way_stays(tmp_path, master) -> None:
    with store_in(tmp_path / "home", master) as one, store_in(tmp_path / "home", master) as two:
        fresh, opened = one._keys.fresh, []

        def removed_and_opened(owner, session_id):
            """At the look after the message was stored, another process removes its session and has one of its own."""
            opened.append(session_id)
            if len(opened) == 3:
                asyncio.run(two.delete(OWNER, "my-session"))
                asyncio.run(talk(two, 7, "theirs"))
            return fresh(owner, session_id)

        one._keys.fresh = removed_and_opened
        with pytest.raises(NotFound, match="send it again"):
            await one.accept(new(2, "late"))
        one._keys.fresh = fresh
        assert len(opened) == 3
        assert await said(one) == [("theirs", "Hi.")]


@pytest.mark.parametrize("theirs", ["", "my-session"])
async def test_a_session_that_others_opened_while_a_message_was_taken_back_stays(tmp_path, master, theirs) -> None:
    with store_in(tmp_path / "home", master) as one, store_in(tmp_path / "home", master) as two:
        accept, withdraw = one._store.accept, one._store.withdraw

        async def forgotten_before(turn):
            two._keys.unmake(OWNER, "my-session", two._keys.forget(OWNER, "my-session"))
            return await accept(turn)

        async def opened_before(ticket):
            """Between the look at the key and the removal another process removes the session and has its own."""
            if theirs:
                await two.delete(OWNER, theirs)
                await talk(two, 7, "theirs")
            return await withdraw(ticket)

        one._store.accept, one._store.withdraw = forgotten_before, opened_before
        with pytest.raises(NotFound, match="send it again"):
            await one.accept(new(2, "late"))
        assert await said(two) == ([("theirs", "Hi.")] if theirs else [])
        if not theirs:
            await talk(two, 2, "late")
            assert await said(two) == [("late", "Hi.")]


async def test_a_message_without_a_look_at_its_session_is_no_hole_in_one_that_was_opened_meanwhile(
    tmp_path, master
) -> None:
    with store_in(tmp_path / "home", master) as one, store_in(tmp_path / "home", master) as two:
        await talk(one, 1, "first")
        accept = one._store.accept

        async def opened_before(turn):
            await two.delete(OWNER, "my-session")
            await talk(two, 7, "theirs")
            return await accept(turn)

        one._store.accept = opened_before
        with pytest.raises(NotFound, match="on its way; send it again with a new request_id"):
            await one.accept(new(2, "late"))
        one._store.accept = accept
        await talk(two, 8, "more")
        turns = await two.page(OWNER, "my-session", limit=9)
        assert [(turn.seq, turn.status, turn.user) for turn in turns] == [
            (1, "complete", "theirs"),
            (2, "blocked", ""),
            (3, "complete", "more"),
        ]


async def test_a_session_whose_key_went_while_it_was_restored_says_what_to_do(tmp_path, master) -> None:
    with store_in(tmp_path / "home", master) as store:
        await talk(store)
        turns = await store.page(OWNER, "my-session", limit=9)
        await store.delete(OWNER, "my-session")
        restore = store._store.restore

        async def forgotten_meanwhile(*arguments, **more):
            store._keys.unmake(OWNER, "my-session", store._keys.forget(OWNER, "my-session"))
            await restore(*arguments, **more)

        store._store.restore = forgotten_meanwhile
        with pytest.raises(Conflict, match="remove it, then restore it again"):
            await store.restore(OWNER, "my-session", turns, expires_at=None)
        store._store.restore = restore
        await store.delete(OWNER, "my-session")
        await store.restore(OWNER, "my-session", turns, expires_at=None)
        assert await said(store) == [("Hello", "Hi.")]


async def test_an_import_goes_on_after_a_session_whose_removal_broke_off(master) -> None:
    ring = ring_of(SQLiteKeys(None), master)
    store = EncryptedStore(MemoryStore(), ring)
    await talk(store)
    (turn,) = await store.page(OWNER, "my-session", limit=9)
    ring.forget(OWNER, "my-session")
    lines = [Line("my-session", 1, None, turn), Line("other-session", 1, None, replace(turn, request_id="request-7"))]
    file = "".join(f"{json.dumps(fields_of(line))}\n" for line in lines).encode()
    for skip, second in ((False, "imported"), (True, "skipped")):
        rows = [row async for row in import_file(store, OWNER, "a file", io.BytesIO(file), skip_existing=skip)]
        assert [(row.session_id, row.status) for row in rows] == [("my-session", "refused"), ("other-session", second)]
        assert "is being removed, or was when that broke off" in rows[0].why
    assert await said(store, "other-session") == [("Hello", "Hi.")]
    await store.delete(OWNER, "my-session")
    rows = [row async for row in import_file(store, OWNER, "a file", io.BytesIO(file), skip_existing=True)]
    assert [row.status for row in rows] == ["imported", "skipped"]
    assert await said(store) == [("Hello", "Hi.")]
    store.close()
