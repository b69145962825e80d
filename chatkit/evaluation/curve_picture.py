"""The picture of recall against latency, as an SVG for light and dark pages."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from chatkit.evaluation.curve import DEPTH, Point

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 420, 56, 52, 74, 24
# What a series is called in the legend.
_NAMES = {"dense": "meaning, by kind of vectors", "lexical": "words", "hybrid": "both, by candidates of each"}
# Width of a character and height of a line, as they are reckoned for labels. Pixels.
_CHARACTER, _LINE = 6.6, 13
# Where a label may stand about its point, in the order of preference: to which side, lines up or down.
_PLACES = [(side, line) for line in (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5) for side in ("start", "end")]
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600}.grid{stroke:#d1d9e0}"
    ".lead{stroke:#818b98;stroke-width:.7}"
    ".dense{fill:#8250df}.lexical{fill:#bc4c00}.hybrid{fill:#0969da}polyline.hybrid{fill:none;stroke:#0969da}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}.dense{fill:#a371f7}"
    ".lexical{fill:#f0883e}.hybrid{fill:#4493f8}polyline.hybrid{stroke:#4493f8}}"
)


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
    drawn = [f'<text class="head" x="8" y="20">{escape(title)}</text>', *_legend(points), *_grid(scales)]
    line = " ".join(f"{scales.x(point.ms)},{scales.y(point.recall)}" for point in points if point.series == "hybrid")
    if line:
        drawn.append(f'<polyline class="hybrid" points="{line}"/>')
    drawn += _labels(points, scales)
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


def _grid(scales: _Scales) -> list[str]:
    drawn = []
    for number in range(round((scales.high - scales.low) / scales.step) + 1):
        recall = scales.low + number * scales.step
        y = scales.y(recall)
        digits = 3 if scales.step < 0.01 else 2
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
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


def _labels(points: Sequence[Point], scales: _Scales) -> list[str]:
    """Write each label where it covers no point and no other label, with a thin line to its point where it is off."""
    spots = [(scales.x(point.ms), scales.y(point.recall)) for point in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    drawn = []
    for point, (x, y) in zip(points, spots, strict=True):
        places = _PLACES if point.series != "hybrid" else [place for place in _PLACES if place[1]]  # off the line
        boxes = [(side, line, _box(x, y, len(point.label), side, line)) for side, line in places]
        side, line, box = next((each for each in boxes if _free(each[2], taken)), boxes[0])
        taken.append(box)
        at = box[0] if side == "start" else box[2]
        if abs(line) > 1:
            drawn.append(f'<line class="lead" x1="{x}" y1="{y}" x2="{at:.1f}" y2="{(box[1] + box[3]) / 2:.1f}"/>')
        drawn.append(f'<text text-anchor="{side}" x="{at:.1f}" y="{box[3] - 2:.1f}">{escape(point.label)}</text>')
    return drawn


def _box(x: float, y: float, characters: int, side: str, line: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a label."""
    width = characters * _CHARACTER
    left = x + 8 if side == "start" else x - 8 - width
    top = y + line * _LINE - _LINE / 2
    return left, top, left + width, top + _LINE


def _free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    left, top, right, bottom = box
    inside = left >= 4 and right <= _WIDTH - 4 and top >= _TOP - 10 and bottom <= _HEIGHT - _BOTTOM
    return inside and all(right < a or left > c or bottom < b or top > d for a, b, c, d in taken)
