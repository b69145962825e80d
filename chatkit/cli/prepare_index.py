"""`chatkit prepare-index`: build an index from files, folders or a recipe, whole or in shards."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from chatkit import indexing
from chatkit.cli import setting_options
from chatkit.cli._building import Bar, ray_options, vector_options
from chatkit.cli._published import prepare_published
from chatkit.recipes import Recipe, read_recipe
from chatkit.settings import load_settings
from chatkit.web_sources import split_web

_MOST_LISTED = 20


@click.command("prepare-index")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--name", help="Name of the index; the recipe's, or the setting `index`, unless given.")
@click.option("--recipe", metavar="NAME|FILE", help="A recipe in ./index, or a TOML file.")
@vector_options
@click.option("--shard", metavar="I/N", help="Make shard I of N only, for `chatkit index merge`; needs --out.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the shards.")
@click.option("--already-split", is_flag=True, help="The sources given are those of this shard alone.")
@ray_options
@click.option("--scan/--no-scan", default=True, help="Let moderation score each passage, for policies to go by.")
@click.option("--allow-web", is_flag=True, help="Take web addresses as sources too: one page each, public hosts only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@setting_options(
    *("home", "models_dir", "profile", "threads", "keep_versions"),
    *("encoder", "encoder_backend", "encoder_device", "encoder_precision", "encoder_passage_prefix"),
)
def prepare_index(
    sources: tuple[str, ...],
    name: str | None,
    recipe: str | None,
    vectors: str,
    recall: float,
    shard: str | None,
    out: Path | None,
    already_split: bool,
    ray: indexing.RayPool | None,
    scan: bool,
    allow_web: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Build an index from documents: files, folders, patterns, or a recipe.

    The finished index replaces the one of that name in one step; unchanged sources build nothing. A build that was
    stopped or killed goes on where it was when the same command is run again.

    \b
    chatkit prepare-index ~/handbook --name handbook
    chatkit prepare-index README.md 'docs/**/*.md' --name project
    chatkit prepare-index --recipe docs
    chatkit prepare-index ~/library --shard 3/50 --out /mnt/shards
    """
    if bool(sources) == bool(recipe):
        raise click.UsageError("Give sources or --recipe, one of them.")
    if (shard is None) != (out is None) or (already_split and shard is None):
        raise click.UsageError("Give --shard and --out together.")
    settings = load_settings(flags, file=Path(config) if config else None)
    made_from = read_recipe(recipe) if recipe else Recipe(settings.index or "docs", sources)
    if made_from.kind == "openchatkit":
        prepare_published(settings, made_from, name=name or made_from.name, as_json=as_json)
        return
    pages, files = split_web(made_from.sources, allowed=allow_web)
    entries = (*made_from.entries(), *pages)
    asked = indexing.Asked(files, entries, made_from.chunking, vectors, recall, ray, scan)
    report: Any
    with Bar(sys.stderr.isatty()) as bar:
        if shard is not None and out is not None:
            report = indexing.prepare_shard(settings, asked, shard=shard, out=out, is_split=already_split, progress=bar)
        else:
            report = indexing.prepare_index(settings, asked, name=name or made_from.name, progress=bar)
    click.echo(summary(report), err=True)
    if as_json:
        table = dataclasses.asdict(report)
        click.echo(json.dumps({**table, "folder": str(report.folder)}, ensure_ascii=False))


def summary(report: Any) -> str:
    """Return what a build did, for people."""
    counts = f"{report.documents} documents, {report.passages} passages"
    if hasattr(report, "of"):
        lines = [f"shard {report.number}/{report.of} made in {report.seconds:.1f} s: {counts}, in {report.folder}"]
    elif report.up_to_date:
        lines = [f"index {report.name!r} is up to date: {counts}"]
    else:
        lines = [f"index {report.name!r} built in {report.seconds:.1f} s: {counts}, {report.embedded} of them embedded"]
        if report.duplicates or report.near_duplicates:
            lines.append(f"  left out: {report.duplicates} duplicates, {report.near_duplicates} near duplicates")
    lines += [f"  skipped {entry.source}: {entry.reason}" for entry in report.skipped[:_MOST_LISTED]]
    if len(report.skipped) > _MOST_LISTED:
        lines.append(f"  … and {len(report.skipped) - _MOST_LISTED} more; --json lists all")
    return "\n".join(lines)
