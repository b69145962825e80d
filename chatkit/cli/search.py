"""`chatkit search`: what the index finds for a query."""

import asyncio
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from chatkit import wiring
from chatkit.cli import setting_options
from chatkit.errors import ConfigError, InvalidRequest
from chatkit.settings import Settings, load_settings
from chatkit.types import Passage, RetrievalOptions

# Characters of a passage that are printed.
_SNIPPET = 240


@click.command("search")
@click.argument("query")
@click.option("-k", "k", metavar="INT", default=None, help="Most passages to print; the setting `k` unless given.")
@click.option(
    "--where",
    "where",
    metavar="NAME=PATTERN",
    multiple=True,
    help="Search only where source, title or document matches: * any characters, ? one, [ab] one of these.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the passages as JSON on stdout.")
@setting_options(
    "index",
    "home",
    "models_dir",
    "profile",
    "encoder",
    "encoder_backend",
    "threads",
    "min_score",
    "dense_weight",
    "reranker",
    "neighbours",
    "neighbour_score",
)
def search(
    query: str, k: str | None, where: tuple[str, ...], as_json: bool, config: str | None, flags: dict[str, Any]
) -> None:
    """Print the passages of an index that are nearest to QUERY, best first.

    \b
    chatkit search "how long is a lease"
    chatkit search -k 5 --index handbook --json "parental leave"
    chatkit search --where "source=docs/*" "backups"
    """
    settings = load_settings({**flags, "k": k}, file=Path(config) if config else None)
    asked = RetrievalOptions(k=settings.k, where=_filters(where))
    passages = asyncio.run(_search(settings, query, asked))
    if as_json:
        rows = [{**dataclasses.asdict(passage), "risks": dict(passage.risks)} for passage in passages]
        click.echo(json.dumps({"query": query, "index": settings.index, "passages": rows}, ensure_ascii=False))
        return
    if not passages:
        click.echo(f"nothing in {settings.index!r} has a score of {settings.min_score} or more", err=True)
    for passage in passages:
        click.echo(_shown(passage))


def _filters(where: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    for each in where:
        if "=" not in each:
            raise InvalidRequest(f"--where is {each[:80]!r}, expected NAME=PATTERN, e.g. 'source=docs/*'")
    return tuple((name, pattern) for name, _, pattern in (each.partition("=") for each in where))


async def _search(settings: Settings, query: str, asked: RetrievalOptions) -> tuple[Passage, ...]:
    if not settings.index:
        raise ConfigError("index is '', expected the name of an index; set --index")
    with contextlib.ExitStack() as stack:
        encoder = wiring.open_encoder(settings)
        stack.callback(encoder.close)
        retriever = wiring.open_retriever(settings, encoder)
        if retriever is None:
            raise AssertionError("an index was named")
        stack.callback(retriever.close)
        return await retriever.search(query, k=asked.k, where=dict(asked.where))


def _shown(passage: Passage) -> str:
    place = " > ".join(part for part in (passage.title, passage.section) if part)
    words = " ".join(passage.text.split())
    snippet = words if len(words) <= _SNIPPET else words[: words.rfind(" ", 0, _SNIPPET)] + " …"
    return f"{passage.score:.3f}  {place}\n       {passage.source}:{passage.start}-{passage.end}\n       {snippet}\n"
