"""How well scores tell two kinds of text apart: the figures of the model card."""

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def auprc(truth: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return average precision: the mean, over the positives, of the precision at the score of each."""
    y, s = _sorted(truth, scores)
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)  # equal scores are one threshold
    found, taken = np.cumsum(y)[last], last + 1
    return float(np.sum(np.diff(found, prepend=0) * found / taken) / y.sum())


def roc_auc(truth: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the chance that a positive scores higher than a negative, a tie counting half."""
    y, s = _sorted(truth, scores)
    positive, negative = s[y == 1][::-1], s[y == 0][::-1]
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / 2 / (len(positive) * len(negative)))


def recall_at(rate: float, positive: npt.ArrayLike, negative: npt.ArrayLike) -> float:
    """Return which share of `positive` scores over a threshold that at most `rate` of `negative` score over."""
    ranked = np.sort(np.asarray(negative, np.float64))[::-1]
    return float(np.mean(np.asarray(positive) > ranked[int(rate * len(ranked))]))


def best_f1(truth: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Return the highest F1 that a threshold gives."""
    y, s = _sorted(truth, scores)
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    return float(np.max(2 * np.cumsum(y)[last] / (last + 1 + y.sum())))


def operating_points(truth: npt.ArrayLike, scores: npt.ArrayLike) -> list[tuple[float, float]]:
    """Return (share of negatives, share of positives) over each threshold, from the highest score down."""
    y, s = _sorted(truth, scores)
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    found = np.cumsum(y)[last]
    taken = last + 1 - found
    return [(0.0, 0.0), *zip((taken / max(taken[-1], 1)).tolist(), (found / max(found[-1], 1)).tolist(), strict=True)]


def agreement(truth: npt.ArrayLike, said: npt.ArrayLike, kinds: int) -> dict[str, float]:
    """Return accuracy, macro-F1 and quadratically weighted kappa (Cohen 1968) of ordered kinds 0..kinds-1."""
    table = np.zeros((kinds, kinds))
    np.add.at(table, (np.asarray(truth), np.asarray(said)), 1)
    sums = table.sum(axis=1) + table.sum(axis=0)
    hits = np.diag(table)
    f1 = np.divide(2 * hits, sums, out=np.zeros(kinds), where=sums > 0)
    apart = np.subtract.outer(np.arange(kinds), np.arange(kinds)) ** 2
    by_chance = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    kappa = 1 - (apart * table).sum() / (apart * by_chance).sum()
    return {"accuracy": float(hits.sum() / table.sum()), "macro_f1": float(f1.mean()), "kappa": float(kappa)}


def _sorted(truth: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], Numbers]:
    """Return both as arrays, highest score first."""
    y, s = np.asarray(truth, np.int64), np.asarray(scores, np.float64)
    order = np.argsort(-s, kind="stable")
    return y[order], s[order]
