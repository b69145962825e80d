"""`chatkit index`: which indexes there are, which version of one is live, merging shards and removing the spare."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from chatkit.cli import setting_options
from chatkit.cli._building import Bar, vector_options
from chatkit.cli._show import as_json as json_line
from chatkit.cli._show import plain
from chatkit.settings import Settings, load_settings

_HEAD = ("", "name", "live", "others", "passages", "documents", "size", "encoder", "built", "state")
_MATCHES = {True: "matches", False: "another", None: "unknown"}
# A text of its own: click wants a true backspace character before lines that are not to be wrapped.
_USE = """Make a kept version of an index the live one, once every byte of it is checked.

VERSION is a number such as 000001, `newest`, or `previous`: the newest good one before the live one. A bad version is
refused and what is live stays so. A running service follows within about a second.

\b
chatkit index use handbook previous
chatkit index use handbook 000002
"""


@click.group()
def index() -> None:
    """List indexes, choose which version is live, merge shards, remove what is spare."""


@index.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@setting_options("index", "home", "models_dir", "encoder")
def list_(as_json: bool, config: str | None, flags: dict[str, Any]) -> None:
    """List every index with its live version, checked as it would be when it is opened."""
    from chatkit import wiring

    settings = _settings(config, flags)
    rows = wiring.list_indexes(settings)
    if as_json:
        shown = {"indexes": str(settings.indexes), "default": settings.index, "rows": [asdict(row) for row in rows]}
        click.echo(json_line(shown))
        return
    if rows:
        click.echo(plain(_columns([_HEAD, *(_cells(row) for row in rows)])))
    if settings.index and not any(row.is_default for row in rows):
        click.echo(
            f"there is no index {settings.index!r}, which the settings name; build it with: "
            f"chatkit prepare-index SOURCE… --name {settings.index}",
            err=True,
        )


@index.command("use", help=_USE)
@click.argument("name")
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@setting_options("home", "models_dir", "encoder")
def use(name: str, version: str, as_json: bool, config: str | None, flags: dict[str, Any]) -> None:
    """Make a kept version the live one."""
    from chatkit import wiring

    used = wiring.use_index(_settings(config, flags), name, version)
    for problem in used.skipped:
        click.echo(plain(f"passed over: {problem}"), err=True)
    if as_json:
        click.echo(json_line(asdict(used)))
        return
    was = f", was {used.before}" if used.before and used.before != used.version else ""
    click.echo(f"index {used.name!r} is at version {used.version} now: {used.passages} passages{was}")


@index.command("gc")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@setting_options("home", "keep_versions")
def gc(name: str, as_json: bool, config: str | None, flags: dict[str, Any]) -> None:
    """Remove versions of an index, what killed builds left, and vectors that no kept version uses.

    The live version stays, and the newest ones before it. Versions after the live one, from which `index use` went
    back, are removed.

    \b
    chatkit index gc handbook
    chatkit index gc handbook --keep-versions 0
    """
    from chatkit import indexing

    removed = indexing.collect_index(_settings(config, flags), name)
    if as_json:
        click.echo(json_line(asdict(removed)))
        return
    click.echo(
        f"index {removed.name!r}: {len(removed.versions)} versions and {removed.spare} vectors removed, "
        f"{removed.bytes / 2**20:.1f} MiB freed; kept {' '.join(removed.kept) or 'no version'} "
        f"and {removed.vectors} vectors"
    )


@index.command("merge")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the index.")
@vector_options
@click.option("--scan/--no-scan", default=True, help="Let moderation score each passage, for policies to go by.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@setting_options(
    *("home", "models_dir", "profile", "threads", "keep_versions"),
    *("encoder", "encoder_backend", "encoder_device", "encoder_passage_prefix"),
)
def merge(
    folders: tuple[Path, ...],
    name: str,
    vectors: str,
    recall: float,
    scan: bool,
    as_json: bool,
    config: str | None,
    flags: dict[str, Any],
) -> None:
    """Build an index from all its shards: the same passages and hits as from one build.

    FOLDER is a shard that `chatkit prepare-index` made with --shard, or a folder of such.

    \b
    chatkit index merge /mnt/shards --name library
    """
    from chatkit import indexing
    from chatkit.cli.prepare_index import summary

    with Bar(sys.stderr.isatty()) as bar:
        report = indexing.merge_index(
            _settings(config, flags), folders, name=name, vectors=vectors, recall=recall, progress=bar, scan=scan
        )
    click.echo(summary(report), err=True)
    if as_json:
        click.echo(json_line({**asdict(report), "folder": str(report.folder)}))


def _settings(config: str | None, flags: dict[str, Any]) -> Settings:
    return load_settings(flags, file=Path(config) if config else None)


def _cells(row: Any) -> tuple[str, ...]:
    return (
        "*" if row.is_default else "",
        row.name,
        row.live or "none",
        " ".join(row.others) or "none",
        str(row.passages),
        str(row.documents),
        f"{row.bytes / 2**20:.1f} MiB",
        _MATCHES[row.encoder_matches],
        row.built_at or "unknown",
        row.problem or "good",
    )


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = ("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows)
    return "\n".join(lines)
