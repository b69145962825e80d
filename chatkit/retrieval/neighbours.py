"""A hit with the passages before and after it, as far as they are about the same thing."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.legs import Hit
from chatkit.retrieval.passages import Passages
from chatkit.retrieval.vectors import Vectors, normalised
from chatkit.types import Passage

# Cosine of hit and neighbour from which on the neighbour is taken, as OpenChatKit has it.
ALIKE = 0.5


@dataclass(frozen=True, slots=True)
class Widened:
    """A hit and the rows that it stands for: `first` to `last`, both included, all of one document."""

    hit: Hit
    first: int
    last: int


def widen(
    hits: Sequence[Hit], vectors: Vectors, passages: Passages, *, most: int, window: int, alike: float
) -> list[Widened]:
    """Return at most `most` hits with their neighbours, best first; a hit that an earlier one has taken in is left out.

    Args:
        hits: best first.
        vectors: the stored ones are compared; nothing is encoded.
        passages: neighbours are of the same document.
        most: how many are wanted.
        window: most passages on each side.
        alike: a side ends before the first passage whose cosine with the hit is not above this.
    """
    taken: set[int] = set()
    found: list[Widened] = []
    for hit in hits:
        if len(found) == most:
            break
        if hit.row in taken:
            continue
        first, last = _span(hit.row, vectors, passages, window, alike)
        while first < hit.row and first in taken:
            first += 1
        while last > hit.row and last in taken:
            last -= 1
        taken.update(range(first, last + 1))
        found.append(Widened(hit, first, last))
    return found


def _span(row: int, vectors: Vectors, passages: Passages, window: int, alike: float) -> tuple[int, int]:
    if window < 1:
        return row, row
    around = np.arange(max(0, row - window), min(len(passages), row + window + 1), dtype=np.int64)
    documents = passages.documents_of(around)
    around = around[documents == documents[np.flatnonzero(around == row)[0]]]
    stored: NDArray[np.float32] = normalised(vectors.of(around))
    at = int(np.flatnonzero(around == row)[0])
    fit = (stored @ stored[at]) > alike
    first = last = at
    while first > 0 and fit[first - 1]:
        first -= 1
    while last + 1 < len(around) and fit[last + 1]:
        last += 1
    return int(around[first]), int(around[last])


def merged(parts: Sequence[Passage], hit: Passage) -> Passage:
    """Return one passage that reads as these in a row: the hit's id, place and page, the text and offsets of all.

    Its risks are the highest of any of them: a calm hit does not vouch for what stands beside it.

    Passages that stood under different headings are a blank line apart. The headings, and passages that were dropped as
    said elsewhere, are missing between them, so that the text may be shorter than from `start` to `end`.
    """
    text = parts[0].text
    for before, after in itertools.pairwise(parts):
        text += ("\n" if before.section == after.section else "\n\n") + after.text
    return replace(hit, text=text, start=parts[0].start, end=parts[-1].end, risks=_risks_of(parts))


def _risks_of(parts: Sequence[Passage]) -> tuple[tuple[str, float], ...]:
    """Return the highest score of each category; none where a part has none, so that the whole text is scored."""
    if not all(part.risks for part in parts):
        return ()
    highest: dict[str, float] = {}
    for category, score in itertools.chain.from_iterable(part.risks for part in parts):
        highest[category] = max(score, highest.get(category, 0.0))
    return tuple(highest.items())
