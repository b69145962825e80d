"""The picture of recall against latency, as an SVG for light and dark pages."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from chatkit.evaluation.curve import DEPTH, Point

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 420, 56, 52, 74, 24
# What a series is called in the legend.
_NAMES = {"dense": "dense, by kind of vectors", "lexical": "lexical", "hybrid": "hybrid, by candidates of each leg"}
# Width of a character and height of a line, as they are reckoned for labels. Pixels.
_CHARACTER, _LINE = 7.2, 13
# Where a label may stand about its point, the nearest first: to which side, how far in pixels, lines up or down.
_PLACES = sorted(
    ((side, gap, line) for line in range(-20, 21) for gap in (8, *range(24, 400, 24)) for side in ("start", "end")),
    key=lambda place: (math.hypot(place[1] - 8, _LINE * place[2]), place[2] > 0),
)
# Empty room about a label where a line of the grid is broken off. Pixels.
_CLEAR = 3
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600}.grid{stroke:#d1d9e0}"
    ".lead{stroke:#818b98;stroke-width:.7}"
    ".dense{fill:#8250df}.lexical{fill:#bc4c00}.hybrid{fill:#0969da}polyline.hybrid{fill:none;stroke:#0969da}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}.dense{fill:#a371f7}"
    ".lexical{fill:#f0883e}.hybrid{fill:#4493f8}polyline.hybrid{stroke:#4493f8}}"
)


Box = tuple[float, float, float, float]
Line = tuple[float, float, float, float]


class _Scales:
    """Milliseconds (logarithmic) and recall to places in the picture."""

    def __init__(self, points: Sequence[Point]) -> None:
        times = [max(point.ms, 1e-3) for point in points]
        self.ms_low, self.ms_high = min(times) / 1.25, max(times) * 1.6
        low, high = min(point.recall for point in points), max(point.recall for point in points)
        self.step = next((step for step in (0.005, 0.01, 0.02, 0.05, 0.1) if (high - low) / step <= 6), 0.25)
        self.low = max(0.0, math.floor(low / self.step - 0.5) * self.step)
        self.high = min(1.0, math.ceil(high / self.step + 0.5) * self.step)

    def x(self, ms: float) -> float:
        share = math.log(max(ms, 1e-3) / self.ms_low) / math.log(self.ms_high / self.ms_low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, recall: float) -> float:
        share = (recall - self.low) / max(self.high - self.low, 1e-9)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP), 1)


def picture(points: Sequence[Point], told: Mapping[str, Any]) -> str:
    """Return the points as an SVG: milliseconds to the right, recall@10 upwards.

    Args:
        points: at least one.
        told: `set`, `documents`, `queries` and `encoder` of the report.
    """
    scales = _Scales(points)
    name = str(told["set"]).rstrip("/").rpartition("/")[2]
    title = f"{name}: {told['documents']} documents, {told['queries']} queries, {told['encoder']}"
    line_points = sorted((point for point in points if point.series == "hybrid"), key=lambda point: point.ms)
    corners = [(scales.x(point.ms), scales.y(point.recall)) for point in line_points]
    labels, boxes = _labels(points, scales, [(*start, *end) for start, end in itertools.pairwise(corners)])
    drawn = [f'<text class="head" x="8" y="20">{escape(title)}</text>', *_legend(points), *_grid(scales, boxes)]
    if corners:
        drawn.append(f'<polyline class="hybrid" points="{" ".join(f"{x},{y}" for x, y in corners)}"/>')
    drawn += labels
    drawn += [
        f'<circle class="{point.series}" cx="{scales.x(point.ms)}" cy="{scales.y(point.recall)}" r="4"/>'
        for point in points
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img">\n<title>Recall among {DEPTH} against milliseconds of a query</title>\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(drawn) + "\n</svg>\n"
    )


def _legend(points: Sequence[Point]) -> list[str]:
    drawn, x = [], 14.0
    for series in dict.fromkeys(point.series for point in points):
        drawn.append(f'<circle class="{series}" cx="{x:.1f}" cy="38" r="4"/>')
        drawn.append(f'<text x="{x + 10:.1f}" y="42">{_NAMES[series]}</text>')
        x += 34 + _CHARACTER * len(_NAMES[series])
    return drawn


def _grid(scales: _Scales, labels: Sequence[Box]) -> list[str]:
    """Draw the scales; a line of the grid is broken off where a label stands."""
    drawn = []
    for number in range(round((scales.high - scales.low) / scales.step) + 1):
        recall = scales.low + number * scales.step
        y = scales.y(recall)
        digits = 3 if scales.step < 0.01 else 2
        for start, end in _clear_of(labels, y):
            drawn.append(f'<line class="grid" x1="{start:g}" x2="{end:g}" y1="{y}" y2="{y}"/>')
        drawn.append(f'<text text-anchor="end" x="{_LEFT - 8}" y="{y + 4}">{recall:.{digits}f}</text>')
    base = _HEIGHT - _BOTTOM
    for power, digit in itertools.product(range(-3, 6), (1, 2, 5)):
        ms = digit * 10.0**power
        if scales.ms_low <= ms <= scales.ms_high:
            x = scales.x(ms)
            drawn.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{base}" y2="{base + 5}"/>')
            drawn.append(f'<text text-anchor="middle" x="{x}" y="{base + 19}">{ms:g}</text>')
    below = "ms a query, without encoding it"
    drawn.append(f'<text text-anchor="middle" x="{_WIDTH / 2}" y="{_HEIGHT - 10}">{below}</text>')
    drawn.append(f'<text x="8" y="{_TOP - 12}">recall@{DEPTH}</text>')
    return drawn


def _clear_of(labels: Sequence[Box], y: float) -> list[tuple[float, float]]:
    """Return where a line of the grid at `y` runs: from the left to the right, but for labels that it would cross."""
    at = float(_LEFT)
    runs = []
    for left, top, right, bottom in sorted(labels):
        if top <= y <= bottom:
            runs.append((at, left - _CLEAR))
            at = max(at, right + _CLEAR)
    return [(start, end) for start, end in [*runs, (at, float(_WIDTH - _RIGHT))] if end - start > _LINE]


def _labels(points: Sequence[Point], scales: _Scales, lines: list[Line]) -> tuple[list[str], list[Box]]:
    """Write each label where it covers no point, label or line, with a thin line to its point where it is off.

    Args:
        points: what is labelled.
        scales: their places.
        lines: that run through the picture; the thin ones are added.

    Returns:
        What is drawn, and the boxes of the labels.
    """
    spots = [(scales.x(point.ms), scales.y(point.recall)) for point in points]
    dots = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    drawn: list[str] = []
    labels: list[Box] = []
    for point, (x, y) in zip(points, spots, strict=True):
        boxes = [(place, _box(x, y, len(point.label), *place)) for place in _PLACES]
        free = (each for each in boxes if _free(each[1], [*dots, *labels], lines) and not _met(x, y, *each, labels))
        (side, gap, line), box = next(free, boxes[0])
        labels.append(box)
        at = box[0] if side == "start" else box[2]
        if abs(line) > 1 or gap > 8:
            lines.append(_lead(x, y, side, box))
            drawn.append('<line class="lead" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*lines[-1]))
        drawn.append(f'<text text-anchor="{side}" x="{at:.1f}" y="{box[3] - 3:.1f}">{escape(point.label)}</text>')
    return drawn, labels


def _box(x: float, y: float, characters: int, side: str, gap: int, line: int) -> Box:
    """Return left, top, right and bottom of a label."""
    width = characters * _CHARACTER
    left = x + gap if side == "start" else x - gap - width
    top = y + line * _LINE - _LINE / 2
    return left, top, left + width, top + _LINE


def _lead(x: float, y: float, side: str, box: Box) -> Line:
    """Return the line from a point to its label, which ends a little before it."""
    return x, y, box[0] - 2 if side == "start" else box[2] + 2, (box[1] + box[3]) / 2


def _met(x: float, y: float, place: tuple[str, int, int], box: Box, labels: Sequence[Box]) -> bool:
    """Return whether the line to a label at `place` would cross another label."""
    side, gap, line = place
    return (abs(line) > 1 or gap > 8) and any(_crosses(_lead(x, y, side, box), each) for each in labels)


def _free(box: Box, taken: Sequence[Box], lines: Sequence[Line]) -> bool:
    left, top, right, bottom = box
    inside = left >= _LEFT + 4 and right <= _WIDTH - 4 and top >= _TOP - 10 and bottom <= _HEIGHT - _BOTTOM - 2
    apart = all(right < a or left > c or bottom < b or top > d for a, b, c, d in taken)
    return inside and apart and not any(_crosses(line, box) for line in lines)


def _crosses(line: Line, box: Box) -> bool:
    """Return whether a line from point to point touches a box: it is clipped by each of the four sides."""
    x, y, to_x, to_y = line
    first, last = 0.0, 1.0
    for start, run, low, high in ((x, to_x - x, box[0], box[2]), (y, to_y - y, box[1], box[3])):
        if not run:
            if not low <= start <= high:
                return False
            continue
        ends = sorted(((low - start) / run, (high - start) / run))
        first, last = max(first, ends[0]), min(last, ends[1])
    return first <= last
