"""Near duplicates: chunks that share nearly all their words with one before them, found by MinHash.

Three words in a row are a shingle; 64 minima over hashed shingles estimate the share that two chunks have in common
(Jaccard). Eight bands of eight minima find the candidates (Broder 1997; banding as in Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", ch. 3). All constants are fixed and chunks come in the index's order, so the same chunks
are dropped in every build, however the work was divided.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.building.keys import KeyTable

# Share of shingles in common from which a chunk counts as one that is there already. Of a chunk of 90 words one
# replaced word leaves .94, two leave .87.
THRESHOLD = 0.9
_BANDS = 8
_ROWS = 8
_SHINGLE = 3
# A shorter chunk differs by too much with every word to be nearly the same.
_LEAST_WORDS = 20
# Scripts without spaces count by character: kana, Han, Hangul.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_DIGIT = re.compile(r"\d")
_BLOCK = 1 << 14


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter numbers over 64 bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


_ODD = _mixed(np.arange(1, 65, dtype=np.uint64)) | np.uint64(1)
_SHIFTS = _mixed(np.arange(101, 165, dtype=np.uint64))
_PLACES = _mixed(np.arange(201, 201 + _SHINGLE, dtype=np.uint64)) | np.uint64(1)


class NearDuplicates:
    """Remembers the chunks that were kept; some 200 to 350 bytes each, whatever their length."""

    def __init__(self) -> None:
        self._table = KeyTable(words=1)
        self._blocks: list[NDArray[np.uint8]] = []
        self._kept = 0

    def add(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text in order whether it is nearly one before it; those that are not are remembered.

        Chunks that differ in a number are never near duplicates: the number may be what is asked for.
        """
        words = [_WORD.findall(text.casefold()) for text in texts]
        long_enough = [place for place, row in enumerate(words) if len(row) >= _LEAST_WORDS]
        near = [False] * len(texts)
        if not long_enough:
            return near
        minima = _minima([words[place] for place in long_enough])
        bands = _bands(minima, [_numbers(words[place]) for place in long_enough])
        before = self._table.find(bands.reshape(-1, 1)).reshape(-1, _BANDS)
        here: dict[int, int] = {}
        signatures = minima.astype(np.uint8)
        kept = []
        for number, place in enumerate(long_enough):
            own = bands[number].tolist()
            candidates = {row for row in before[number].tolist() if row >= 0} | {here[b] for b in own if b in here}
            near[place] = any(self._alike(signatures[number], row) for row in sorted(candidates))
            if not near[place]:
                row = self._remember(signatures[number])
                kept.append((number, row))
                for band in own:
                    here.setdefault(band, row)
        if kept:
            rows = np.repeat(np.array([row for _, row in kept], dtype=np.int64), _BANDS)
            self._table.add(bands[[number for number, _ in kept]].reshape(-1, 1), rows)
        return near

    def _alike(self, signature: NDArray[np.uint8], row: int) -> bool:
        other = self._blocks[row // _BLOCK][row % _BLOCK]
        agree = float((signature == other).mean())
        # Of minima that differ, one in 256 agrees in its last byte (b-bit minwise hashing, Li and König 2010).
        return (agree - 1 / 256) / (1 - 1 / 256) >= THRESHOLD

    def _remember(self, signature: NDArray[np.uint8]) -> int:
        row = self._kept
        if row % _BLOCK == 0:
            self._blocks.append(np.empty((_BLOCK, _BANDS * _ROWS), dtype=np.uint8))
        self._blocks[-1][row % _BLOCK] = signature
        self._kept += 1
        return row


def _minima(words: list[list[str]]) -> NDArray[np.uint32]:
    """Return (n, 64) minima over the hashed shingles of each text; every text has at least one shingle."""
    shingles = []
    for row in words:
        crcs = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in row], dtype=np.uint64)
        with np.errstate(over="ignore"):
            parts = [crcs[i : len(crcs) - _SHINGLE + 1 + i] * place for i, place in enumerate(_PLACES)]
            shingles.append(_mixed(parts[0] + parts[1] + parts[2]))
    starts = np.cumsum([0, *(len(row) for row in shingles)])[:-1]
    joined = np.concatenate(shingles)
    out = np.empty((len(words), len(_ODD)), dtype=np.uint32)
    with np.errstate(over="ignore"):
        for column, (odd, shift) in enumerate(zip(_ODD, _SHIFTS, strict=True)):
            hashed = ((joined * odd + shift) >> np.uint64(32)).astype(np.uint32)
            out[:, column] = np.minimum.reduceat(hashed, starts)
    return out


def _bands(minima: NDArray[np.uint32], numbers: list[int]) -> NDArray[np.uint64]:
    """Return (n, bands) keys: the minima of the band, which band it is, and the numbers in the text."""
    parts = minima.reshape(len(minima), _BANDS, _ROWS).astype(np.uint64)
    key = np.array(numbers, dtype=np.uint64)[:, None] ^ _SHIFTS[:_BANDS][None, :]
    with np.errstate(over="ignore"):
        for row in range(_ROWS):
            key = _mixed(key * np.uint64(31) + parts[:, :, row])
    return key


def _numbers(words: list[str]) -> int:
    numbers = " ".join(word for word in words if _DIGIT.search(word))
    return int.from_bytes(hashlib.sha256(numbers.encode("utf-8", "surrogatepass")).digest()[:8], "little")
