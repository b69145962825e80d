"""`chatkit prepare-index`: build an index from files, folders or a recipe."""

import dataclasses
import json
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from chatkit import wiring
from chatkit.cli import setting_options
from chatkit.errors import InvalidRequest
from chatkit.settings import load_settings

# Where recipes that are named rather than given as a file are looked up, from the working directory.
RECIPES = Path("index")

_KEYS = {"name", "root", "sources", "chunking"}
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an index is made of, as a TOML file says it; `sources` are resolved against its root."""

    name: str
    sources: tuple[str, ...]
    chunking: Mapping[str, int]


@click.command("prepare-index")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--name", help="Name of the index; the recipe's, or the setting `index`, unless given.")
@click.option("--recipe", metavar="NAME|FILE", help="A recipe in ./index, or a TOML file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@setting_options(
    *("home", "models_dir", "profile", "threads"),
    *("encoder", "encoder_backend", "encoder_device", "encoder_precision", "encoder_passage_prefix"),
)
def prepare_index(
    sources: tuple[str, ...],
    name: str | None,
    recipe: str | None,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Build an index from Markdown, HTML and text: files, folders, patterns, or a recipe.

    The finished index replaces the one of that name in one step; unchanged sources build nothing.

    \b
    chatkit prepare-index ~/handbook --name handbook
    chatkit prepare-index README.md 'docs/**/*.md' --name project
    chatkit prepare-index --recipe docs
    """
    if bool(sources) == bool(recipe):
        raise click.UsageError("Give sources or --recipe, one of them.")
    settings = load_settings(flags, file=Path(config) if config else None)
    made_from = read_recipe(recipe) if recipe else Recipe(settings.index or "docs", sources, {})
    with _Bar(sys.stderr.isatty()) as bar:
        report = wiring.prepare_index(
            settings,
            sources=made_from.sources,
            name=name or made_from.name,
            chunking=made_from.chunking,
            progress=bar,
        )
    click.echo(_summary(report), err=True)
    if as_json:
        table = dataclasses.asdict(report)
        click.echo(json.dumps({**table, "folder": str(report.folder)}, ensure_ascii=False))


def read_recipe(named: str) -> Recipe:
    """Read a recipe by file or by its name in ./index.

    Raises:
        InvalidRequest: there is none, or it is not a recipe, naming what is wrong.
    """
    file = Path(named)
    if not file.is_file():
        file = RECIPES / f"{named}.toml"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml"))) or "none"
        raise InvalidRequest(
            f"there is no recipe {named!r}: looked in {str(RECIPES.resolve())!r}, which has: {there}; "
            f"run this in a clone of the project, or name a recipe file"
        )
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the recipe {str(file)!r} is not valid TOML: {error}") from error
    if unknown := sorted(set(table) - _KEYS):
        raise InvalidRequest(f"the recipe {str(file)!r} has {unknown[0]!r}, expected only {', '.join(sorted(_KEYS))}")
    sources = table.get("sources")
    if not isinstance(sources, list) or not sources or not all(isinstance(source, str) for source in sources):
        raise InvalidRequest(f"the recipe {str(file)!r} has sources {sources!r}, expected a list of paths or patterns")
    root = (file.parent / str(table.get("root", "."))).resolve()
    resolved = tuple(str(root / source) for source in sources)
    return Recipe(str(table.get("name", file.stem)), resolved, table.get("chunking", {}))


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
