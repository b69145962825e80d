"""`chatkit moderate`: label and score texts."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import click

from chatkit import wiring
from chatkit.cli import setting_options
from chatkit.errors import InvalidRequest
from chatkit.moderation_settings import ModerationSettings
from chatkit.settings import load_settings
from chatkit.types import Direction, ModerationResult

# The settings that say which model moderates.
MODERATION = tuple(spec.name for spec in fields(ModerationSettings))
# Scores that are shown on one line.
_SHOWN = 3


@click.command("moderate")
@click.argument("text", required=False)
@click.option("--input", "file", metavar="FILE", help='One text a line, or JSON lines with "text"; - is stdin.')
@click.option(
    "--direction",
    type=click.Choice(["input", "output"]),
    default="input",
    help="Judge as a user's message or as an answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a text.")
@setting_options("policy", "home", "models_dir", "encoder", "encoder_backend", "threads", *MODERATION)
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
    chatkit moderate --moderator guard --moderation-endpoint http://127.0.0.1:8001/v1 \\
      --moderation-model Qwen/Qwen3Guard-Gen-0.6B "Hello there"

    Exits with 0 whenever the check ran; the label and the action are the result.
    """
    if text is not None and file is not None:
        raise click.UsageError("Give TEXT or --input, not both.")
    settings = load_settings(flags, file=Path(config) if config else None)
    texts = list(_lines(file)) if file is not None else [text if text is not None else sys.stdin.read()]
    encoder = wiring.moderation_encoder(settings)

    async def check_all() -> None:
        async with AsyncExitStack() as stack:
            moderator = wiring.open_moderator(settings, encoder, stack)
            for one in texts:
                result = await moderator.check(one, direction=cast(Direction, direction))
                click.echo(_as_json(one, result) if as_json else _as_line(result))

    asyncio.run(check_all())


def _lines(file: str) -> Iterator[str]:
    """Yield the texts of a file; a line that is a JSON object stands for its `text`, an empty line for nothing."""
    try:
        lines = (sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"--input {file!r} cannot be read: {error}; expected a text file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            yield line
            continue
        try:
            text = json.loads(line).get("text")
        except json.JSONDecodeError as error:
            raise InvalidRequest(f"line {number} of {file!r} is not valid JSON: {error}") from error
        if not isinstance(text, str):
            raise InvalidRequest(f'line {number} of {file!r} has text {text!r}, expected {{"text": "…"}}')
        yield text


def _as_json(text: str, result: ModerationResult) -> str:
    return json.dumps({"text": text, **asdict(result)}, ensure_ascii=False)


def _as_line(result: ModerationResult) -> str:
    """Return label, action, and the highest category scores."""
    top = sorted(result.scores.items(), key=lambda pair: -pair[1])[:_SHOWN]
    scores = ", ".join(f"{name} {score:.2f}" for name, score in top)
    return f"{result.label}\t{result.action}\t{scores}"
