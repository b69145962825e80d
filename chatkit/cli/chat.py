"""`chatkit chat`: the interactive shell, around a service in this process or one behind an address."""

import asyncio
import logging
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatkit.cli import exit_code, log_to_stderr, setting_options
from chatkit.cli._owners import owner_of, owner_options
from chatkit.cli._show import one_line
from chatkit.errors import ChatkitError, ConfigError
from chatkit.settings import Settings, load_settings
from chatkit.types import Owner

if TYPE_CHECKING:
    from chatkit.cli._hyperparameters import Hyperparameters
    from chatkit.cli._interrupts import Interrupts
    from chatkit.cli._screens import Screen
    from chatkit.cli._talkers import Talker

# Settings of a service that runs here; one behind an address has its own.
_SERVICE = ("models_dir", "profile", "min_score", "policy", "chat_model", "threads", "store")
_DYNAMODB = ("dynamodb_table", "dynamodb_region", "dynamodb_endpoint")
# Settings that are also fields of a request.
_REQUEST = ("index", "k", "max_new_tokens")


@click.command()
@click.option("--url", metavar="URL", help="Talk to the service that runs there; without it one is started here.")
@click.option("--session", metavar="ID", help="Go on with a session; the id is shown on leaving.")
@click.option("--no-retrieval", is_flag=True, help="Answer from the model alone.")
@click.option("--json", "as_json", is_flag=True, help="Read lines without a prompt, print one JSON object a turn.")
@owner_options
@setting_options("home", *_REQUEST, *_SERVICE, *_DYNAMODB, "feedback", "api_key", "api_key_file")
def chat(
    url: str | None,
    session: str | None,
    no_retrieval: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
    **whose: str | None,
) -> None:
    """Talk to the service: each line is a message, /help lists the commands, Ctrl-D leaves.

    \b
    chatkit chat
    chatkit chat --url http://127.0.0.1:8080 --session my-session
    printf 'What is chatkit?\\n' | chatkit chat --json

    Ctrl-C stops an answer. Without a terminal every line of stdin is a message: answers go to stdout, the rest to
    stderr.
    """
    from chatkit.cli._interrupts import Interrupts, Stopped
    from chatkit.types import check_id

    _require_streams()
    if session is not None:
        check_id("--session", session)
    settings = load_settings(flags, file=Path(config) if config else None)
    _require_fitting(url, flags | whose)
    log_to_stderr()
    logging.getLogger("chatkit.checking").setLevel(logging.WARNING)  # the shell shows what was refused
    if no_retrieval and url is None:
        settings = settings.without_index()
    chosen = {name: getattr(settings, name) for name in _REQUEST if flags[name] is not None} if url else {}
    if no_retrieval and url is not None:
        chosen["retrieval"] = False
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    with Interrupts() as interrupts:
        try:
            chatting = _Chat(settings, url, whose, chosen, interrupts)
            talk = chatting.run(session, terminal=terminal, as_json=as_json)
            failure = asyncio.run(talk)
        except Stopped:
            raise click.Abort from None
    if failure is not None and not terminal:
        sys.exit(exit_code(failure))


def _require_streams() -> None:
    """Refuse a standard input or output that was closed, where a file opened later would take its place."""
    for name, stream in (("input", sys.stdin), ("output", sys.stdout)):
        if stream is None:
            raise ChatkitError(f"standard {name} is closed, expected a terminal, a pipe or a file")


def _require_fitting(url: str | None, flags: dict[str, Any]) -> None:
    """Refuse settings that would do nothing."""
    given = next((name for name in (*_SERVICE, *_DYNAMODB, "user", "tenant") if flags[name] is not None), None)
    if url is not None and given is not None:
        from chatkit.client.native import address_of

        flag = "--" + given.replace("_", "-")
        address = address_of(url)
        raise ConfigError(
            f"{flag} is for the service at {address} to decide, expected no such flag; leave out one of both"
        )


class _Chat:
    """One run of the command."""

    def __init__(
        self,
        settings: Settings,
        url: str | None,
        whose: dict[str, str | None],
        chosen: dict[str, Any],
        interrupts: "Interrupts",
    ) -> None:
        self._settings = settings
        self._url = url
        # A service behind an address knows its callers itself.
        self._owner = Owner() if url is not None else owner_of(settings, **whose)
        self._named = {f"--{name}": value for name, value in whose.items() if value is not None}
        self._chosen = chosen
        self._interrupts = interrupts

    async def run(self, session: str | None, *, terminal: bool, as_json: bool) -> ChatkitError | None:
        """Open the service, talk, say how to go on, and return the first thing that went wrong."""
        from chatkit.cli._shell import Shell

        talker = await self._talker()
        try:
            screen = self._screen(talker, terminal=terminal, as_json=as_json)
            shell = Shell(talker, screen, self._interrupts, self._hyperparameters(), session)
            await shell.run()
        finally:
            await talker.close()
        lasting = self._url is not None or self._settings.store != "memory"
        if shell.lasting and lasting:
            where = ["--url", talker.name] if self._url else [word for pair in self._named.items() for word in pair]
            command = shlex.join(["chatkit", "chat", *where, "--session", shell.lasting])
            click.echo(one_line(f"go on with: {command}"), err=True)
        return shell.failure

    async def _talker(self) -> "Talker":
        from chatkit.cli import _talkers

        if self._url is not None:
            return _talkers.remote_talker(self._url, self._settings.api_key, _say_again)
        from chatkit.wiring import build_service

        async with _loading():
            service = await self._interrupts.stoppable(build_service(self._settings))
        return _talkers.LocalTalker(service, self._owner)

    def _hyperparameters(self) -> "Hyperparameters":
        from chatkit.cli._hyperparameters import Hyperparameters
        from chatkit.types import SamplingParams

        if self._url is not None:
            return Hyperparameters(chosen=self._chosen)
        settings = self._settings
        defaults = asdict(replace(SamplingParams(), max_new_tokens=settings.max_new_tokens))
        defaults |= {"stop": None, "retrieval": True, "k": settings.k, "index": settings.index}
        return Hyperparameters(defaults, searches=bool(settings.index))

    def _screen(self, talker: "Talker", *, terminal: bool, as_json: bool) -> "Screen":
        from chatkit.cli import _screens, _shell

        if not terminal:
            return _screens.PipeScreen(self._interrupts, as_json)
        from chatkit.cli import _terminal

        kept = self._url is not None or self._settings.store != "memory"
        history = _terminal.KeptHistory(self._settings.home / "chat_history" if kept else None)
        screen = _terminal.TerminalScreen(history, _shell.COMMANDS, self._interrupts)
        screen.tell(f"chatkit, {talker.name}. /help lists the commands, Ctrl-D leaves.")
        return screen


def _say_again(error: ChatkitError) -> None:
    click.echo(one_line(f"{error}; asking again"), err=True)


@asynccontextmanager
async def _loading() -> AsyncIterator[None]:
    """Show on stderr that the models load, on a terminal with the seconds."""
    if sys.stderr is None or not sys.stderr.isatty():
        click.echo("loading the models …", err=True)
        yield
        return
    ticking = asyncio.create_task(_tick())
    try:
        yield
    finally:
        ticking.cancel()
        click.echo("\r\x1b[K", nl=False, err=True)


async def _tick() -> None:
    for seconds in range(10**6):
        click.echo(f"\rloading the models … {seconds or ''}", nl=False, err=True)
        await asyncio.sleep(1)
