"""What the head reads of a text besides its vector: hashed words. Also the clean-up before either."""

import itertools
import re
import unicodedata
import zlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Columns of the hashed words; a power of two.
BUCKETS = 1 << 14
# Words of one window that are read; a window has MAX_WINDOW + OVERLAP characters, a longer text is cut.
MAX_WORDS = 128

_WORD = re.compile(r"[^\W_]+(?:['’*@$-][^\W_]+)*")


def clean(text: str) -> str:
    """Return `text` in NFKC, without invisible format characters (zero-width spaces and joiners), edges stripped."""
    composed = unicodedata.normalize("NFKC", text)
    if composed.isascii():
        return composed.strip()
    return "".join(c for c in composed if unicodedata.category(c) != "Cf").strip()


@lru_cache(maxsize=65536)
def _bucket(term: str) -> int:
    return zlib.crc32(term.encode()) & (BUCKETS - 1)


def hashed_words(text: str) -> npt.NDArray[np.intp]:
    """Return the distinct buckets of the words and pairs of words of a cleaned text, sorted; empty for no words.

    The words themselves are nowhere stored: the weights hold no list of slurs.
    """
    words = [word.lower() for word in _WORD.findall(text)[:MAX_WORDS]]
    pairs = (f"{first} {second}" for first, second in itertools.pairwise(words))
    return np.array(sorted({_bucket(term) for term in (*words, *pairs)}), dtype=np.intp)
