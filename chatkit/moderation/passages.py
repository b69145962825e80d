"""Scores passages sentence by sentence when an index is built; what follows from the scores is for a policy to say."""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import Unavailable
from chatkit.protocols import Scorer


class PassageScores:
    """Scores passages for an index with a scorer; not to be called inside a running event loop.

    Attributes:
        categories: what the scorer scores, in the order of the columns.
        version: everything that decides the scores.
    """

    def __init__(self, scorer: Scorer, categories: tuple[str, ...], version: str) -> None:
        self._scorer = scorer
        self.categories = categories
        self.version = version

    def score_now(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), categories) scores: of each passage the highest of its windows.

        Raises:
            Unavailable: the scorer could not say; a passage without scores is judged when it is found.
        """
        return asyncio.run(self._score(texts))

    async def _score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = await asyncio.gather(*(self._scorer.score(text, direction="passage") for text in texts))
        if any(each.unavailable for each in found):
            raise Unavailable("the moderator could not score a passage; build with --no-scan, or run again")
        rows = [[each.scores.get(category, 0.0) for category in self.categories] for each in found]
        return np.array(rows, np.float32).reshape(len(texts), len(self.categories))
