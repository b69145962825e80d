"""The picture of recall against false alarms, as an SVG for light and dark pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 720, 420, 56, 52, 56, 220
# False alarms are drawn from one in a thousand on, by their logarithm.
_LEAST = 0.001
_COLOURS = ("#0969da", "#bc4c00", "#8250df", "#1a7f37", "#bf3989", "#9a6700")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600}.grid{stroke:#d1d9e0}"
    "polyline{fill:none;stroke-width:1.6}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#3d444d}}"
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One set.

    Attributes:
        points: (share of harmless texts, share of harmful texts) over a threshold, both rising.
        roc_auc: of the ranking behind it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    roc_auc: float


def picture(curves: Sequence[Curve], title: str) -> str:
    """Return the curves as an SVG: false alarms to the right, recall upwards."""
    drawn = [f'<text class="head" x="8" y="20">{escape(title)}</text>', *_grid()]
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{_x(far)},{_y(found)}" for far, found in _thinned(curve.points))
        drawn.append(f'<polyline stroke="{colour}" points="{line}"/>')
        y = _TOP + 18 * number
        drawn.append(f'<circle cx="{_WIDTH - _RIGHT + 18}" cy="{y}" r="4" fill="{colour}"/>')
        drawn.append(
            f'<text x="{_WIDTH - _RIGHT + 28}" y="{y + 4}">{escape(curve.name[:22])} ({curve.roc_auc:.2f})</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img">\n<title>Share of harmful texts found against share of harmless ones flagged'
        f"</title>\n<style>{_STYLE}</style>\n" + "\n".join(drawn) + "\n</svg>\n"
    )


def _x(rate: float) -> float:
    share = math.log(max(rate, _LEAST) / _LEAST) / math.log(1 / _LEAST)
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(recall: float) -> float:
    return round(_HEIGHT - _BOTTOM - recall * (_HEIGHT - _BOTTOM - _TOP), 1)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that are apart in the picture, and the last."""
    kept: list[tuple[float, float]] = []
    for point in points:
        if not kept or abs(_x(point[0]) - _x(kept[-1][0])) + abs(_y(point[1]) - _y(kept[-1][1])) >= 1:
            kept.append(point)
    return [*kept, points[-1]]


def _grid() -> list[str]:
    drawn = []
    for tenths in range(0, 11, 2):
        y = _y(tenths / 10)
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        drawn.append(f'<text text-anchor="end" x="{_LEFT - 8}" y="{y + 4}">{tenths / 10:.1f}</text>')
    for rate, shown in ((0.001, "0.1"), (0.01, "1"), (0.02, "2"), (0.05, "5"), (0.1, "10"), (0.3, "30"), (1, "100")):
        x = _x(rate)
        drawn.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        drawn.append(f'<text text-anchor="middle" x="{x}" y="{_HEIGHT - _BOTTOM + 18}">{shown}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    drawn.append(f'<text text-anchor="middle" x="{middle}" y="{_HEIGHT - 10}">% of harmless texts over it</text>')
    drawn.append(f'<text x="8" y="{_TOP - 14}">recall</text>')
    return drawn
