"""`chatkit sessions`: what is stored, read, moved and removed by whoever keeps the store."""

import logging
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatkit.cli import exit_code, setting_options
from chatkit.cli._sessions_store import (
    DYNAMODB,
    PAGE,
    check_ids,
    clock,
    heads_of,
    json_option,
    owned,
    read_session,
    with_store,
)
from chatkit.cli._show import as_json as json_line
from chatkit.cli._show import one_line, plain, source_line
from chatkit.conversation import Newest
from chatkit.errors import ChatkitError, NotFound, StoreFailed
from chatkit.protocols import CLOSED_S
from chatkit.session_lines import Line, fields_of, turn_fields
from chatkit.settings import load_settings
from chatkit.types import Owner, Turn

if TYPE_CHECKING:
    from chatkit.cli._sessions_import import Row
    from chatkit.protocols import SessionHead
    from chatkit.wiring import Store

_REPAIR = (
    "what can be read: chatkit sessions export --all > FILE; "
    "for the rest put a backup of the store in its place, or bring in an export: chatkit sessions import FILE"
)


@click.group()
def sessions() -> None:
    """List, show, export, import, check and remove sessions; create the DynamoDB table."""


@sessions.command("list")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="List this many; without it all.")
@click.option("--cursor", metavar="CURSOR", help="Go on where a list with --limit ended.")
@json_option
@owned
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
            wanted = PAGE if limit is None else min(PAGE, limit - len(heads))
            page = await store.sessions(owner, limit=wanted, cursor=at)
            heads, at = [*heads, *page.sessions], page.cursor
            if at is None or len(heads) == limit:
                return heads, at

    heads, after = with_store(config, flags, whose, read)
    if as_json:
        click.echo(json_line({"sessions": [asdict(head) for head in heads], "cursor": after}))
        return
    width = max([len(head.session_id) for head in heads], default=2)
    click.echo(f"{'ID':<{width}}  TURNS  {'OPENED (UTC)':<19}  EXPIRES (UTC)")
    for head in heads:
        ends = "never" if head.expires_at is None else clock(head.expires_at)
        count = "?" if head.damaged else head.turns
        click.echo(plain(f"{head.session_id:<{width}}  {count:>5}  {clock(head.created_at)}  {ends}"))
    if after is not None:
        click.echo(f"more: --cursor {after}", err=True)


@sessions.command()
@click.argument("session_id", metavar="ID")
@click.option("--all", "everything", is_flag=True, help="Show replaced turns too, marked as hidden.")
@json_option
@owned
def show(
    session_id: str,
    everything: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
    **whose: str | None,
) -> None:
    """Show the turns of a session; of a blocked one the label and the length, its text was never kept."""
    check_ids(session_id)
    turns, expires_at, _ = with_store(config, flags, whose, lambda store, owner: read_session(store, owner, session_id))
    visible = _visible(turns)
    shown = turns if everything else [turn for turn in turns if turn.seq in visible]
    if as_json:
        rows = [{**turn_fields(turn), "hidden": turn.seq not in visible} for turn in shown]
        click.echo(json_line({"session_id": session_id, "expires_at": expires_at, "turns": rows}))
        return
    click.echo("\n\n".join(_readable(turn, hidden=turn.seq not in visible) for turn in shown))
    if expires_at is not None:
        click.echo(f"expires {clock(expires_at)} UTC", err=True)
    if len(shown) < len(turns):
        click.echo(f"hidden, for later ones replace them: {len(turns) - len(shown)}; --all shows them too", err=True)


@sessions.command()
@click.argument("session_ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Every session of the owner.")
@owned
def export(
    session_ids: tuple[str, ...], everything: bool, config: str | None, flags: dict[str, Any], **whose: str | None
) -> None:
    """Write sessions as JSON lines, one turn a line, with every field that is stored; `import` reads them.

    \b
    chatkit sessions export my-session > my-session.jsonl
    chatkit sessions export --all | jq -r 'select(.status == "complete") | .user'
    """
    if everything == bool(session_ids):
        raise click.UsageError("Name the sessions to export, or say --all.")
    check_ids(*session_ids)

    async def write(store: "Store", owner: Owner) -> int:
        if not everything:
            return sum([not await _write(store, owner, session_id) for session_id in session_ids])
        damaged = 0
        async for head in heads_of(store, owner):
            try:
                whole = await _write(store, owner, head.session_id, head.turns)
                damaged += head.damaged or not whole
            except NotFound:
                click.echo(f"session {head.session_id!r} was removed meanwhile", err=True)
        return damaged

    if damaged := with_store(config, flags, whose, write):
        raise ChatkitError(f"sessions that cannot be read as a whole: {damaged}; the rest of each was written")


async def _write(store: "Store", owner: Owner, session_id: str, least: int = 0) -> bool:
    """Write a session of at least so many turns, and return whether its own entry and each turn could be read."""
    turns, expires_at, counted = await read_session(store, owner, session_id)
    total = max([least, counted, *(turn.seq for turn in turns)])
    for turn in turns:
        click.echo(json_line(fields_of(Line(session_id, total, expires_at, turn))))
        if turn.status == "pending":
            said = f"turn {turn.seq} of session {session_id!r} is being answered; import takes no such turn, so export"
            click.echo(f"{said} the session again when it has ended", err=True)
    return counted > 0 and len(turns) == total


@sessions.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(allow_dash=True))
@click.option("--skip-existing", is_flag=True, help="Leave sessions as they are that are there already.")
@json_option
@owned
def import_(
    files: tuple[str, ...],
    skip_existing: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
    **whose: str | None,
) -> None:
    """Write the sessions of an export, each as a whole or not at all; FILE is `-` for standard input.

    A session that is there already, or whose lines are wrong, is refused with the line, and the others are written.
    Whose they become says --user: a line does not tell its owner.

    \b
    chatkit sessions import turns.jsonl
    chatkit sessions export --all | chatkit sessions import - --store dynamodb --skip-existing
    """
    from chatkit.cli._sessions_import import import_file, opened

    rows: list[Row] = []
    broken_off = None
    try:
        with opened(files) as named:

            async def write(store: "Store", owner: Owner) -> None:
                for name, file in named.items():
                    async for row in import_file(store, owner, name, file, skip_existing=skip_existing):
                        rows.append(row)
                        if not as_json:
                            click.echo(_row_line(row), err=row.status == "refused")

            with_store(config, flags, whose, write)
    except ChatkitError as error:
        if not rows:
            raise
        broken_off = error
    _sum_up(rows, as_json)
    if broken_off is not None:
        raise type(broken_off)(f"{broken_off}; then run it again with --skip-existing") from broken_off
    failed = next((row.error for row in rows if row.error is not None), None)
    if failed is not None:
        sys.exit(exit_code(failed))


def _row_line(row: "Row") -> str:
    if row.status == "refused":
        about = "" if row.session_id is None else f"session {row.session_id!r} was not imported: "
        return one_line(f"error: {about}{row.why}")
    why = f": {row.why}" if row.why else ""
    return one_line(f"{row.status} {row.session_id}, turns {row.turns}{why}")


def _sum_up(rows: "list[Row]", as_json: bool) -> None:
    """Say how many sessions became what; for programs with every row."""
    counts = Counter(row.status for row in rows)
    if as_json:
        table = [asdict(replace(row, error=None)) for row in rows]
        totals = {status: counts[status] for status in ("imported", "skipped", "refused")}
        click.echo(json_line({**totals, "sessions": table}))
        return
    told = ", ".join(f"{status} {counts[status]}" for status in ("imported", "skipped", "refused") if counts[status])
    click.echo(told or "no session in it", err=True)


@sessions.command()
@json_option
@owned
def check(as_json: bool, config: str | None, flags: dict[str, Any], **whose: str | None) -> None:
    """Read every turn of an owner, and of SQLite the whole file's structure; exit code 1 when something is wrong.

    \b
    chatkit sessions check
    chatkit sessions check --user alice --json
    """
    from chatkit.cli._sessions_check import look_through

    logging.getLogger("chatkit.sessions").setLevel(logging.CRITICAL)  # what it would report is in the result
    looked = with_store(config, flags, whose, look_through)
    if as_json:
        click.echo(json_line(asdict(looked)))
    else:
        for problem in looked.problems:
            click.echo(one_line(problem))
        click.echo(f"sessions {looked.sessions}, turns {looked.turns}, problems {len(looked.problems)}")
    if looked.problems:
        click.echo(_REPAIR, err=True)
        sys.exit(1)


@sessions.command()
@click.argument("session_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@owned
def delete(
    session_ids: tuple[str, ...],
    yes: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
    **whose: str | None,
) -> None:
    """Remove sessions with everything in them. Run it again when it breaks off; it ends what it began."""
    _require_somebody(yes, "to remove the sessions")
    check_ids(*session_ids)

    async def remove(store: "Store", owner: Owner) -> list[dict[str, Any]]:
        named = ", ".join(map(repr, session_ids))
        _ask(yes, f"Remove {named} of {owner.tenant}/{owner.user} for good?")
        return [
            {"session_id": session_id, "found": await _remove(store, owner, session_id)} for session_id in session_ids
        ]

    removed = with_store(config, flags, whose, remove)
    if as_json:
        click.echo(json_line({"removed": removed}))
        return
    for row in removed:
        click.echo(plain(f"removed {row['session_id']}" if row["found"] else f"there is no {row['session_id']}"))


@sessions.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--reopen", is_flag=True, help="Let the owner in again as soon as everything is gone.")
@json_option
@owned
def purge(
    yes: bool, reopen: bool, as_json: bool, config: str | None, flags: dict[str, Any], **whose: str | None
) -> None:
    """Remove everything of an owner: each session with its turns and request ids.

    Until ten minutes later nothing new of this owner is taken, so that no turn on its way brings anything back. Run it
    again when it breaks off; it goes on.

    \b
    chatkit sessions purge --user alice
    chatkit sessions purge --user alice --yes --reopen
    """
    _require_somebody(yes, "to remove everything of the owner")
    closed_s = 0.0 if reopen else CLOSED_S

    async def remove(store: "Store", owner: Owner) -> tuple[Owner, int, int | None]:
        shut = "" if reopen else f" and take nothing new from them for {CLOSED_S / 60:.0f} minutes"
        _ask(yes, f"Remove every session of {owner.tenant}/{owner.user} for good{shut}?")
        removed = await store.purge(owner, closed_s=closed_s)
        return owner, removed, None if reopen else math.ceil(time.time() + closed_s)

    try:
        owner, removed, until = with_store(config, flags, whose, remove)
    except StoreFailed as error:
        raise StoreFailed(f"{error}; a purge that is run again goes on where it broke off") from error
    if as_json:
        click.echo(json_line({**asdict(owner), "removed": removed, "closed_until": until}))
        return
    shut = "; new turns are taken" if until is None else f"; nothing new is taken before {clock(until)} UTC"
    click.echo(plain(f"removed everything of {owner.tenant}/{owner.user}, sessions {removed}{shut}"))


@sessions.command("create-table")
@json_option
@setting_options(*DYNAMODB)
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


def _require_somebody(yes: bool, purpose: str) -> None:
    """Refuse to ask where nobody can answer."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"There is nobody to ask; say --yes {purpose}.")


def _ask(yes: bool, question: str) -> None:
    if not yes and not click.confirm(plain(question), err=True):
        raise click.Abort


async def _remove(store: "Store", owner: Owner, session_id: str) -> bool:
    """Remove a session, or what a removal that broke off left of it; return whether it was there."""
    try:
        await store.page(owner, session_id, limit=1)
        found = True
    except NotFound:
        found = False
    except StoreFailed:
        found = True  # what cannot be read can still be removed; a store that does not answer says so now
    await store.delete(owner, session_id)
    return found


def _visible(turns: list[Turn]) -> set[int]:
    """Return the numbers of the turns that no later one replaces."""
    newest = Newest(len(turns))
    for turn in reversed(turns):
        newest.take(turn)
    return {turn.seq for turn in newest.conversation()}


def _readable(turn: Turn, *, hidden: bool) -> str:
    """Return a turn as lines that a terminal only shows."""
    notes = [turn.status, *([f"attempt {turn.attempt}"] if turn.attempt > 1 else [])]
    if turn.finish_reason not in (None, "stop", "aborted", "content_filter"):
        notes.append(f"ended by {turn.finish_reason}")
    if turn.replaces is not None:
        notes.append(f"replaces #{turn.replaces}")
    if hidden:
        notes.append("hidden")
    lines = [f"#{turn.seq}  {clock(turn.created_at)}  {', '.join(notes)}  {turn.request_id}"]
    if turn.status == "blocked":
        side = "message" if turn.blocked == "input" else "answer"
        lines.append(f"{side} blocked as {turn.label!r}; the message had {turn.user_length} characters")
    else:
        lines.append(f"user: {turn.user}")
        if turn.assistant or turn.status == "complete":
            lines.append(f"assistant: {turn.assistant}")
    lines += [source_line(number, passage) for number, passage in enumerate(turn.passages, 1)]
    return plain("\n".join(lines))
