"""Fits the head in numpy: an ensemble of networks with one hidden layer, and hashed words. Seeded and repeatable."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chatkit.moderation.features import BUCKETS, Terms
from chatkit.moderation.network import OUTPUTS, SCORED, Floats, Network, kernel

Rows = npt.NDArray[np.intp]
Gradient = Callable[[Rows], dict[str, Floats]]

MEMBERS = 3
UNITS = 256
BATCH = 128
EPOCHS = 12
DROPOUT = 0.3
RATE = 2e-3
DECAY = 1e-2
WORD_EPOCHS = 4
WORD_RATE = 0.02
WORD_DECAY = 1e-5
# Centres of the regression of the five labels, and how strongly it is held to their mean.
CENTRES = 1536
RIDGE = 0.3
# Of the weight that everyday texts have without a vote.
EVERYDAY_SHARE = 0.1
# The plane of "injection", and the weight of its logit beside the network's and the words'.
PLANE_STEPS = 300
PLANE_RATE = 0.05
PLANE_DECAY = 0.01
PLANE_SHARE = 2.0
# Weight of the words' logits beside the network's.
WORD_SHARE = 0.75
# Weight of the loss of the five labels beside that of the categories.
LEVEL_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Examples:
    """What the head is fitted on.

    Attributes:
        vectors: (n, D) float32 unit vectors.
        terms: per text the buckets of its words and pieces, and how much each counts.
        targets: (n, 10) in 0..1, NaN where not known.
        levels: (n, 5) weights of the five labels; all 0 where not known.
        weights: (n,), how much each text counts.
    """

    vectors: Floats
    terms: list[Terms]
    targets: Floats
    levels: Floats
    weights: Floats

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> "Examples":
        """Return the examples at `rows`."""
        terms = [self.terms[row] for row in rows]
        return Examples(self.vectors[rows], terms, self.targets[rows], self.levels[rows], self.weights[rows])


def fit_network(examples: Examples, seed: int) -> Network:
    """Return a network fitted on `examples`, not yet calibrated: scale 1, shift 0."""
    fitted = [fit_member(examples, seed + member) for member in range(MEMBERS)]
    share = np.float32(1 / MEMBERS)
    return Network(
        hidden=np.hstack([part["hidden"] for part in fitted]),
        hidden_bias=np.concatenate([part["hidden_bias"] for part in fitted]),
        output=np.vstack([part["output"] for part in fitted]) * share,
        output_bias=np.sum([part["output_bias"] for part in fitted], axis=0) * share,
        words=fit_words(examples, seed) * np.float32(WORD_SHARE),
        **fit_levels(examples, seed),
        direct=fit_direct(examples),
        scale=np.ones(len(SCORED), np.float32),
        shift=np.zeros(len(SCORED), np.float32),
    )


def fit_member(examples: Examples, seed: int) -> dict[str, Floats]:
    """Return `hidden`, `hidden_bias`, `output` and `output_bias` of one network."""
    rng = np.random.default_rng(seed)
    n, dim = examples.vectors.shape
    zoom = np.float32(np.sqrt(dim))  # entries of unit vectors are small; the network learns from ones near 1
    inputs = examples.vectors * zoom
    weights: dict[str, Floats] = {
        "hidden": rng.uniform(-1, 1, (dim, UNITS)).astype(np.float32) / zoom,
        "hidden_bias": np.zeros(UNITS, np.float32),
        "output": rng.uniform(-1, 1, (UNITS, OUTPUTS)).astype(np.float32) / np.float32(np.sqrt(UNITS)),
        "output_bias": np.zeros(OUTPUTS, np.float32),
    }

    def gradient(rows: Rows) -> dict[str, Floats]:
        x = inputs[rows]
        kept: Floats = (rng.random((len(rows), UNITS), np.float32) >= DROPOUT).astype(np.float32) / np.float32(
            1 - DROPOUT
        )
        before = x @ weights["hidden"] + weights["hidden_bias"]
        active: Floats = np.maximum(before, 0) * kept
        error = _error(active @ weights["output"] + weights["output_bias"], examples, rows)
        back = (error @ weights["output"].T) * kept * (before > 0)
        return {
            "hidden": x.T @ back,
            "hidden_bias": back.sum(axis=0),
            "output": active.T @ error,
            "output_bias": error.sum(axis=0),
        }

    _descend(weights, gradient, n, epochs=EPOCHS, batch=BATCH, rate=RATE, rng=rng)
    weights["hidden"] *= zoom  # so that the fitted network reads unit vectors as they come
    return weights


def fit_direct(examples: Examples) -> Floats:
    """Return (D, 15) weights of a logistic regression on the vectors, of "injection" alone; the others are 0.

    The injections that can be had are few and of few kinds. A plane carries over to other kinds better than a network.
    """
    column = SCORED.index("injection")
    known = np.flatnonzero(~np.isnan(examples.targets[:, column]))
    zoom = np.float32(np.sqrt(examples.vectors.shape[1]))
    inputs, targets = examples.vectors[known] * zoom, examples.targets[known, column]
    counted = examples.weights[known] / examples.weights[known].sum()
    weights = {"plane": np.zeros(inputs.shape[1], np.float32), "bias": np.full(1, -2, np.float32)}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(1, PLANE_STEPS + 1):
        error = (1 / (1 + np.exp(-(inputs @ weights["plane"] + weights["bias"]))) - targets) * counted
        slopes = {"plane": inputs.T @ error + PLANE_DECAY * weights["plane"], "bias": error.sum(keepdims=True)}
        for name, slope in slopes.items():
            first[name] += np.float32(0.1) * (slope - first[name])
            second[name] += np.float32(0.01) * (slope * slope - second[name])
            drift = first[name] / np.float32(1 - 0.9**step)
            spread = np.sqrt(second[name] / np.float32(1 - 0.99**step)) + np.float32(1e-8)
            weights[name] -= np.float32(PLANE_RATE * (1.05 - step / PLANE_STEPS)) * drift / spread
    direct = np.zeros((inputs.shape[1], OUTPUTS), np.float32)
    direct[:, column] = PLANE_SHARE * zoom * weights["plane"]
    return direct


def fit_levels(examples: Examples, seed: int) -> dict[str, Floats]:
    """Return `centres`, `kernel` and `base` of a kernel regression of the five labels on the vectors.

    Votes are noisy and few; the smooth regression tells more of them than a network that fits each of them. The centres
    are texts with votes, so that the work grows with their number (Williams and Seeger, 2001).
    """
    voted = np.flatnonzero(examples.levels.sum(axis=1) > 0)
    shown = examples.levels[voted].sum(axis=1)
    counted = np.where(shown < 1, EVERYDAY_SHARE * shown, shown)
    rng = np.random.default_rng(seed)
    whole = voted[shown == 1]
    centres = examples.vectors[np.sort(rng.permutation(whole if len(whole) else voted)[:CENTRES])]
    shares = examples.levels[voted] / shown[:, None]
    base = (counted[:, None] * shares).sum(axis=0) / counted.sum()
    near = kernel(examples.vectors[voted], centres) * np.sqrt(counted)[:, None]
    left = near.T @ near + RIDGE * kernel(centres, centres) + 1e-3 * np.eye(len(centres), dtype=np.float32)
    right = near.T @ ((shares - base) * np.sqrt(counted)[:, None])
    solved = np.linalg.solve(left.astype(np.float64), right.astype(np.float64))
    return {"centres": centres, "kernel": solved.astype(np.float32), "base": base.astype(np.float32)}


def fit_words(examples: Examples, seed: int) -> Floats:
    """Return (BUCKETS, 15) weights of a logistic regression on hashed terms; its bias is left to the network."""
    rng = np.random.default_rng(seed)
    bias = np.zeros(OUTPUTS, np.float32)
    bias[: len(SCORED)] = -2
    weights = {"words": np.zeros((BUCKETS, OUTPUTS), np.float32), "bias": bias}

    def gradient(rows: Rows) -> dict[str, Floats]:
        found = np.zeros((len(rows), BUCKETS), np.float32)
        for at, row in enumerate(rows):
            buckets, shares = examples.terms[row]
            found[at, buckets] = shares
        error = _error(found @ weights["words"] + weights["bias"], examples, rows)
        return {"words": found.T @ error + 2 * WORD_DECAY * weights["words"], "bias": error.sum(axis=0)}

    _descend(weights, gradient, len(examples.terms), epochs=WORD_EPOCHS, batch=2 * BATCH, rate=WORD_RATE, rng=rng)
    return weights["words"]


def _error(logits: Floats, examples: Examples, rows: Rows) -> Floats:
    """Return the slope of the mean loss by logit: cross-entropy of each known category, and of the five labels."""
    split = len(SCORED)
    targets, levels = examples.targets[rows], examples.levels[rows]
    chance = 1 / (1 + np.exp(-np.clip(logits[:, :split], -30, 30)))
    categories = np.where(np.isnan(targets), 0, chance - np.nan_to_num(targets)) / 3
    raised = np.exp(logits[:, split:] - logits[:, split:].max(axis=1, keepdims=True))
    share = raised / raised.sum(axis=1, keepdims=True)
    five = LEVEL_SHARE * (share * levels.sum(axis=1, keepdims=True) - levels)
    counted = examples.weights[rows, None] / len(rows)
    error: Floats = (np.hstack([categories, five]) * counted).astype(np.float32)
    return error


def _descend(
    weights: dict[str, Floats],
    gradient: Gradient,
    n: int,
    *,
    epochs: int,
    batch: int,
    rate: float,
    rng: np.random.Generator,
) -> None:
    """Change `weights` in place by AdamW (Loshchilov and Hutter 2019), the rate rising and falling.

    Args:
        rate: the highest; it is reached after a tenth of the steps and then falls as a cosine.
    """
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    steps = epochs * -(-n // batch)
    step = 0
    for _ in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n, batch):
            step += 1
            done = step / steps
            now = rate * min(done / 0.1, 0.5 + 0.5 * np.cos(np.pi * max(done - 0.1, 0) / 0.9))
            for name, slope in gradient(order[start : start + batch]).items():
                first[name] += np.float32(0.1) * (slope - first[name])
                second[name] += np.float32(0.001) * (slope * slope - second[name])
                drift = first[name] / np.float32(1 - 0.9**step)
                spread = np.sqrt(second[name] / np.float32(1 - 0.999**step)) + np.float32(1e-8)
                weights[name] *= np.float32(1 - now * DECAY)
                weights[name] -= np.float32(now) * drift / spread
