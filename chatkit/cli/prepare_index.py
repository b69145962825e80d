"""`chatkit prepare-index`: build an index from files, folders or a recipe."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from chatkit import wiring
from chatkit.cli import setting_options
from chatkit.cli._published import prepare_published
from chatkit.recipes import Recipe, read_recipe
from chatkit.settings import load_settings
from chatkit.web_sources import split_web

_MOST_LISTED = 20


@click.command("prepare-index")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--name", help="Name of the index; the recipe's, or the setting `index`, unless given.")
@click.option("--recipe", metavar="NAME|FILE", help="A recipe in ./index, or a TOML file.")
@click.option("--allow-web", is_flag=True, help="Take web addresses as sources too: one page each, public hosts only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@setting_options(
    *("home", "models_dir", "profile", "threads"),
    *("encoder", "encoder_backend", "encoder_device", "encoder_precision", "encoder_passage_prefix"),
)
def prepare_index(
    sources: tuple[str, ...],
    name: str | None,
    recipe: str | None,
    allow_web: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Build an index from documents: files, folders, patterns, or a recipe.

    The finished index replaces the one of that name in one step; unchanged sources build nothing.

    \b
    chatkit prepare-index ~/handbook --name handbook
    chatkit prepare-index README.md 'docs/**/*.md' --name project
    chatkit prepare-index --recipe docs
    """
    if bool(sources) == bool(recipe):
        raise click.UsageError("Give sources or --recipe, one of them.")
    settings = load_settings(flags, file=Path(config) if config else None)
    made_from = read_recipe(recipe) if recipe else Recipe(settings.index or "docs", sources)
    if made_from.kind == "openchatkit":
        prepare_published(settings, made_from, name=name or made_from.name, as_json=as_json)
        return
    pages, files = split_web(made_from.sources, allowed=allow_web)
    with _Bar(sys.stderr.isatty()) as bar:
        report = wiring.prepare_index(
            settings,
            sources=files,
            name=name or made_from.name,
            chunking=made_from.chunking,
            entries=(*made_from.entries(), *pages),
            progress=bar,
        )
    click.echo(_summary(report), err=True)
    if as_json:
        table = dataclasses.asdict(report)
        click.echo(json.dumps({**table, "folder": str(report.folder)}, ensure_ascii=False))


def _summary(report: Any) -> str:
    """Return what was done, for people."""
    counts = f"{report.documents} documents, {report.passages} passages"
    if report.up_to_date:
        lines = [f"index {report.name!r} is up to date: {counts}"]
    else:
        lines = [f"index {report.name!r} built in {report.seconds:.1f} s: {counts}"]
        if report.duplicates:
            lines.append(f"  {report.duplicates} duplicate passages left out")
    lines += [f"  skipped {entry.source}: {entry.reason}" for entry in report.skipped[:_MOST_LISTED]]
    if len(report.skipped) > _MOST_LISTED:
        lines.append(f"  … and {len(report.skipped) - _MOST_LISTED} more; --json lists all")
    return "\n".join(lines)


class _Bar:
    """Shows progress on stderr: a bar on a terminal, elsewhere a line for each tenth of the chunks."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._bar: Any = None
        self._tenth = 0

    def __enter__(self) -> Callable[[Any], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, progress: Any) -> None:
        if progress.stage != "embed":
            return
        if self._terminal:
            self._move(progress)
        elif (tenth := 10 * progress.chunks // progress.chunks_total) > self._tenth:
            self._tenth = tenth
            click.echo(
                f"embedded {progress.chunks} of {progress.chunks_total} chunks of {progress.files} files, "
                f"{progress.chunks_per_s:.0f} chunks/s, {progress.skipped} skipped",
                err=True,
            )

    def _move(self, progress: Any) -> None:
        if self._bar is None:
            import tqdm

            self._bar = tqdm.tqdm(total=progress.chunks_total, unit=" chunks", desc="embedding", file=sys.stderr)
        self._bar.set_postfix(files=progress.files, skipped=progress.skipped, refresh=False)
        self._bar.update(progress.chunks - self._bar.n)
