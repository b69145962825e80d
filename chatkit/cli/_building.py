"""What commands that build an index share: how far they are, and which kind of index they make."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from chatkit import indexing
from chatkit.errors import InvalidRequest

KINDS = ("flat", "sq8", "hnsw_sq8", "ivf_sq8", "ivf_rabitq")

# Seconds between two lines of a stage that goes on.
_LINE_EVERY_S = 30.0
_WORDS = {"read": "read", "cut": "cut", "embed": "embedded", "score": "scanned", "write": "wrote"}


def vector_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--vectors` and `--recall`; the command gets them as `vectors` and `recall`."""
    kind = click.option(
        "--vectors", type=click.Choice(KINDS), default=None, help="Kind of the vector index; by the number of passages."
    )
    recall = click.option(
        "--recall",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.98,
        show_default=True,
        help="Share of the nearest passages that a search finds.",
    )

    @functools.wraps(command)
    def with_kind(*args: Any, vectors: str | None, **kwargs: Any) -> Any:
        return command(*args, vectors=vectors or "", **kwargs)

    return kind(recall(with_kind))


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--engine` and the options of Ray; the command gets a `RayPool` or None as `ray`."""
    options = (
        click.option("--engine", type=click.Choice(("local", "ray")), default="local", help="What embeds the chunks."),
        click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Encoders on Ray."),
        click.option("--ray-address", metavar="ADDRESS", help="Of a cluster, or `auto`; else it starts here."),
        click.option("--worker-cpus", type=float, default=1.0, show_default=True, help="CPUs of each encoder on Ray."),
        click.option("--worker-gpus", type=float, default=0.0, show_default=True, help="GPUs of each encoder on Ray."),
    )

    @functools.wraps(command)
    def with_pool(
        *args: Any,
        engine: str,
        workers: int,
        ray_address: str | None,
        worker_cpus: float,
        worker_gpus: float,
        **kwargs: Any,
    ) -> Any:
        if engine != "ray" and ray_address is not None:
            raise InvalidRequest("--ray-address is given without --engine ray")
        pool = indexing.RayPool(workers, ray_address, worker_cpus, worker_gpus) if engine == "ray" else None
        return command(*args, ray=pool, **kwargs)

    decorated: Callable[..., Any] = with_pool
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


class Bar:
    """Shows progress on stderr: a bar on a terminal, elsewhere a line for each tenth of the chunks."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._bar: Any = None
        self._stage = ""
        self._tenth = 0
        self._told = time.monotonic()

    def __enter__(self) -> Callable[[Any], None]:
        """Nothing is shown yet."""
        return self._show

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the bar; what was stopped says how to go on."""
        self._end()
        if kind is KeyboardInterrupt:
            click.echo("stopped; the same command goes on from here, and the index is as it was", err=True)

    def _show(self, progress: Any) -> None:
        if progress.stage != self._stage:
            self._end()
            self._stage, self._tenth, self._told = progress.stage, 0, time.monotonic()
        if self._terminal:
            self._move(progress)
        else:
            self._tell(progress)

    def _tell(self, progress: Any) -> None:
        done, total = _of(progress)
        tenth = 10 * done // total if total else 0
        late = time.monotonic() - self._told >= _LINE_EVERY_S
        if not late and (progress.stage not in ("embed", "score") or tenth <= self._tenth):
            return
        self._tenth, self._told = tenth, time.monotonic()
        click.echo(_line(progress), err=True)

    def _move(self, progress: Any) -> None:
        done, total = _of(progress)
        if self._bar is None:
            import tqdm

            unit = " files" if progress.stage in ("read", "cut") else " chunks"
            self._bar = tqdm.tqdm(total=total, unit=unit, desc=_WORDS[progress.stage], file=sys.stderr, leave=False)
        self._bar.total = total
        shown = {"chunks": progress.chunks} if progress.stage == "cut" else {"embedded": progress.embedded}
        self._bar.set_postfix(files=progress.files, skipped=progress.skipped, **shown, refresh=False)
        self._bar.update(done - self._bar.n)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _of(progress: Any) -> tuple[int, int]:
    """Return what is done and what there is, in the stage's own unit."""
    if progress.chunks_total:
        return progress.chunks, progress.chunks_total
    return progress.files, progress.files_total


def _line(progress: Any) -> str:
    left = "" if progress.eta_s is None else f", {_duration(progress.eta_s)} left"
    rate = f", {progress.chunks_per_s:.0f} chunks/s" if progress.chunks_per_s else ""
    if progress.chunks_total:
        what = f"{progress.chunks} of {progress.chunks_total} chunks of {progress.files} files"
    else:
        what = f"{progress.files} of {progress.files_total} files, {progress.chunks} chunks"
    return f"{_WORDS[progress.stage]} {what}{rate}{left}, {progress.skipped} skipped"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
