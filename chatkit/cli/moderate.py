"""`chatkit moderate`: label and score texts."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

import click

from chatkit import release, wiring
from chatkit.cli import setting_options
from chatkit.errors import InvalidRequest
from chatkit.moderation_settings import ModerationSettings
from chatkit.settings import load_settings
from chatkit.types import ACTIONS, Direction, ModerationResult

SETTINGS = (
    *("policy", "check_timeout_s", "refusal", "home", "models_dir", "encoder", "encoder_backend", "threads"),
    *(spec.name for spec in fields(ModerationSettings)),
)
DIRECTIONS: tuple[str, ...] = get_args(Direction)
# Scores that are shown on one line.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Row:
    """A text to judge; `expect` is the action that it should get, None for whatever it gets."""

    text: str
    direction: Direction
    history: tuple[str, ...] = ()
    expect: str | None = None


@click.command("moderate")
@click.argument("text", required=False)
@click.option("--input", "file", metavar="FILE", help='One text a line, or JSON lines with "text"; - is stdin.')
@click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    default="input",
    help="Judge as a user's message, as an answer, or as a passage of an index.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a text.")
@setting_options(*SETTINGS)
def moderate(
    text: str | None,
    file: str | None,
    direction: str,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Label and score TEXT, a file of texts, or what stdin holds.

    \b
    chatkit moderate "How do I kill a Python process?"
    chatkit moderate --input texts.jsonl --direction output --policy strict --json
    chatkit moderate --input cases.jsonl --policy mine.toml
    chatkit moderate --moderator guard --moderation-model Qwen/Qwen3Guard-Gen-0.6B \\
      --moderation-endpoint http://127.0.0.1:8001/v1 "Hello there"

    A line of JSON may also have "direction", "history" (what was said before, the user first) and "expect", the action
    that the policy should take. Exits with 0 whenever every check ran; the label and the action are the result. Exits
    with 1 where a check could not run, or an action is another than was expected.
    """
    if text is not None and file is not None:
        raise click.UsageError("Give TEXT or --input, not both.")
    settings = load_settings(flags, file=Path(config) if config else None)
    usual = cast(Direction, direction)
    rows = list(_rows(file, usual)) if file is not None else [_Row(sys.stdin.read() if text is None else text, usual)]

    async def check_all() -> int:
        failed = 0
        async with AsyncExitStack() as stack:
            moderator = wiring.open_moderator(settings, wiring.moderation_encoder(settings), stack)
            for number, row in enumerate(rows, 1):
                result = await release.checked(
                    moderator, row.text, direction=row.direction, history=row.history, timeout=settings.check_timeout_s
                )
                click.echo(_as_json(row.text, result) if as_json else _as_line(result))
                done = "unavailable" if result.unavailable else result.action
                if row.expect not in (None, done):
                    click.echo(f"text {number} is {done}, expected {row.expect}", err=True)
                failed += result.unavailable or row.expect not in (None, done)
        return failed

    if failed := asyncio.run(check_all()):
        click.echo(f"{failed} of {len(rows)} texts could not be checked or are not as expected", err=True)
        raise SystemExit(1)


def _rows(file: str, usual: Direction) -> Iterator[_Row]:
    """Yield the texts of a file; a line that is a JSON object stands for its fields, an empty line for nothing."""
    try:
        lines = (sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"--input {file!r} cannot be read: {error}; expected a text file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            yield _Row(line, usual)
            continue
        try:
            yield _row(json.loads(line), usual, f"line {number} of {file!r}")
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidRequest(f"line {number} of {file!r} is not valid JSON: {error}") from error


def _row(table: dict[str, Any], usual: Direction, where: str) -> _Row:
    text, history = table.get("text"), table.get("history", [])
    direction, expect = table.get("direction", usual), table.get("expect")
    if not isinstance(text, str):
        raise InvalidRequest(f'{where} has text {text!r}, expected {{"text": "…"}}')
    if direction not in DIRECTIONS:
        raise InvalidRequest(f"{where} has direction {direction!r:.40}, expected one of {', '.join(DIRECTIONS)}")
    if not isinstance(history, list) or not all(isinstance(said, str) for said in history):
        raise InvalidRequest(f"{where} has history {history!r:.40}, expected a list of texts")
    if expect not in (None, *ACTIONS):
        raise InvalidRequest(f"{where} has expect {expect!r:.40}, expected one of {', '.join(ACTIONS)}")
    return _Row(text, cast(Direction, direction), tuple(history), expect)


def _as_json(text: str, result: ModerationResult) -> str:
    return json.dumps({"text": text, **asdict(result)}, ensure_ascii=False)


def _as_line(result: ModerationResult) -> str:
    """Return label, action, and the highest category scores."""
    top = sorted(result.scores.items(), key=lambda pair: -pair[1])[:_SHOWN]
    scores = ", ".join(f"{name} {score:.2f}" for name, score in top)
    done = "unavailable" if result.unavailable else result.action
    return f"{result.label or '-'}\t{done}\t{scores}"
