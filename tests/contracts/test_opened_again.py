"""A session that is removed and opened again under its name takes no turn that was planned on the one before."""

import pytest

from chatkit.errors import NotFound
from chatkit.protocols import NewTurn, Outcome
from chatkit.types import Owner

pytestmark = pytest.mark.anyio
OWNER = Owner()


def new(text: str, **more) -> NewTurn:
    return NewTurn(OWNER, "my-session", f"request-{text}", text, len(text), **more)


async def talk(store, *texts: str) -> None:
    for after, text in enumerate(texts):
        await store.finish((await store.accept(new(text, after=after))).ticket, Outcome("complete", "stop", "Hi."))


async def as_loaded(store) -> dict:
    """Return what a turn says of its session, which is loaded now."""
    loaded = await store.load(OWNER, "my-session", limit=9)
    return {"after": loaded.newest, "expires_at": loaded.expires_at, "opened_at": loaded.opened_at}


async def texts(store) -> list[str]:
    return [turn.user for turn in await store.page(OWNER, "my-session", limit=9)]


@pytest.mark.parametrize("again", [["fresh"], ["fresh", "fresher"], ["fresh", "fresher", "freshest"]])
async def test_a_turn_planned_on_an_erased_session_is_none_of_the_new_one_however_long(store, clock, again) -> None:
    await talk(store, "old", "older")
    planned = await as_loaded(store)
    assert planned == {"after": 2, "expires_at": None, "opened_at": 1000.0}
    await store.delete(OWNER, "my-session")
    clock.now += 1
    await talk(store, *again)
    with pytest.raises(NotFound, match="session 'my-session' does not exist; leave session_id out"):
        await store.accept(new("made of what was erased", **planned))
    assert await texts(store) == again
    assert (await store.accept(new("next", **(await as_loaded(store))))).ticket.seq == len(again) + 1


async def test_a_turn_planned_on_an_erased_session_does_not_open_one(store) -> None:
    await talk(store, "old")
    planned = await as_loaded(store)
    await store.delete(OWNER, "my-session")
    for loaded in (planned, planned | {"after": 0}):
        with pytest.raises(NotFound, match="does not exist"):
            await store.accept(new("made of what was erased", **loaded))
    assert (await store.load(OWNER, "my-session", limit=9)).opened_at is None


async def test_a_number_that_a_session_never_gave_is_of_another_session(store) -> None:
    await talk(store, "only")
    with pytest.raises(NotFound, match="does not exist"):
        await store.accept(new("late", after=2))
    assert await texts(store) == ["only"]


async def test_a_session_that_was_moved_is_the_same_to_a_turn_planned_before(store) -> None:
    await talk(store, "one", "two")
    planned = await as_loaded(store)
    turns = await store.page(OWNER, "my-session", limit=9)
    await store.delete(OWNER, "my-session")
    await store.restore(OWNER, "my-session", turns, expires_at=None)
    assert (await store.accept(new("three", **planned))).ticket.seq == 3
