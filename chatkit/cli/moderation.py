"""`chatkit moderation`: fit the embedded head, check and show policies, export what users reported."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from chatkit import feedback, wiring
from chatkit.cli import setting_options
from chatkit.errors import InvalidRequest
from chatkit.settings import load_settings


@click.group("moderation")
def moderation() -> None:
    """Fit the embedded moderation head, check policies, export reports of wrong refusals."""


@moderation.command("train")
@click.option("--data", required=True, metavar="DIR", help="Folder of labelled sets; docs/moderation.md describes it.")
@click.option("--out", metavar="FILE", help="Where to write the weights; those that are shipped, unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print rows and figures as JSON on stdout.")
@setting_options("home", "models_dir", "encoder", "encoder_backend", "threads")
def train(data: str, out: str | None, as_json: bool, config: str | None, flags: dict[str, Any]) -> None:
    """Encode labelled texts, fit the head on them and measure it on texts that were held out.

    The same data and encoder give the same weights, byte for byte, on the same machine.
    """
    settings = load_settings(flags, file=Path(config) if config else None)
    with _Bar(sys.stderr.isatty()) as bar:
        report = wiring.train_head(settings, folder=Path(data), out=Path(out) if out else None, progress=bar)
    if as_json:
        table = {"path": str(report.path), "encoder": report.encoder, "rows": report.rows, "figures": report.figures}
        click.echo(json.dumps(table, ensure_ascii=False))
        return
    click.echo(f"fitted on {sum(report.rows.values())} texts of {len(report.rows)} sets, written to {report.path}")
    for name, value in report.figures.items():
        click.echo(f"  {name:36} {value:.4f}")


@moderation.group("policy")
def policy() -> None:
    """Show and check moderation policies."""


@policy.command("check")
@click.argument("file")
def check(file: str) -> None:
    """Read the policy FILE and say whether it can be used; a fault is named with its line and key."""
    read = wiring.read_policy(file)
    blocked, allowed = (sum(len(rule.phrases.phrases) for rule in rules) for rules in (read.block, read.allow))
    for phrase in (phrase for rules in (read.block, read.allow) for rule in rules for phrase in rule.phrases.clipped):
        click.echo(
            f"{phrase!r} stands for its letters alone, wherever they are a word: signs are not compared", err=True
        )
    domain = "a domain" if read.domain else "no domain"
    languages = ", ".join(read.texts.table) or "no language"
    click.echo(f"{file} is good: {blocked} blocked phrases, {allowed} allowed, {domain}, texts in {languages}")


@policy.command("show")
@click.argument("name")
@click.option("--model", metavar="NAME", help="Show what counts for the scores of that model, such as qwen3guard/.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def show(name: str, model: str | None, as_json: bool) -> None:
    """Show the thresholds of the policy NAME, or of a file, by direction and category, those of its base included.

    They are for the embedded head unless --model is given: a moderation model may have rows of its own.
    """
    policy = wiring.read_policy(name)
    if model and not policy.beginning(model):
        if policy.beginning(f"{model}/"):  # a family's name, as docs and settings have it
            model = f"{model}/"
        else:
            known = ", ".join(sorted(policy.models)) or "none"
            click.echo(f"{name} has no rows for {model!r}, so the head's count; it has rows for: {known}", err=True)
    read = policy.of(model or "")
    steps = ("annotate", "soften", "refuse", "escalate", "doubt")
    table = {
        direction: {
            category: {step: value for step in steps if (value := getattr(row, step)) is not None and value <= 1}
            for category, row in rows.items()
        }
        for direction, rows in read.table.items()
    }
    if as_json:
        click.echo(json.dumps({"name": policy.name, "model": model, "doubt": read.doubt, "thresholds": table}))
        return
    for direction, rows in table.items():
        for category, row in rows.items():
            told = ", ".join(f"{step} from {value:g}" for step, value in row.items() if step != "doubt")
            doubt = f", doubt {row['doubt']:g}" if "doubt" in row else ""
            click.echo(f"{direction:8} {category:14} {told or 'nothing'}{doubt}")
    click.echo(f"doubt    {read.doubt:g}")


@moderation.command("report")
@click.option("--out", metavar="FILE", help="Where to write the rows; stdout, unless given.")
@click.option("--all", "everything", is_flag=True, help="Also those without the text that was refused.")
@setting_options("home")
def report(out: str | None, everything: bool, config: str | None, flags: dict[str, Any]) -> None:
    """Export the refusals that users reported as wrong, as JSON lines for an evaluation.

    Each row has the text, "flagged": 0 as its user says, the direction, and what was decided by which model. What is
    refused wrongly by a user's word is to be read by somebody before it is believed.
    """
    settings = load_settings(flags, file=Path(config) if config else None)
    found = [row for row in feedback.rows(settings.feedback_file) if everything or row["verified"]]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    if out is None:
        click.echo(lines, nl=False)
        return
    try:
        Path(out).write_text(lines, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"--out {out!r} cannot be written: {error.strerror}; name a file in a folder") from error
    click.echo(f"{len(found)} rows written to {out}")


class _Bar:
    """Shows on a terminal's stderr how many texts are encoded; nothing elsewhere."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._bar: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, done: int, total: int) -> None:
        if not self._terminal:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc="encoding", unit="text", file=sys.stderr)
        self._bar.update(done - self._bar.n)
