"""`chatkit sessions`: what is stored, read and removed by whoever keeps the store."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from chatkit.cli import setting_options
from chatkit.cli._show import as_json as json_line
from chatkit.cli._show import plain, source_line
from chatkit.errors import ConfigError, InvalidRequest, NotFound
from chatkit.settings import Settings, load_settings
from chatkit.types import Owner, Turn, check_id

if TYPE_CHECKING:
    from chatkit.protocols import SessionHead
    from chatkit.wiring import Store

T = TypeVar("T")
# Sessions and turns that are read at once.
_PAGE = 100
# Characters of an owner's name: with a session's id, percent-encoded, they fit a key of DynamoDB.
_LONGEST_NAME = 64
_STEP = "chatkit sessions list shows those there are"
_DYNAMODB = ("dynamodb_table", "dynamodb_region", "dynamodb_endpoint")


@click.group()
def sessions() -> None:
    """List, show, export and remove sessions; create the DynamoDB table."""


def _owned(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what names the store and whose sessions are meant."""
    command = setting_options("home", "store", *_DYNAMODB, "api_key", "api_key_file")(command)
    command = click.option("--user", metavar="NAME", help="Whose sessions; without it the service's own callers.")(
        command
    )
    return click.option("--tenant", metavar="NAME", help="Of which tenant; without it the service's own.")(command)


_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@sessions.command("list")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="List this many; without it all.")
@click.option("--cursor", metavar="CURSOR", help="Go on where a list with --limit ended.")
@_json_option
@_owned
def list_(
    limit: int | None, cursor: str | None, as_json: bool, config: str | None, flags: dict[str, Any], **whose: str | None
) -> None:
    """List sessions, the one opened last first.

    \b
    chatkit sessions list
    chatkit sessions list --limit 20 --json
    chatkit sessions list --store dynamodb --user key
    """

    async def read(store: "Store", owner: Owner) -> "tuple[list[SessionHead], str | None]":
        heads: list[SessionHead] = []
        at = cursor
        while True:
            wanted = _PAGE if limit is None else min(_PAGE, limit - len(heads))
            page = await store.sessions(owner, limit=wanted, cursor=at)
            heads, at = [*heads, *page.sessions], page.cursor
            if at is None or len(heads) == limit:
                return heads, at

    heads, after = _with_store(config, flags, whose, read)
    if as_json:
        click.echo(json_line({"sessions": [asdict(head) for head in heads], "cursor": after}))
        return
    width = max([len(head.session_id) for head in heads], default=2)
    click.echo(f"{'ID':<{width}}  TURNS  OPENED (UTC)")
    for head in heads:
        click.echo(plain(f"{head.session_id:<{width}}  {head.turns:>5}  {_clock(head.created_at)}"))
    if after is not None:
        click.echo(f"more: --cursor {after}", err=True)


@sessions.command()
@click.argument("session_id", metavar="ID")
@_json_option
@_owned
def show(session_id: str, as_json: bool, config: str | None, flags: dict[str, Any], **whose: str | None) -> None:
    """Show the turns of a session; of a blocked one the label and the length, its text was never kept."""
    _check_ids(session_id)

    async def read(store: "Store", owner: Owner) -> list[Turn]:
        return [turn async for turn in _turns(store, owner, session_id)]

    turns = _with_store(config, flags, whose, read)
    if as_json:
        click.echo(json_line({"session_id": session_id, "turns": [asdict(turn) for turn in turns]}))
        return
    click.echo("\n\n".join(map(_readable, turns)))


@sessions.command()
@click.argument("session_ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Every session of the owner.")
@_owned
def export(
    session_ids: tuple[str, ...], everything: bool, config: str | None, flags: dict[str, Any], **whose: str | None
) -> None:
    """Write sessions as JSON lines, one turn a line, with every field that is stored.

    \b
    chatkit sessions export my-session > my-session.jsonl
    chatkit sessions export --all | jq -r 'select(.status == "complete") | .user'
    """
    if everything == bool(session_ids):
        raise click.UsageError("Name the sessions to export, or say --all.")
    _check_ids(*session_ids)

    async def write(store: "Store", owner: Owner) -> None:
        if not everything:
            for session_id in session_ids:
                await _write(store, owner, session_id)
            return
        cursor = None
        while True:
            page = await store.sessions(owner, limit=_PAGE, cursor=cursor)
            for head in page.sessions:
                try:
                    await _write(store, owner, head.session_id)
                except NotFound:
                    click.echo(f"session {head.session_id!r} was removed meanwhile", err=True)
            cursor = page.cursor
            if cursor is None:
                return

    _with_store(config, flags, whose, write)


@sessions.command()
@click.argument("session_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json_option
@_owned
def delete(
    session_ids: tuple[str, ...],
    yes: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
    **whose: str | None,
) -> None:
    """Remove sessions with everything in them. Run it again when it breaks off; it ends what it began."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask; say --yes to remove the sessions.")
    _check_ids(*session_ids)

    async def remove(store: "Store", owner: Owner) -> list[dict[str, Any]]:
        named = ", ".join(map(repr, session_ids))
        if not yes and not click.confirm(plain(f"Remove {named} of {owner.tenant}/{owner.user} for good?"), err=True):
            raise click.Abort
        return [
            {"session_id": session_id, "found": await _remove(store, owner, session_id)} for session_id in session_ids
        ]

    removed = _with_store(config, flags, whose, remove)
    if as_json:
        click.echo(json_line({"removed": removed}))
        return
    for row in removed:
        click.echo(plain(f"removed {row['session_id']}" if row["found"] else f"there is no {row['session_id']}"))


@sessions.command("create-table")
@_json_option
@setting_options(*_DYNAMODB)
def create_table(as_json: bool, config: str | None, flags: dict[str, Any]) -> None:
    """Create the DynamoDB table that the settings name, paid per request; harmless where it is there already.

    \b
    chatkit sessions create-table
    chatkit sessions create-table --dynamodb-table chat --dynamodb-region eu-central-1
    """
    from chatkit import wiring

    settings = load_settings(flags, file=Path(config) if config else None)
    created = wiring.create_table(settings)
    if as_json:
        click.echo(json_line({"table": settings.dynamodb_table, "created": created}))
        return
    click.echo(f"table {settings.dynamodb_table!r}: {'created' if created else 'already there'}")


def _with_store(
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
    owner = _owner(settings, **whose)
    store = wiring.open_store(settings)
    try:
        return asyncio.run(_awaited(work(store, owner)))
    finally:
        store.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def _owner(settings: Settings, *, tenant: str | None, user: str | None) -> Owner:
    """Return whose sessions are meant: those of the callers that a service with these settings has, unless named."""
    own = Owner.behind(settings.api_key)
    for name, value in (("--tenant", tenant), ("--user", user)):
        if value is not None and not (1 <= len(value) <= _LONGEST_NAME and value.isprintable()):
            raise InvalidRequest(
                f"{name} is {value[:80]!r}, expected 1 to {_LONGEST_NAME} characters that print; without it, "
                "chatkit sessions list shows the sessions of the service's own callers"
            )
    return Owner(own.tenant if tenant is None else tenant, own.user if user is None else user)


def _check_ids(*session_ids: str) -> None:
    """Refuse what can be no session's id, as the service does.

    Raises:
        InvalidRequest: naming the first.
    """
    for session_id in session_ids:
        try:
            check_id("ID", session_id)
        except InvalidRequest as error:
            raise InvalidRequest(f"{error}; {_STEP}") from None


async def _turns(store: "Store", owner: Owner, session_id: str) -> AsyncIterator[Turn]:
    """Yield the turns of a session, page by page.

    Raises:
        NotFound: there is no such session.
    """
    after = 0
    try:
        while page := await store.page(owner, session_id, limit=_PAGE, after=after):
            for turn in page:
                yield turn
            after = page[-1].seq
    except NotFound:
        raise NotFound(f"session {session_id!r} does not exist; {_STEP}") from None


async def _write(store: "Store", owner: Owner, session_id: str) -> None:
    async for turn in _turns(store, owner, session_id):
        click.echo(json_line({"session_id": session_id, **asdict(turn)}))


async def _remove(store: "Store", owner: Owner, session_id: str) -> bool:
    """Remove a session, or what a removal that broke off left of it; return whether it was there."""
    try:
        await store.page(owner, session_id, limit=1)
        found = True
    except NotFound:
        found = False
    await store.delete(owner, session_id)
    return found


def _readable(turn: Turn) -> str:
    """Return a turn as lines that a terminal only shows."""
    notes = [turn.status, *([f"attempt {turn.attempt}"] if turn.attempt > 1 else [])]
    if turn.finish_reason not in (None, "stop", "aborted", "content_filter"):
        notes.append(f"ended by {turn.finish_reason}")
    lines = [f"#{turn.seq}  {_clock(turn.created_at)}  {', '.join(notes)}  {turn.request_id}"]
    if turn.status == "blocked":
        side = "message" if turn.blocked == "input" else "answer"
        lines.append(f"{side} blocked as {turn.label!r}; the message had {turn.user_length} characters")
    else:
        lines.append(f"user: {turn.user}")
        if turn.assistant or turn.status == "complete":
            lines.append(f"assistant: {turn.assistant}")
    lines += [source_line(number, passage) for number, passage in enumerate(turn.passages, 1)]
    return plain("\n".join(lines))


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
