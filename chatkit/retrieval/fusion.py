"""Pure: the scores of the two legs to one order, and to one number that says how relevant a passage is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

# The weight of the dense leg where the encoder speaks the language: on the train queries of SciFact everything from
# .45 to .6 is within .001 nDCG@10, and on four other sets .5 is within .003 of each one's best.
DENSE_WEIGHT = 0.5
# Candidates that each leg brings; 100 and 300 give the same figures.
POOL = 100

# How relevant the best passage is, is 3/4 its cosine and 1/4 how much of the query's words it has. Chosen on queries
# of one collection asked of another: at equal answers kept, fewer queries from elsewhere find anything than with the
# cosine alone.
_COSINE_SHARE = 0.75
# The best passage of a good query reaches about half of BM25's ceiling, and hardly any more than this share of it.
_FULL_SHARE = 0.75
# Vectors of some encoders never point away from one another; what is above this of their mean is taken off.
_USUAL_BACKGROUND = 0.15


@dataclass(frozen=True, slots=True)
class Fused:
    """The candidates of one query.

    Attributes:
        order: places of the candidates, best first.
        scores: one for each candidate, in the order that they were given in: 0 to 1, comparable between queries.
    """

    order: NDArray[np.int64]
    scores: Scores


def fuse(
    dense: Scores,
    lexical: Scores,
    weight: float,
    *,
    ceiling: float = 0.0,
    background: float = 0.0,
    cosine_of: Callable[[int], float] | None = None,
) -> Fused:
    """Order candidates by the weighted sum of the scores of both legs, each as its share of that leg's best.

    Both legs score every candidate, also those that only the other one brought: a passage that one leg missed by a
    little is not treated as one that has nothing. Shares of the best, with zero for no likeness at all, keep an
    encoder that sees no difference between the candidates from deciding: where all cosines are alike, so are their
    shares. Min-max spreads such differences over the whole range.

    Args:
        dense: cosine of each candidate, (n,); read only where `weight` is above 0.
        lexical: BM25 score of each candidate, (n,), 0 for none.
        weight: of the dense leg, 0 to 1.
        ceiling: the BM25 score of a passage that says all of the query.
        background: mean cosine of unrelated texts with this encoder.
        cosine_of: place of a candidate → its cosine, where `dense` holds inner products of vectors of any length.

    Returns:
        The order, and scores: the share of the best candidate times how relevant that one is, by its own cosine and
        its own words: what other candidates have says nothing of it.
    """
    likeness = cosines(dense, background)
    summed = weight * _share(likeness) + (1 - weight) * _share(lexical)
    order = np.argsort(-summed, kind="stable").astype(np.int64)
    if not len(order) or summed[order[0]] <= 0:
        return Fused(order, np.zeros(len(order)))
    best = int(order[0])
    spoken = min(1.0, float(lexical[best]) / (_FULL_SHARE * ceiling)) if ceiling > 0 else 0.0
    share = _COSINE_SHARE if 0 < weight < 1 else weight
    close = float(likeness[best]) if cosine_of is None or share <= 0 else cosine_of(best)
    strength = share * min(1.0, max(0.0, close)) + (1 - share) * spoken
    return Fused(order, strength * summed / summed[best])


def cosines(dense: Scores, background: float) -> Scores:
    """Return cosines of 0 to 1, stretched where the encoder's vectors are all much alike."""
    floor = max(0.0, background - _USUAL_BACKGROUND)
    return np.clip((dense - floor) / (1 - floor), 0.0, None)


def _best(scores: Scores) -> float:
    return float(scores.max()) if len(scores) else 0.0


def _share(scores: Scores) -> Scores:
    best = _best(scores)
    return scores / best if best > 0 else np.zeros(len(scores))
