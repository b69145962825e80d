"""One policy for texts that are longer than a model reads: halves that overlap, of which the highest score counts."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from chatkit.errors import TooLarge
from chatkit.release import OVERLAP
from chatkit.types import LABELS, Scores

# A text this short is not halved any more. Characters.
_LEAST = 4 * OVERLAP


async def highest(score: Callable[[str, bool], Coroutine[Any, Any, Scores]], text: str) -> Scores:
    """Return the scores of `text`: those of the whole where the model reads it, else the highest of its parts.

    Args:
        score: scores a text with what was said before it, or without (False); raises TooLarge where that is too long.

    Raises:
        TooLarge: the model reads not even a short text.
    """
    try:
        return await score(text, True)
    except TooLarge:
        pass
    try:
        return await score(text, False)
    except TooLarge:
        if len(text) < _LEAST:
            raise
    first, second = await asyncio.gather(*(highest(score, half) for half in halves(text)))
    return higher(first, second)


def halves(text: str) -> tuple[str, str]:
    """Return both halves, parted at a space where there is one near, with some of the first before the second."""
    middle = len(text) // 2
    space = text.rfind(" ", middle - OVERLAP, middle)
    cut = space + 1 if space >= 0 else middle
    return text[:cut], text[cut - OVERLAP :]


def higher(first: Scores, second: Scores) -> Scores:
    """Return the higher score of every category, and the graver levels; what could not be said stays so."""
    if first.unavailable or second.unavailable:
        return first if first.unavailable else second
    names = dict.fromkeys((*first.scores, *second.scores))
    scores = {name: max(first.scores.get(name, 0.0), second.scores.get(name, 0.0)) for name in names}
    graver = max((first, second), key=lambda found: gravity(found.levels))
    return Scores(scores, graver.levels, model=graver.model, version=graver.version)


def gravity(levels: dict[str, float]) -> float:
    """Return how grave levels are on average, from 0 to 4."""
    return sum(LABELS.index(label) * chance for label, chance in levels.items())
