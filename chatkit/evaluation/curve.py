"""Recall against latency of the ways to search a corpus: every kind of vectors, words, and both with pools of any size.

The picture that is drawn of it is in `curve_picture`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.evaluation import legs, ranking
from chatkit.retrieval import vectors
from chatkit.retrieval.legs import Legs
from chatkit.types import QueryPart

Vector = NDArray[np.float32]
Grades = Mapping[int, float]
Asked = Sequence[tuple[str, Grades]]

# Passages that are asked for: as many as a prompt may hold; pools of fewer candidates would change nothing.
DEPTH = 10
# Queries that are timed at most; medians of these say it.
_TIMED = 300
_POOLS = (10, 25, 50, 100, 200, 400)


@dataclass(frozen=True, slots=True)
class Point:
    """One way to search: milliseconds of a query without encoding it, median, and mean recall@10."""

    series: str
    label: str
    ms: float
    recall: float

    def row(self) -> dict[str, Any]:
        """Return the point for the report."""
        return {
            "series": self.series,
            "way": self.label,
            "ms": round(self.ms, 3),
            f"recall@{DEPTH}": round(self.recall, 4),
        }


@dataclass(frozen=True, slots=True)
class _Way:
    series: str
    label: str
    searched: Legs
    weight: float | None = None


def measure(
    built: legs.Built, metric: str, asked: Asked, encode: Callable[[Sequence[QueryPart]], Vector]
) -> list[Point]:
    """Search in every way; the ways take turns at each query, so that a busy moment is nobody's own.

    Args:
        built: the corpus.
        metric: of its vectors.
        asked: queries, each with its grades by row.
        encode: one query to its vector.
    """
    prepared = [([QueryPart(text)], encode([QueryPart(text)]), grades) for text, grades in asked[:_TIMED]]
    with ExitStack() as stack:
        ways = [*_dense(built, metric, stack), _Way("lexical", "words", built.legs, 0.0)]
        if built.legs.weight() > 0:
            ways += [_Way("hybrid", str(pool), built.legs.with_pool(pool)) for pool in _POOLS]
        times: list[list[float]] = [[] for _ in ways]
        recalls: list[list[float]] = [[] for _ in ways]
        for way in ways:
            _find(way, *prepared[0][:2])  # the first search of each opens what later ones find open
        for parts, vector, grades in prepared:
            for place, way in enumerate(ways):
                started = time.perf_counter()
                found = _find(way, parts, vector)
                times[place].append(1000 * (time.perf_counter() - started))
                recalls[place].append(ranking.recall(found, grades, DEPTH))
    return [
        Point(way.series, way.label, statistics.median(ms), statistics.fmean(recall))
        for way, ms, recall in zip(ways, times, recalls, strict=True)
    ]


def _dense(built: legs.Built, metric: str, stack: ExitStack) -> list[_Way]:
    """Write and open the vectors as each kind that so few of them can be."""
    ways = []
    for name in vectors.KINDS:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatkit-curve-")))
        kind = vectors.choose(len(built.vectors), built.vectors.shape[1], kind=name)
        try:
            _, opened = legs.write_vectors(folder, np.asarray(built.vectors), metric, kind)
        except (RuntimeError, ValueError):
            continue  # a kind that has to learn from more vectors than these
        stack.callback(opened.close)
        ways.append(_Way("dense", name, Legs(opened, None, built.fusion, metric=metric, pool=DEPTH)))
    return ways


def _find(way: _Way, parts: Sequence[QueryPart], vector: Vector) -> list[int]:
    hits = way.searched.find(parts, None if way.weight == 0 else vector, DEPTH, weight=way.weight)
    return [hit.row for hit in hits]
