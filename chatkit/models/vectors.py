"""The vectors that an engine's process is asked for: how many texts may wait, and the parts in which rows come."""

import asyncio
from collections.abc import Sequence

from chatkit.errors import ChatkitError, Overloaded

# Texts that may wait for their vectors, of all requests together: two requests of OpenAI's largest, 2048 each.
_MOST_TEXTS = 4096


class Vectors:
    """The vectors of one request.

    Attributes:
        whole: the rows of all texts in their order, once all have come.
    """

    def __init__(self, texts: int) -> None:
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._rows: dict[int, bytes] = {}
        self._texts = texts

    @property
    def missing(self) -> int:
        """Texts whose vectors have not come yet."""
        return self._texts - len(self._rows)

    def put(self, texts: Sequence[int], raw: bytes) -> None:
        """Take the rows of some texts."""
        size = len(raw) // len(texts)
        self._rows |= {index: raw[place * size : (place + 1) * size] for place, index in enumerate(texts)}
        if not self.missing and not self.whole.done():
            self.whole.set_result(b"".join(self._rows[index] for index in range(self._texts)))

    def fail(self, failure: ChatkitError) -> None:
        """End the wait."""
        if not self.whole.done():
            self.whole.set_exception(failure)


class VectorRequests:
    """The requests that wait, by number."""

    def __init__(self) -> None:
        self._asked: dict[int, Vectors] = {}

    def add(self, number: int, texts: int) -> Vectors:
        """Let a request wait.

        Raises:
            Overloaded: too many texts wait already.
        """
        waiting = sum(asked.missing for asked in self._asked.values())
        if waiting and waiting + texts > _MOST_TEXTS:
            raise Overloaded(
                f"{waiting} texts wait for their vectors, and with {texts} more it would be over the {_MOST_TEXTS} "
                "that this server takes; try again shortly"
            )
        asked = self._asked[number] = Vectors(texts)
        return asked

    def find(self, number: int) -> Vectors | None:
        """Return a request that waits."""
        return self._asked.get(number)

    def remove(self, number: int) -> bool:
        """Forget a request; return whether rows of it are still to be made."""
        asked = self._asked.pop(number, None)
        return asked is not None and asked.missing > 0

    def fail(self, failure: ChatkitError) -> None:
        """End every wait."""
        for asked in self._asked.values():
            asked.fail(type(failure)(str(failure)))
