"""Make docs/cli.md from the commands, and the table of docs/configuration.md from the settings.

Run by `make docs`. What a flag does is written once, where the command or the setting is defined; the pages repeat it.
Flags that are settings are only named in docs/cli.md: docs/configuration.md has their meaning and defaults.
"""

import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from chatkit.cli import EXIT_CODES, group
from chatkit.settings import describe

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "docs" / "cli.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"

_TABLE_HEAD = "| setting | type | default | meaning |\n| --- | --- | --- | --- |\n"
_CODES = {1: "something failed", 2: "wrong usage, input or settings", 3: "not found", 4: "not now: try again later"}
_INTRO = """# Command line

Made from the commands by `make docs`; `chatkit COMMAND --help` says the same.

Results go to stdout, progress and errors to stderr. With `--json` the result is one JSON object, or one a line. An
error is one line that begins `error:`. Every command has `-h, --help`, each that takes settings has `--config FILE`,
the settings file to read. `chatkit --version` prints the version.

Flags under *Settings* are settings: [configuration.md](configuration.md) has the type, default and meaning of each, and
each is a variable `CHATKIT_…` and a key of `chatkit.toml` as well.

"""


def main() -> int:
    """Write both pages and return the exit status."""
    CLI.write_text(cli_page(), encoding="utf-8")
    CONFIGURATION.write_text(configuration_page(CONFIGURATION.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def cli_page() -> str:
    """Return docs/cli.md: the exit codes, then a section a command and sub-command, in the order of the help."""
    assert {code for _, code in EXIT_CODES} == set(_CODES), "an exit code has no words in scripts/docs.py"
    codes = "".join(f"| {code} | {words} |\n" for code, words in [(0, "done"), *_CODES.items(), (130, "interrupted")])
    top = click.Context(group, info_name="chatkit", **group.context_settings)
    sections = [section for name in group.list_commands(top) for section in _sections(group, name, top, 2)]
    return _INTRO + "| exit code | meaning |\n| --- | --- |\n" + codes + "\n" + "\n".join(sections)


def configuration_page(page: str) -> str:
    """Return a configuration page with its table of settings made anew; the rest stays as it is."""
    before, head, after = page.partition(_TABLE_HEAD)
    assert head, f"{CONFIGURATION} has no table that begins {_TABLE_HEAD!r}"
    rows = (
        f"| `{name}` | {_cell(kind)} | {f'`{default}`' if default else ''} | {_cell(text)} |\n"
        for name, kind, default, text in describe()
    )
    return before + head + "".join(rows) + re.sub(r"\A(?:\|.*\n)*", "", after)


def _sections(parent: click.Group, name: str, above: click.Context, level: int) -> Iterator[str]:
    """Yield the section of a command, then those of its sub-commands one level down."""
    command = parent.get_command(above, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=above)
    parts = [f"{'#' * level} `{context.command_path}`", *_text(command.help or "")]
    if isinstance(command, click.Group):
        yield _joined(parts)
        for inner in command.list_commands(context):
            yield from _sections(command, inner, context, level + 1)
        return
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts.insert(1, f"```\n{usage}\n```")
    own, settings = _options(command, context)
    if own:
        parts.append("| option | meaning |\n| --- | --- |\n" + "\n".join(own))
    if len(settings) == len(describe()):
        parts.append("Settings: all of [configuration.md](configuration.md).")
    elif settings:
        parts.append(f"Settings: {', '.join(settings)}.")
    yield _joined(parts)


def _options(command: click.Command, context: click.Context) -> tuple[list[str], list[str]]:
    """Return the rows of a command's own options, and the flags that are settings."""
    helps = {name: text for name, _, _, text in describe()}
    own, settings = [], []
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if record is None or not isinstance(option, click.Option) or {"--help", "--config"} & set(option.opts):
            continue
        if option.name in helps and (option.help or "").startswith(helps[option.name]):
            settings.append(f"`{option.opts[0]}`")
        else:
            own.append(f"| `{record[0].replace('|', chr(92) + '|')}` | {_cell(' '.join(record[1].split()))} |")
    return own, settings


def _text(help_text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; what click is told not to wrap becomes a block of code."""
    for paragraph in cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield "```\n" + paragraph.removeprefix("\b\n").strip("\n") + "\n```"
        elif paragraph.strip():
            yield _escaped(" ".join(paragraph.split()))


def _joined(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Return text whose `<words>` are code, which Markdown would take for HTML; what is code already stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"(<[^<>]+>)", r"`\1`", part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
