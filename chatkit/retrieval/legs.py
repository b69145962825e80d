"""Both legs of one version searched as one: dense and lexical candidates, scored by both, in one order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval import fusion
from chatkit.retrieval.lexical import Lexical
from chatkit.retrieval.manifest import FusionEntry
from chatkit.retrieval.vectors import Vectors, normalised
from chatkit.types import QueryPart

Vector = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hit:
    """A found row; `score` is 0 to 1, comparable between queries, and the order is by it."""

    row: int
    score: float


class Legs:
    """The open legs of a version. Methods may be called from several threads."""

    def __init__(
        self, vectors: Vectors, lexical: Lexical | None, entry: FusionEntry, *, metric: str = "cosine", pool: int = 0
    ) -> None:
        """Take the opened legs.

        Args:
            vectors: row by row in the order of `lexical`.
            lexical: None where the index has none; the dense leg then decides alone.
            entry: how they are weighed.
            metric: of the vectors, `cosine` or `ip`.
            pool: candidates of each leg; 0 takes the usual number.
        """
        self._vectors = vectors
        self._lexical = lexical
        self._entry = entry
        self._metric = metric
        self._pool = pool or fusion.POOL

    def with_pool(self, pool: int) -> "Legs":
        """Return the same open legs with so many candidates of each."""
        return Legs(self._vectors, self._lexical, self._entry, metric=self._metric, pool=pool)

    def weight(self, asked: float | None = None) -> float:
        """Return the weight of the dense leg: what was asked for, else the index's own; 1 without a lexical leg."""
        if self._lexical is None:
            return 1.0
        return self._entry.dense_weight if asked is None else asked

    def find(
        self,
        parts: Sequence[QueryPart],
        vector: Vector | None,
        k: int,
        *,
        rows: Rows | None = None,
        weight: float | None = None,
    ) -> list[Hit]:
        """Return at most `k` rows, best first.

        Args:
            parts: their words are what the lexical leg looks for.
            vector: of the query, (1, dim) float32; None searches the lexical leg alone.
            k: how many.
            rows: search these only; None for all.
            weight: of the dense leg; the index's own unless told.
        """
        weight = self.weight(weight) if vector is not None else 0.0
        words = self._words(parts) if self._lexical is not None and weight < 1 else {}
        if vector is None and not words:
            return []
        pool = max(self._pool, k)
        near = self._near(vector, pool, rows) if vector is not None and weight > 0 else {}
        said = dict(self._lexical.search_words(words, pool, rows)) if self._lexical is not None and words else {}
        found = np.fromiter(dict.fromkeys([*near, *said]), dtype=np.int64)
        if not len(found):
            return []
        if vector is not None and weight > 0:
            near |= self._likeness(vector, [row for row in said if row not in near])
        if self._lexical is not None and words:
            others = np.array([row for row in near if row not in said], dtype=np.int64)
            said |= dict(self._lexical.search_words(words, len(others), others))
        fused = fusion.fuse(
            np.array([near.get(row, 0.0) for row in found.tolist()]),
            np.array([said.get(row, 0.0) for row in found.tolist()]),
            weight,
            ceiling=self._lexical.ceiling(words) if self._lexical is not None else 0.0,
            background=self._entry.background,
            cosine_of=self._cosine_of(vector, found),
        )
        return [Hit(int(found[place]), float(fused.scores[place])) for place in fused.order[:k]]

    def _words(self, parts: Sequence[QueryPart]) -> dict[str, float]:
        """Return the words of all parts; one that stands in several counts as in the weightiest."""
        weights: dict[str, float] = {}
        if self._lexical is not None:
            for part in parts:
                for word, count in self._lexical.words_of(part.text).items():
                    weights[word] = max(weights.get(word, 0.0), part.weight * count)
        return weights

    def close(self) -> None:
        """Let go of the files; no call may be under way."""
        self._vectors.close()
        if self._lexical is not None:
            self._lexical.close()

    def _near(self, vector: Vector, pool: int, rows: Rows | None) -> dict[int, float]:
        scores, found = self._vectors.search(vector, pool, rows)
        return {row: score for row, score in zip(found[0].tolist(), scores[0].tolist(), strict=True) if row >= 0}

    def _likeness(self, vector: Vector, rows: list[int]) -> dict[int, float]:
        """Return the score of the dense leg for rows that it did not find itself."""
        stored = self._vectors.of(np.array(rows, dtype=np.int64))
        if self._metric == "cosine":
            stored, vector = normalised(stored), normalised(vector)
        return dict(zip(rows, (stored @ vector[0]).tolist(), strict=True))

    def _cosine_of(self, vector: Vector | None, rows: Rows) -> Callable[[int], float] | None:
        """Return what gives the cosine of one of these rows, where the scores of the dense leg are something else."""
        if vector is None or self._metric == "cosine":
            return None
        asked = normalised(vector)[0]
        return lambda place: float((normalised(self._vectors.of(rows[place : place + 1])) @ asked)[0])
