"""What teaches the head orders to a model: the project's own sentences, and a public set of prompt injections."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from chatkit.moderation.copies import words

OWN = Path(__file__).parent / "weights" / "orders.txt"
# Sentences drawn from each section of the file.
DRAWN = {"injections": 1600, "orders": 1700, "plain": 1500}
# A row of the public set that shares this many of its words with one that measures is a copy with small changes.
_ALIKE = 0.6

_SECTION = re.compile(r"\[(\w+)\]")
_PLACE = re.compile(r"\{(\w+)\}")
Draw = Callable[[str], float]


def read_own(file: Path) -> dict[str, list[str]]:
    """Return section → its lines; a comment is a line of "#" alone or of "# " and words.

    Raises:
        OSError: the file cannot be read.
        KeyError: a line names a section that is not there.
    """
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if section := _SECTION.fullmatch(line):
            lines = parts.setdefault(section.group(1), [])
        elif line and line != "#" and not line.startswith("# "):
            lines.append(line)
    for name in {name for lines in parts.values() for line in lines for name in _PLACE.findall(line)}:
        parts[name]
    return parts


def sentences(parts: dict[str, list[str]], section: str, draw: Draw) -> Iterator[tuple[str, str]]:
    """Yield (form, sentence) pairs, DRAWN[section] of them or fewer where forms leave no choice.

    Args:
        parts: as `read_own` returns them.
        section: whose lines are the forms.
        draw: returns a number in 0..1 that looks random and is always the same for a key.
    """
    forms = parts[section]
    seen = set()
    for number in range(-(-DRAWN[section] // len(forms))):
        for form in forms:
            text = _filled(form, parts, draw, f"{section}/{form}/{number}")
            if text not in seen:
                seen.add(text)
                yield form, text


def _filled(form: str, parts: dict[str, list[str]], draw: Draw, key: str) -> str:
    """Return `form` with a line in each place, and one in the places of those."""
    count = 0

    def chosen(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        lines = parts[match.group(1)]
        return lines[int(draw(f"{key}/{count}") * len(lines))]

    for _ in range(3):
        form = _PLACE.sub(chosen, form)
    return form[:1].upper() + form[1:]


def public(folder: Path, name: str) -> list[tuple[str, bool]]:
    """Return (text, is an injection) of one file of deepset's prompt injections, `train` or `test`.

    Raises:
        OSError: it cannot be read.
        KeyError: it has other columns.
    """
    with (folder / "deepset-prompt-injections" / f"deepset_{name}.csv").open(encoding="utf-8", newline="") as lines:
        return [(row["text"], row["label"] == "1") for row in csv.DictReader(lines)]


def apart(rows: list[tuple[str, bool]], measured: list[str]) -> list[tuple[str, bool]]:
    """Return the `rows` that are no copy of a measured text, not even with a few words changed."""
    known = [words(text) for text in measured]
    return [(text, label) for text, label in rows if not any(_alike(words(text), other) for other in known)]


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= _ALIKE * max(1, min(len(one), len(other)))
