"""A set of many hashes in little memory: an open-addressing table of numbers, filled and asked in batches."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

# Bytes of a key made of a text: at 128 bits no two texts of any corpus are expected to share one.
KEY_BYTES = 16
_FREE = np.uint32(2**32 - 1)
_FIRST_SLOTS = 1024
# Share of the slots in use past which the table doubles.
_MOST_FULL = 0.6
# Keys placed at a time when the table doubles, so that doubling takes no memory beside the two tables.
_PIECE = 1 << 20


def keys_of(digests: Iterable[bytes]) -> Keys:
    """Return (n, 2) keys of digests, of which the first 16 bytes count."""
    joined = b"".join(digest[:KEY_BYTES] for digest in digests)
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2).astype(np.uint64)


def key_of(text: str) -> bytes:
    """Return the first 16 bytes of the text's SHA-256."""
    return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]


def text_keys(texts: Sequence[str]) -> Keys:
    """Return the (n, 2) keys of texts."""
    return keys_of(key_of(text) for text in texts)


class KeyTable:
    """Maps keys of `words` 64-bit numbers to numbers below 2^32 - 1; 33 to 67 bytes a key of two words.

    The first word decides the slot, so it has to be a hash.
    """

    def __init__(self, words: int = 2) -> None:
        self._words = words
        self._used = 0
        self._allocate(_FIRST_SLOTS)

    def __len__(self) -> int:
        """Return the number of keys."""
        return self._used

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Return the number of each of the (n, words) keys, -1 for those that are not there."""
        found = np.full(len(keys), -1, dtype=np.int64)
        pending = np.arange(len(keys))
        slots = self._slots_of(keys)
        while len(pending):
            values = self._values[slots]
            taken = values != _FREE
            pending, slots, values = pending[taken], slots[taken], values[taken]
            same = (self._keys[slots] == keys[pending]).all(axis=1)
            found[pending[same]] = values[same]
            pending, slots = pending[~same], (slots[~same] + np.uint64(1)) & self._mask
        return found

    def add(self, keys: Keys, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give each (n, words) key that is new its value, the first of equal keys; return the value of every key."""
        found = self.find(keys)
        (new,) = np.nonzero(found < 0)
        if len(new):
            distinct, first, inverse = np.unique(keys[new], axis=0, return_index=True, return_inverse=True)
            chosen = values[new][first]
            self._grow(self._used + len(distinct))
            self._place(distinct, chosen)
            self._used += len(distinct)
            found[new] = chosen[inverse.reshape(-1)]
        return found

    def _allocate(self, slots: int) -> None:
        self._mask = np.uint64(slots - 1)
        self._keys = np.zeros((slots, self._words), dtype=np.uint64)
        self._values = np.full(slots, _FREE, dtype=np.uint32)

    def _grow(self, wanted: int) -> None:
        slots = len(self._values)
        while wanted > slots * _MOST_FULL:
            slots *= 2
        if slots == len(self._values):
            return
        keys, values = self._keys, self._values
        self._allocate(slots)
        for start in range(0, len(values), _PIECE):
            piece = values[start : start + _PIECE]
            (kept,) = np.nonzero(piece != _FREE)
            self._place(keys[start + kept], piece[kept].astype(np.int64))

    def _place(self, keys: Keys, values: NDArray[np.int64]) -> None:
        """Put in distinct keys that are not there yet: each takes the first free slot from its own on."""
        pending = np.arange(len(keys))
        slots = self._slots_of(keys)
        while len(pending):
            (free,) = np.nonzero(self._values[slots] == _FREE)
            _, first = np.unique(slots[free], return_index=True)  # of those that want one slot, one gets it
            winners = free[first]
            self._values[slots[winners]] = values[pending[winners]]
            self._keys[slots[winners]] = keys[pending[winners]]
            left = np.ones(len(pending), dtype=bool)
            left[winners] = False
            pending, slots = pending[left], (slots[left] + np.uint64(1)) & self._mask

    def _slots_of(self, keys: Keys) -> NDArray[np.uint64]:
        slots: NDArray[np.uint64] = keys[:, 0] & self._mask
        return slots


class Seen:
    """Tells of each key whether it is the first of its kind."""

    def __init__(self) -> None:
        self._table = KeyTable()

    def add(self, keys: Keys) -> list[bool]:
        """Return for each of the (n, 2) keys whether no equal one came before it, in this call or an earlier one."""
        new = self._table.find(keys) < 0
        numbers = np.arange(int(new.sum()), dtype=np.int64)
        new[new] = self._table.add(keys[new], numbers) == numbers
        first: list[bool] = new.tolist()
        return first
