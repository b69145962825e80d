"""What the commands of `chatkit sessions` share: the store of the settings, whose sessions are meant, reading them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from chatkit.cli import setting_options
from chatkit.cli._owners import owner_of, owner_options
from chatkit.errors import ConfigError, Conflict, InvalidRequest, NotFound, StoreFailed
from chatkit.settings import load_settings
from chatkit.types import Owner, Turn, check_id

if TYPE_CHECKING:
    from chatkit.protocols import SessionHead
    from chatkit.wiring import Store

T = TypeVar("T")
DYNAMODB = ("dynamodb_table", "dynamodb_region", "dynamodb_endpoint")
# Sessions and turns that are read at once.
PAGE = 100
_STEP = "chatkit sessions list shows those there are"

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


def owned(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what names the store and whose sessions are meant."""
    names = ("home", "store", "session_keys", *DYNAMODB, "api_key", "api_key_file")
    return owner_options(setting_options(*names)(command))


def with_store(
    config: str | None,
    flags: dict[str, Any],
    whose: dict[str, str | None],
    work: "Callable[[Store, Owner], Awaitable[T]]",
) -> T:
    """Open the store of the settings, do the work for the owner that is meant, and close it."""
    from chatkit import wiring

    settings = load_settings(flags, file=Path(config) if config else None)
    if settings.store == "memory":
        raise ConfigError("store is 'memory', which only the running service can see; use sqlite or dynamodb")
    owner = owner_of(settings, **whose)
    store = wiring.open_store(settings)
    try:
        return asyncio.run(_awaited(work(store, owner)))
    finally:
        store.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def check_ids(*session_ids: str) -> None:
    """Refuse what can be no session's id, as the service does.

    Raises:
        InvalidRequest: naming the first.
    """
    for session_id in session_ids:
        try:
            check_id("ID", session_id)
        except InvalidRequest as error:
            raise InvalidRequest(f"{error}; {_STEP}") from None


async def heads_of(store: "Store", owner: Owner) -> "AsyncIterator[SessionHead]":
    """Yield every session of an owner, the one opened last first."""
    cursor = None
    while True:
        page = await store.sessions(owner, limit=PAGE, cursor=cursor)
        for head in page.sessions:
            yield head
        cursor = page.cursor
        if cursor is None:
            return


async def turns_of(store: "Store", owner: Owner, session_id: str) -> AsyncIterator[Turn]:
    """Yield the turns of a session, hidden ones too, page by page.

    Raises:
        NotFound: there is no such session.
        StoreFailed: a page begins where it was not to, and would without end.
    """
    after = 0
    try:
        while page := await store.page(owner, session_id, limit=PAGE, after=after):
            if page[-1].seq <= after:
                raise StoreFailed(f"the store gives turn {page[-1].seq} of session {session_id!r} after turn {after}")
            for turn in page:
                yield turn
            after = page[-1].seq
    except NotFound:
        raise not_there(session_id) from None


async def read_session(store: "Store", owner: Owner, session_id: str) -> tuple[list[Turn], int | None, int]:
    """Return the turns of a session, hidden ones too, when it ends, epoch seconds, and how many it has had.

    The last is 0 where the session's own entry cannot be read.

    Raises:
        NotFound: there is no such session.
        Conflict: it was removed, and another opened under its name, while it was read.
    """
    try:
        newest = await store.load(owner, session_id, limit=1)
        turns = [turn async for turn in turns_of(store, owner, session_id)]
        opened_at = (await store.load(owner, session_id, limit=1)).opened_at
    except NotFound:
        raise not_there(session_id) from None
    if opened_at != newest.opened_at:
        raise Conflict(f"session {session_id!r} was removed while it was read; run this again")
    return turns, None if newest.expires_at is None else int(newest.expires_at), newest.total


def not_there(session_id: str) -> NotFound:
    """Return the error for a session that the owner does not have."""
    return NotFound(f"session {session_id!r} does not exist; {_STEP}")


def clock(seconds: float) -> str:
    """Return a moment of epoch seconds in words, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
