"""`chatkit eval moderation`: figures of the moderator on labelled texts."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from chatkit.cli import setting_options
from chatkit.moderation_settings import ModerationSettings
from chatkit.settings import load_settings


@click.command("moderation")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw recall against false alarms as SVG."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every score and action.")
@setting_options(
    *("policy", "check_timeout_s", "home", "models_dir", "encoder", "encoder_backend", "threads"),
    *(spec.name for spec in fields(ModerationSettings)),
)
def moderation(
    files: tuple[Path, ...],
    picture: Path | None,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Judge the texts in each FILE and compare with their labels: how well scores rank, and what the policy blocks.

    \b
    chatkit eval moderation labelled.jsonl
    chatkit eval moderation one.jsonl two.jsonl --policy strict --picture curves.svg --json

    A line is {"text": "…", "flagged": 0, 1 or null}, and may have "categories" (name to 0 or 1) and "direction".
    Exits with 1 where a check could not run: such a text counts as blocked, and is in no ranking.
    """
    from tqdm import tqdm

    from chatkit.evaluation.moderation import eval_moderation

    settings = load_settings(flags, file=Path(config) if config else None)
    with tqdm(desc="texts", unit="text", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = eval_moderation(settings, files, drawn=picture, progress=progress)
    click.echo(report.as_json() if as_json else report.as_table())
    if failed := sum(row["action"] == "unavailable" for row in report.rows):
        click.echo(f"{failed} of {len(report.rows)} texts could not be checked", err=True)
        raise SystemExit(1)
