"""`prepare-index` with a recipe of the kind `openchatkit`: nothing is built, a published index is received."""

import dataclasses
import json

import click

from chatkit.cli.models import transfer_progress
from chatkit.openchatkit_index import PreparedIndex, prepare_openchatkit
from chatkit.recipes import Recipe
from chatkit.settings import Settings


def prepare_published(settings: Settings, recipe: Recipe, *, name: str, as_json: bool) -> None:
    """Receive the index that a recipe names, and print what was done."""
    with transfer_progress() as progress:
        made = prepare_openchatkit(settings, recipe.options, name=name, progress=progress)
    click.echo(_summary(made), err=True)
    if as_json:
        table = dataclasses.asdict(made)
        click.echo(json.dumps({**table, "folder": str(made.folder)}, ensure_ascii=False))


def _summary(made: PreparedIndex) -> str:
    """Return what was done, for people, with the lines that pin it in a recipe."""
    if made.up_to_date:
        return f"index {made.name!r} is up to date: {made.rows} passages of {made.source}"
    lines = [f"index {made.name!r} received in {made.seconds:.1f} s: {made.rows} passages, {made.bytes} bytes"]
    if made.commit:
        lines += ["to pin it, write into the recipe:", "  [openchatkit]", f'  revision = "{made.commit}"']
    lines += ["  [openchatkit.sha256]", *(f'  "{name}" = "{digest}"' for name, digest in made.sha256.items())]
    return "\n".join(lines)
