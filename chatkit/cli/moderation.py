"""`chatkit moderation train`: fit the embedded head."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from chatkit import wiring
from chatkit.cli import setting_options
from chatkit.settings import load_settings


@click.group("moderation")
def moderation() -> None:
    """Fit the embedded moderation head."""


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
