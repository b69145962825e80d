"""Pure: how good an order is, by the grades of what belongs first."""

import math
from collections.abc import Mapping, Sequence


def ndcg(order: Sequence[int], grades: Mapping[int, float], k: int) -> float:
    """Return the normalised discounted cumulative gain of the first `k`; the gain of a document is its grade.

    Args:
        order: documents as they were ranked, best first.
        grades: document → grade above 0, at least one.
        k: how many count.
    """
    got = sum(grades.get(each, 0.0) / math.log2(rank + 2) for rank, each in enumerate(order[:k]))
    best = sorted(grades.values(), reverse=True)[:k]
    return got / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def recall(order: Sequence[int], grades: Mapping[int, float], k: int) -> float:
    """Return the share of the graded documents that are among the first `k`."""
    return len(grades.keys() & set(order[:k])) / len(grades)


def reciprocal_rank(order: Sequence[int], grades: Mapping[int, float], k: int) -> float:
    """Return one over the place of the first graded document among the first `k`; 0 where there is none."""
    return next((1 / rank for rank, each in enumerate(order[:k], 1) if each in grades), 0.0)
