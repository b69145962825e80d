"""Tells which texts are copies of one another, so that nothing is fitted on what measures. Pure."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chatkit.moderation.normalise import normalised

# Words that two texts share, of all that either has (Jaccard's index): from here on one is a copy of the other. Of the
# harmful requests that several public sets hold in different words, those above are the same request reworded.
ALIKE = 0.6


def key(text: str) -> str:
    """Return what two copies of one text have in common: lower case, single spaces, no full stop."""
    return " ".join(text.lower().split()).rstrip(". ")


def digest_of(text: str) -> str:
    """Return the beginning of the SHA-256 of what all copies of a text have in common."""
    return hashlib.sha256(key(normalised(text)).encode()).hexdigest()[:12]


def near_copies(texts: Sequence[str], measured: Sequence[str]) -> set[int]:
    """Return the places of those `texts` that share ALIKE of their words with one of `measured`."""
    known = [words(text) for text in measured]
    sizes = np.array([len(one) for one in known])
    holders: dict[str, list[int]] = {}
    for place, one in enumerate(known):
        for word in one:
            holders.setdefault(word, []).append(place)
    held = {word: np.array(places, np.intp) for word, places in holders.items()}
    return {place for place, text in enumerate(texts) if _is_near(words(text), held, sizes)}


def _is_near(own: frozenset[str], held: dict[str, npt.NDArray[np.intp]], sizes: npt.NDArray[np.intp]) -> bool:
    shared = [held[word] for word in own if word in held]
    if len(shared) < ALIKE * len(own) or not shared:  # no text can hold enough of its words
        return False
    counts = np.bincount(np.concatenate(shared), minlength=len(sizes))
    return bool((counts >= ALIKE * (len(own) + sizes - counts)).any())


def words(text: str) -> frozenset[str]:
    """Return the different words of a text in lower case."""
    return frozenset(re.findall(r"\w+", text.lower()))
