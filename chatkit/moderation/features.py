"""What the head reads of a text besides its vector: hashed words, pairs of them, and pieces of words."""

import itertools
import re
import zlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Rows of the hashed terms: the first half is for words and pairs of them, the second for pieces. A power of two.
BUCKETS = 1 << 15
_HALF = BUCKETS // 2
# Words of one window that are read; a window has MAX_WINDOW + OVERLAP characters, a longer text is cut.
MAX_WORDS = 128
# Letters of a piece, the edges of its word counted.
_PIECES = (3, 4)
# A longer word is read up to here.
_LONGEST_WORD = 24

_WORD = re.compile(r"[^\W_]+(?:['’*@$-][^\W_]+)*")
Terms = tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]


@lru_cache(maxsize=65536)
def _bucket(term: str) -> int:
    return zlib.crc32(term.encode()) & (_HALF - 1)


@lru_cache(maxsize=16384)
def _pieces(word: str) -> tuple[int, ...]:
    edged = f"<{word[:_LONGEST_WORD]}>"
    found = {edged[at : at + size] for size in _PIECES for at in range(len(edged) - size + 1)}
    return tuple(_HALF + (zlib.crc32(piece.encode()) & (_HALF - 1)) for piece in sorted(found))


def hashed_terms(text: str) -> Terms:
    """Return the distinct buckets of what a normalised text says, and how much each counts; both empty for no words.

    Words with pairs of them count as much as pieces do, and a long text no more than a short one. The words themselves
    are nowhere stored: the weights hold no list of slurs.
    """
    words = [word.lower() for word in _WORD.findall(text)[:MAX_WORDS]]
    pairs = (f"{first} {second}" for first, second in itertools.pairwise(words))
    said = {_bucket(term) for term in (*words, *pairs)}
    pieces = {bucket for word in words for bucket in _pieces(word)}
    buckets = np.array([*sorted(said), *sorted(pieces)], dtype=np.intp)
    shares = [1 / np.sqrt(max(len(said), 1))] * len(said) + [1 / np.sqrt(max(len(pieces), 1))] * len(pieces)
    return buckets, np.array(shares, dtype=np.float32)
