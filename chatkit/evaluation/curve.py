"""Recall against latency: each kind of vectors, and both legs with pools of several depths, as points and a picture."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from chatkit.evaluation import legs, ranking
from chatkit.retrieval import vectors
from chatkit.retrieval.legs import Legs
from chatkit.types import QueryPart

Vector = NDArray[np.float32]
Asked = Sequence[tuple[str, Mapping[int, float]]]

# Queries that are timed at most; medians of these say it.
_TIMED = 300
_POOLS = (10, 25, 50, 100, 200, 400)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 380, 64, 48, 40, 24


@dataclass(frozen=True, slots=True)
class Point:
    """One way to search: milliseconds of a query without encoding it, median, and mean recall@100."""

    series: str
    label: str
    ms: float
    recall: float

    def row(self) -> dict[str, Any]:
        """Return the point for the report."""
        return {"series": self.series, "way": self.label, "ms": round(self.ms, 3), "recall@100": round(self.recall, 4)}


def measure(
    built: legs.Built, metric: str, asked: Asked, encode: Callable[[Sequence[QueryPart]], Vector]
) -> list[Point]:
    """Search in every way.

    Args:
        built: the corpus.
        metric: of its vectors.
        asked: queries, each with its grades by row.
        encode: one query to its vector.
    """
    asked = asked[:_TIMED]
    prepared = [([QueryPart(text)], encode([QueryPart(text)]), grades) for text, grades in asked]
    points = []
    for name in vectors.KINDS:
        with tempfile.TemporaryDirectory(prefix="chatkit-curve-") as folder:
            try:
                kind = vectors.choose(len(built.vectors), built.vectors.shape[1], kind=name)
                _, opened = legs.write_vectors(Path(folder), np.asarray(built.vectors), metric, kind)
            except (RuntimeError, ValueError):
                continue  # a kind that has to learn from more vectors than these
            dense = Legs(opened, None, built.fusion, metric=metric)
            points.append(
                _point("dense", name, lambda parts, vector, leg=dense: leg.find(parts, vector, 100), prepared)
            )
            opened.close()
    points.append(_point("lexical", "lexical", lambda parts, vector: built.legs.find(parts, None, 100), prepared))
    for pool in _POOLS:
        both = built.legs.with_pool(pool)
        points.append(
            _point("hybrid", f"pool {pool}", lambda parts, vector, leg=both: leg.find(parts, vector, 100), prepared)
        )
    return points


def _point(series: str, label: str, find: Callable[..., Any], prepared: Sequence[Any]) -> Point:
    times, recalls = [], []
    for parts, vector, grades in prepared:
        started = time.perf_counter()
        hits = find(parts, vector)
        times.append(1000 * (time.perf_counter() - started))
        recalls.append(ranking.recall([hit.row for hit in hits], grades, 100))
    return Point(series, label, statistics.median(times), statistics.fmean(recalls))


def picture(points: Sequence[Point], told: Mapping[str, Any]) -> str:
    """Return the points as an SVG: milliseconds to the right, recall@100 upwards; for light and dark pages."""
    most = max(point.ms for point in points) * 1.15 or 1.0
    least = max(0.0, min(point.recall for point in points) - 0.02)
    span = max(1.0 - least, 1e-6)

    def x(ms: float) -> float:
        return round(_LEFT + ms / most * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(recall: float) -> float:
        return round(_HEIGHT - _BOTTOM - (recall - least) / span * (_HEIGHT - _BOTTOM - _TOP), 1)

    drawn = [_grid(x, y, most, least, span)]
    for series in dict.fromkeys(point.series for point in points):
        row = [point for point in points if point.series == series]
        if series == "hybrid":
            line = " ".join(f"{x(point.ms)},{y(point.recall)}" for point in row)
            drawn.append(f'<polyline class="{series}" fill="none" points="{line}"/>')
        for point in row:
            drawn.append(f'<circle class="{series}" cx="{x(point.ms)}" cy="{y(point.recall)}" r="4"/>')
            drawn.append(f'<text x="{x(point.ms) + 7}" y="{y(point.recall) + 4}">{escape(point.label)}</text>')
    name = Path(str(told["set"])).name
    title = f"{name}: {told['documents']} documents, {told['queries']} queries, {told['encoder']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img">\n<title>Recall among 100 against milliseconds of a query</title>\n'
        "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600}.grid{stroke:#d1d9e0}"
        ".dense{fill:#8250df}.lexical{fill:#bc4c00}.hybrid{fill:#0969da;stroke:#0969da}polyline.hybrid{fill:none}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}.dense{fill:#a371f7}"
        ".lexical{fill:#f0883e}.hybrid{fill:#4493f8;stroke:#4493f8}}</style>\n"
        f'<text class="head" x="8" y="20">{escape(title)}</text>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _grid(x: Callable[[float], float], y: Callable[[float], float], most: float, least: float, span: float) -> str:
    drawn = []
    for step in range(5):
        recall, ms = least + span * step / 4, most * step / 4
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(recall)}" y2="{y(recall)}"/>'
            f'<text text-anchor="end" x="{_LEFT - 8}" y="{y(recall) + 4}">{recall:.3f}</text>'
            f'<text text-anchor="middle" x="{x(ms)}" y="{_HEIGHT - _BOTTOM + 18}">{ms:.2g}</text>'
        )
    drawn.append(
        f'<text text-anchor="middle" x="{_WIDTH / 2}" y="{_HEIGHT - 8}">ms a query, without encoding it</text>'
    )
    drawn.append(f'<text x="8" y="{_TOP - 4}">recall@100</text>')
    return "\n".join(drawn)
