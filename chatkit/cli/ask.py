"""`chatkit ask`."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatkit.cli import log_to_stderr, setting_options
from chatkit.cli._owners import owner_of, owner_options
from chatkit.cli._show import as_json as json_line
from chatkit.cli._show import plain, source_line, support_notes
from chatkit.settings import Settings, load_settings
from chatkit.types import Owner

if TYPE_CHECKING:
    from chatkit.types import Reply


@click.command()
@click.argument("message")
@click.option("--session", metavar="ID", help="Go on with a session; the id of each answer is shown with --json.")
@click.option("--no-retrieval", is_flag=True, help="Answer from the model alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one JSON object.")
@owner_options
@setting_options(
    "home", "models_dir", "index", "min_score", "policy", "profile", "chat_model", "max_new_tokens", "threads"
)
def ask(
    message: str,
    session: str | None,
    no_retrieval: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
    **whose: str | None,
) -> None:
    """Ask one question here, without a server: the same turn, moderated, grounded and stored.

    \b
    chatkit ask "Which port does the service listen on?"
    chatkit ask --no-retrieval --json "What is the capital of France?"

    The answer goes to stdout, its sources to stderr.
    """
    settings = load_settings(flags, file=Path(config) if config else None)
    owner = owner_of(settings, **whose)
    log_to_stderr()
    if no_retrieval:
        settings = settings.without_index()
    asyncio.run(_ask(settings, owner, message, session, as_json))


async def _ask(settings: Settings, owner: Owner, message: str, session: str | None, as_json: bool) -> None:
    from chatkit.service import new_request_id
    from chatkit.types import ChatRequest, Error, Replace, Reply, RetrievalOptions, SamplingParams, TextDelta
    from chatkit.wiring import build_service

    service = await build_service(settings)
    request = ChatRequest(
        text=message,
        request_id=new_request_id(),
        owner=owner,
        session_id=session,
        sampling=SamplingParams(max_new_tokens=settings.max_new_tokens),
        retrieval=RetrievalOptions(k=settings.k),
    )
    try:
        async for event in service.stream(request):
            match event:
                case TextDelta(text) if not as_json:
                    click.echo(plain(text), nl=False)
                case Replace(text, label) if not as_json:
                    click.echo(plain(f"\n{text} [{label or 'unavailable'}]"), nl=False)
                case Reply():
                    _show(event, as_json)
                case Error(error):
                    raise error
    finally:
        await service.close(0)


def _show(reply: "Reply", as_json: bool) -> None:
    if as_json:
        from chatkit.server.protocols.native import answer

        click.echo(json_line(answer(reply)))
        return
    click.echo()
    for note in support_notes(reply):
        click.echo(plain(note), err=True)
    for number, passage in enumerate(reply.passages, 1):
        click.echo(source_line(number, passage), err=True)
