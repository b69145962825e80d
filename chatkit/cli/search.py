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
from chatkit.errors import ConfigError
from chatkit.settings import Settings, load_settings
from chatkit.types import Passage

# Characters of a passage that are printed.
_SNIPPET = 240


@click.command("search")
@click.argument("query")
@click.option("-k", "k", metavar="INT", default=None, help="Most passages to print; the setting `k` unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print the passages as JSON on stdout.")
@setting_options("index", "home", "models_dir", "profile", "encoder", "encoder_backend", "threads", "min_score")
def search(query: str, k: str | None, as_json: bool, config: str | None, flags: dict[str, Any]) -> None:
    """Print the passages of an index that are nearest to QUERY, best first.

    \b
    chatkit search "how long is a lease"
    chatkit search -k 5 --index handbook --json "parental leave"
    """
    settings = load_settings({**flags, "k": k}, file=Path(config) if config else None)
    passages = asyncio.run(_search(settings, query))
    if as_json:
        rows = [dataclasses.asdict(passage) for passage in passages]
        click.echo(json.dumps({"query": query, "index": settings.index, "passages": rows}, ensure_ascii=False))
        return
    if not passages:
        click.echo(f"nothing in {settings.index!r} has a score of {settings.min_score} or more", err=True)
    for passage in passages:
        click.echo(_shown(passage))


async def _search(settings: Settings, query: str) -> tuple[Passage, ...]:
    if not settings.index:
        raise ConfigError("index is '', expected the name of an index; set --index")
    with contextlib.ExitStack() as stack:
        encoder = wiring.open_encoder(settings)
        stack.callback(encoder.close)
        retriever = wiring.open_retriever(settings, encoder)
        if retriever is None:
            raise AssertionError("an index was named")
        stack.callback(retriever.close)
        return await retriever.search(query, k=settings.k)


def _shown(passage: Passage) -> str:
    place = " > ".join(part for part in (passage.title, passage.section) if part)
    words = " ".join(passage.text.split())
    snippet = words if len(words) <= _SNIPPET else words[: words.rfind(" ", 0, _SNIPPET)] + " …"
    return f"{passage.score:.3f}  {place}\n       {passage.source}:{passage.start}-{passage.end}\n       {snippet}\n"
