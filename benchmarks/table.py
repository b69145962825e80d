"""The answers of `chatkit bench engine --peers … --json` as a Markdown table, and as a picture.

    python benchmarks/table.py run1.json run2.json [--svg docs/pictures/engines.svg]

Every row is one setting of one engine; figures are medians over the rounds, with the lowest and highest round. Runs
are put together as they are: it is for you to make them on the same machine, and the table says where they were not.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

_SPEED = re.compile(r"(?:(?P<side>.+)_)?tokens_per_s@(?P<clients>\d+)(?:/(?P<length>\d+))?")
HEAD = (
    "| new tokens | clients | engine | tokens/s | lowest – highest | chatkit is × | first text, ms | memory, MB | "
    "CPU, ms a token |\n|---|---|---|---|---|---|---|---|---|"
)
# Of the answers, the share that has to be of full length.
FULL = 0.95
_SHORT = (
    "\\* More than one answer in twenty ended before the length that was asked for, chatkit's or the peer's: the model "
    "may end an answer, and not every server can make it go on. Short answers spend more of their time on the prompt, "
    "so the two sides did not do the same work."
)
_WIDTH, _LEFT, _BAR, _GAP, _TITLE = 720, 190, 18, 6, 34
_ROOM = 150  # right of the longest bar, for its figure


@dataclass(frozen=True, slots=True)
class Cell:
    """One engine at one number of clients and one length of answers; `ratio` is chatkit's speed over its own.

    `cut_short`: on one of the two sides of the ratio fewer answers than FULL had all tokens that were asked for.
    """

    engine: str
    clients: int
    new_tokens: int
    speed: float
    low: float
    high: float
    ratio: tuple[float, float, float] | None
    first_delta_ms: float
    memory_mb: float
    cpu_ms: float
    cut_short: bool


def cells(report: dict[str, Any]) -> list[Cell]:
    """Return what one answer holds."""
    figures, first = report["figures"], report["settings"]["new_tokens"][0]
    found = []
    for name in figures:
        if not (told := _SPEED.fullmatch(name)):
            continue
        side, tail = told["side"], name[name.index("@") :]
        prefix = f"{side}_" if side else ""
        ratio = None
        if side:
            kinds = ("", "_low", "_high")
            ratio = tuple(figures[f"ratio_to_{side}{kind}{tail}"] for kind in kinds)
        found.append(
            Cell(
                side or "chatkit",
                int(told["clients"]),
                int(told["length"] or first),
                *(figures[f"{prefix}tokens_per_s{kind}{tail}"] for kind in ("", "_low", "_high")),
                ratio,
                *(figures[f"{prefix}{what}{tail}"] for what in ("first_delta_ms", "memory_mb", "cpu_ms_per_token")),
                min(figures[f"{at}full_answers{tail}"] for at in ("", prefix)) < FULL,
            )
        )
    return found


def in_order(reports: Iterable[dict[str, Any]]) -> list[Cell]:
    """Return the cells of all answers, shortest answers and fewest clients first, in each chatkit before its peers.

    Answers that share a setting stay apart: chatkit stands in each, beside the peers that took turns with it.
    """
    every = [(at, cell) for at, report in enumerate(reports) for cell in cells(report)]
    every.sort(key=lambda one: (one[1].new_tokens, one[1].clients, one[0], one[1].engine != "chatkit"))
    return [cell for _, cell in every]


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """Return the table with what it holds for above it, and beneath it the precision of each engine."""
    lines = [_conditions(reports), "", HEAD]
    every = in_order(reports)
    lines += [
        f"| {cell.new_tokens} | {cell.clients} | {cell.engine} | {cell.speed:.1f} | "
        f"{cell.low:.1f} – {cell.high:.1f} | {_ratio(cell)} | {cell.first_delta_ms:.0f} | {cell.memory_mb:.0f} | "
        f"{cell.cpu_ms:.1f} |"
        for cell in every
    ]
    lines.append("")
    if any(cell.ratio and cell.cut_short for cell in every):
        lines += [_SHORT, ""]
    for engine, precision in _all(reports, "precision").items():
        versions = _all(reports, "versions").get(engine, {})
        told = ", ".join(f"{package} {version}" for package, version in versions.items())
        lines.append(f"- {engine}{f' ({told})' if told else ''}: {precision}.")
    lines += [f"- {name} failed: {words}" for name, words in _all(reports, "failed").items()]
    return "\n".join(lines) + "\n"


def _ratio(cell: Cell) -> str:
    if cell.ratio is None:
        return ""
    middle, low, high = cell.ratio
    star = "\\*" if cell.cut_short else ""
    return f"{middle:.2f}{star} ({low:.2f} – {high:.2f})"


def _conditions(reports: Sequence[dict[str, Any]]) -> str:
    """Return the machine and the settings; several of one kind are all named."""
    places = dict.fromkeys(
        f"{told['cores']} cores of {told['cpu']}, {told['memory_gib']} GiB, OpenVINO {told['openvino']}"
        for told in (report["machine"] for report in reports)
    )
    prompts = dict.fromkeys(str(report["settings"]["prompt_tokens"]) for report in reports)
    rounds = dict.fromkeys(str(report["settings"]["rounds"]) for report in reports)
    gates = dict.fromkeys(str(report["settings"]["gate"]) for report in reports)
    models = dict.fromkeys(str(report["settings"]["model"]) for report in reports)
    return (
        f"{' / '.join(models)}, prompts of {' / '.join(prompts)} tokens, greedy, medians of {' / '.join(rounds)} "
        f"rounds, chatkit with gate {' / '.join(gates)} and stored sessions; {' and '.join(places)}."
    )


def _all(reports: Sequence[dict[str, Any]], setting: str) -> dict[str, Any]:
    return {name: value for report in reports for name, value in report["settings"][setting].items()}


def picture(reports: Sequence[dict[str, Any]]) -> str:
    """Return a bar chart in tokens a second, a group for each setting; readable on light and dark pages."""
    every = in_order(reports)
    scale = (_WIDTH - _LEFT - _ROOM) / max(cell.high for cell in every)
    drawn: list[str] = []
    y, group = 0, None
    for cell in every:
        if (cell.new_tokens, cell.clients) != group:
            group = (cell.new_tokens, cell.clients)
            y += _TITLE
            many = "1 client" if cell.clients == 1 else f"{cell.clients} clients"
            drawn.append(f'<text class="head" x="0" y="{y - 8}">{many}, {cell.new_tokens} new tokens</text>')
        drawn += _bar(cell, y, scale)
        y += _BAR + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        'role="img">\n'
        "<title>Tokens a second over HTTP, medians; the thin line is the lowest to the highest round</title>\n"
        "<style>text{font:13px system-ui,sans-serif;fill:#1f2328}.head{font-weight:600}.own{fill:#0969da}"
        ".peer{fill:#8c959f}.spread{stroke:#1f2328;stroke-width:1.5}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.own{fill:#4493f8}.peer{fill:#6e7681}"
        ".spread{stroke:#e6edf3}}</style>\n" + "\n".join(drawn) + "\n</svg>\n"
    )


def _bar(cell: Cell, y: int, scale: float) -> list[str]:
    middle, own = y + _BAR / 2, cell.engine == "chatkit"
    low, high = (round(_LEFT + speed * scale, 1) for speed in (cell.low, cell.high))
    end = f'text-anchor="end" x="{_LEFT - 8}"'
    return [
        f'<text {end} y="{middle + 4.5}">{escape(cell.engine)}</text>',
        f'<rect class="{"own" if own else "peer"}" x="{_LEFT}" y="{y}" width="{cell.speed * scale:.1f}" '
        f'height="{_BAR}" rx="2"/>',
        f'<line class="spread" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>',
        f'<text x="{high + 8}" y="{middle + 4.5}">{cell.speed:.{0 if cell.speed >= 10 else 1}f} tokens/s</text>',
    ]


def main() -> None:
    """Print the table, and write the picture where one is asked for."""
    parser = argparse.ArgumentParser(description="Turn answers of the peer benchmark into a table and a picture.")
    parser.add_argument("answers", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    # A run that failed before its first figure has left its file empty.
    texts = [text for file in arguments.answers if (text := file.read_text(encoding="utf-8").strip())]
    reports = [json.loads(text) for text in texts]
    if not any(cells(report) for report in reports):
        raise SystemExit(
            "error: there are no figures in these files, expected answers of `bench engine --peers --json`"
        )
    print(markdown(reports), end="")
    if arguments.svg:
        arguments.svg.write_text(picture(reports), encoding="utf-8")


if __name__ == "__main__":
    main()
