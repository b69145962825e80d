"""Which rows that ended are kept, so that a prompt that starts alike need not be read again. Knows no tensors."""

from collections import OrderedDict
from collections.abc import Sequence

# A shorter common start is not worth a copy. Tokens.
_LEAST = 8


class Prefixes:
    """Token ids of kept rows by key, the one used longest ago first.

    Attributes:
        tokens: of all kept rows together.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._rows: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._next = 0

    def __contains__(self, key: object) -> bool:
        """Whether a row is kept under `key`."""
        return key in self._rows

    def find(self, ids: Sequence[int]) -> tuple[int | None, int]:
        """Return the key of the row that shares the longest start with a prompt, and its length; (None, 0) without.

        The prompt's last token is never counted: it has to be read for the first answer's logits.
        """
        best, length = None, _LEAST - 1
        for key, row in self._rows.items():
            common = common_start(row, ids)
            if common > length:
                best, length = key, common
        if best is None:
            return None, 0
        self._rows.move_to_end(best)
        return best, min(length, len(ids) - 1)

    def add(self, ids: Sequence[int]) -> tuple[int | None, list[int]]:
        """Take a row in; return its key, and those it makes needless. No key where a kept row begins with it."""
        row = tuple(ids)
        if len(row) < _LEAST:
            return None, []
        needless = []
        for key, kept in self._rows.items():
            common = common_start(kept, row)
            if common == len(row):
                return None, []
            if common == len(kept):
                needless.append(key)
        for key in needless:
            self.remove(key)
        key, self._next = self._next, self._next + 1
        self._rows[key] = row
        self.tokens += len(row)
        return key, needless

    def oldest(self, spare: int | None = None) -> int | None:
        """Return the key used longest ago, `spare` left out; None when there is no other."""
        return next((key for key in self._rows if key != spare), None)

    def remove(self, key: int) -> None:
        """Forget a row."""
        self.tokens -= len(self._rows.pop(key))


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two rows begin with alike."""
    length = min(len(first), len(second))
    return next((place for place in range(length) if first[place] != second[place]), length)
