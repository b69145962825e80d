"""The `chatkit` command: one group, one file a command, each imported only when it is run."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from chatkit import errors
from chatkit.settings import describe

COMMANDS = {
    "ask": "Ask one question here, without a server.",
    "bench": "Measure chatkit against the bare parts it is made of.",
    "chat": "Talk to the service, line by line.",
    "eval": "Measure answers on a labelled set.",
    "index": "List indexes and choose which version is live.",
    "models": "Fetch models and list them.",
    "moderate": "Label and score a text.",
    "moderation": "Train the embedded moderation head.",
    "prepare-index": "Build an index from files and folders.",
    "search": "Look up passages in an index.",
    "serve": "Answer over HTTP.",
    "sessions": "List, show, export, import, check and remove sessions.",
}

# Exit codes: 0 done, 1 something failed, 2 wrong usage or input, 3 not found, 4 try again later, 130 interrupted.
EXIT_CODES: tuple[tuple[type[errors.ChatkitError], int], ...] = (
    (errors.InvalidRequest, 2),
    (errors.ConfigError, 2),
    (errors.NotFound, 3),
    (errors.BadIndex, 3),
    (errors.Unavailable, 4),
    (errors.Offline, 4),
    (errors.ChatkitError, 1),
)


class _LazyGroup(click.Group):
    """A group that knows its commands by name and imports the file of the one that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"chatkit.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Flags are also variables CHATKIT_… and keys of chatkit.toml. Results go to stdout, the rest to stderr.",
)
@click.version_option(package_name="chatkit")
def group() -> None:
    """A moderated, grounded chat service you own.

    \b
    chatkit models pull           the default models, once
    chatkit prepare-index docs/   an index of your documents
    chatkit ask "…"               one answer, here
    chatkit serve                 the service, on http://127.0.0.1:8080
    """


def setting_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--config` and one option for each named setting; the command gets them as one dict called `flags`.

    Values are handed on as given: `load_settings` parses them, the same for flags, environment and file.
    """
    rows = {name: (kind, default, text) for name, kind, default, text in describe()}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def collect(*args: Any, **kwargs: Any) -> Any:
            flags = {name: kwargs.pop(name) for name in names}
            return command(*args, flags=flags, **kwargs)

        collect.__doc__ = command.__doc__
        collect.__name__ = command.__name__
        collect.__dict__.update(command.__dict__)
        wrapped: Callable[..., Any] = collect
        for name in reversed(names):
            kind, default, text = rows[name]
            flag = "--" + name.replace("_", "-")
            if kind == "bool":
                flag = f"{flag}/--no-{name.replace('_', '-')}"
                shown: dict[str, Any] = {"is_flag": True}
            else:
                shown = {"metavar": kind.upper() if "|" not in kind else f"[{kind}]"}
            suffix = f"  [default: {default}]" if default else ""
            wrapped = click.option(flag, name, default=None, show_default=False, help=text + suffix, **shown)(wrapped)
        return click.option("--config", type=click.Path(dir_okay=False), help="Settings file.")(wrapped)

    return decorate


def log_to_stderr() -> None:
    """Show what chatkit reports, and other libraries' warnings, on stderr; never a message, an answer or a key."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("chatkit").setLevel(logging.INFO)


def exit_code(error: errors.ChatkitError) -> int:
    """Return the exit code of an error of the tree."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def _help_of(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{context.command_path if context else 'chatkit'} --help"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors of the tree and of the system become one line on stderr and their exit code."""
    from chatkit.cli._show import one_line

    try:
        group.main(args=arguments, prog_name="chatkit", standalone_mode=False)
    except errors.ChatkitError as error:
        click.echo(one_line(f"error: {error}"), err=True)
        sys.exit(exit_code(error))
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()} See: {_help_of(error)}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _leave_output()
        click.echo(one_line(f"error: {error}"), err=True)
        sys.exit(1)


def _leave_output() -> None:
    """Let go of what stdout cannot take: the interpreter would complain about it once more while it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
