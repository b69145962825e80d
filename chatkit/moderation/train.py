"""`chatkit moderation train`: reads the sets, encodes them once, fits, calibrates, writes the weights, measures."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chatkit.errors import ConfigError
from chatkit.moderation import figures, sets
from chatkit.moderation.features import hashed_terms
from chatkit.moderation.fit import Examples, fit_network
from chatkit.moderation.head import WEIGHTS, HeadScorer
from chatkit.moderation.moderator import PolicyModerator
from chatkit.moderation.network import SCORED, Floats, Network, save_network
from chatkit.moderation.normalise import normalised
from chatkit.moderation.policy_files import named
from chatkit.protocols import Encoder
from chatkit.release import overlapping_windows
from chatkit.types import LABELS

Progress = Callable[[int, int], Any]  # texts encoded so far, texts in all

# Texts handed to the encoder at once.
CHUNK = 256
FOLDS = 5
# Requests for harmful acts and their harmless look-alikes are few beside comments and chat, and matter more.
SET_WEIGHTS = {
    "benign": 2.0,
    "advbench": 2.0,
    "catqa": 2.0,
    "harmbench": 2.0,
    "strongreject": 2.0,
    "plain": 2.0,
    "injections": 2.0,
    "deepset": 20.0,
}
# What everyday use looks like: scores are calibrated on a tenth of it and refusals counted on a fifth.
EVERYDAY = sets.SPLIT
# Calibration: this share of harmless windows reaches this score, in each category.
ANCHORS = ((0.05, 0.2), (0.01, 0.5))


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What was fitted and how well it does.

    Attributes:
        rows: texts by set that were fitted on.
        figures: name → number; `SET.FIGURE`, see `measure`.
    """

    path: Path
    encoder: str
    rows: dict[str, int]
    figures: dict[str, float]


def train_head(encoder: Encoder, folder: Path, out: Path | None, progress: Progress) -> TrainReport:
    """Fit the head on the sets in `folder` and write it to `out`, or where the shipped weights are.

    Not to be called inside a running event loop.

    Raises:
        ConfigError: `folder` lacks a set, or has too little of one.
    """
    path = out or WEIGHTS
    rows, measured = sets.read_rows(folder), sets.measured(folder)
    parts = np.array([sets.part(row) for row in rows])
    held_out = [row for row, name in zip(rows, parts, strict=True) if name == "held_out"]
    asking = sets.measured_orders(folder)
    judged = [row.text for row in held_out]
    judged += [text for texts in (*measured.values(), asking) for text, _ in texts]
    windows = [window for text in judged for window in _windows(text)]
    encoded = asyncio.run(_encode(encoder, [row.text for row in rows] + windows, progress))
    examples = _examples(rows, encoded)
    sources = np.array([row.source for row in rows])
    network = fit_network(examples[np.flatnonzero(parts == "fit")], sets.SEED)
    everyday = np.isin(sources, (*EVERYDAY, "self-instruct", "manuals")) & (parts == "calibrate")
    if not everyday.any():
        raise ConfigError(f"{str(folder)!r} has too few everyday texts to calibrate on, expected the sets in full")
    usual = examples[np.flatnonzero(everyday)]
    network = calibrate(network, _logits(network, usual), usual.targets)
    save_network(path, network, {"encoder": encoder.fingerprint, "dim": encoder.dim, "seed": sets.SEED})
    found = asyncio.run(measure(encoded, path, held_out, measured))
    if asking:
        found |= asyncio.run(measure_orders(encoded, path, asking))
    found |= cross_validate(examples, np.flatnonzero(sources == "prosocial"))
    counts = Counter(sources[parts == "fit"].tolist())
    return TrainReport(path, encoder.fingerprint, dict(sorted(counts.items())), found)


def _windows(text: str) -> list[str]:
    return [unit for window in overlapping_windows(text) if (unit := normalised(window))]


class _Encoded:
    """An encoder of texts that were encoded before."""

    def __init__(self, fingerprint: str, dim: int, vectors: dict[str, Floats]) -> None:
        self.fingerprint = fingerprint
        self.dim = dim
        self.vectors = vectors

    async def encode(self, texts: Sequence[str]) -> Floats:
        return np.stack([self.vectors[text] for text in texts])


async def _encode(encoder: Encoder, texts: list[str], progress: Progress) -> _Encoded:
    """Encode each distinct text once, those of like length together, so that little is spent on padding."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    vectors: dict[str, Floats] = {}
    for start in range(0, len(distinct), CHUNK):
        chunk = distinct[start : start + CHUNK]
        vectors.update(zip(chunk, np.asarray(await encoder.encode(chunk), np.float32), strict=True))
        progress(len(vectors), len(distinct))
    return _Encoded(encoder.fingerprint, encoder.dim, vectors)


def _examples(rows: list[sets.Row], encoded: _Encoded) -> Examples:
    targets = [[row.targets.get(category, np.nan) for category in SCORED] for row in rows]
    return Examples(
        vectors=np.stack([encoded.vectors[row.text] for row in rows]),
        terms=[hashed_terms(row.text) for row in rows],
        targets=np.array(targets, np.float32),
        levels=np.array([row.levels or (0.0,) * len(LABELS) for row in rows], np.float32),
        weights=np.array([SET_WEIGHTS.get(row.source, 1.0) for row in rows], np.float32),
    )


def _logits(network: Network, examples: Examples) -> Floats:
    words = np.stack([shares @ network.words[buckets] for buckets, shares in examples.terms])
    words[:, len(SCORED) :] = 0
    return network.from_vectors(examples.vectors) + words


def calibrate(network: Network, harmless: Floats, targets: Floats) -> Network:
    """Return `network` with scale and shift such that its scores of harmless windows pass through ANCHORS.

    Args:
        harmless: (n, 15) logits of windows that were not fitted on.
        targets: (n, 10); where "orders" is NaN a window may hold some, and is left out for that category. Of one whose
            harm is NaN, as of technical prose, only the categories that are known count.
    """
    (often, low), (seldom, high) = ANCHORS
    prose = np.isnan(targets[:, [SCORED.index("harm")]])
    left_out = np.isnan(targets) & (prose | (np.array(SCORED) == "orders"))
    raw = np.where(left_out, np.nan, harmless[:, : len(SCORED)])
    raw_low, raw_high = np.nanquantile(raw, (1 - often, 1 - seldom), axis=0)
    odds_low, odds_high = np.log(low / (1 - low)), np.log(high / (1 - high))
    scale = (odds_high - odds_low) / np.maximum(raw_high - raw_low, 0.1)
    return replace(network, scale=scale.astype(np.float32), shift=(odds_low - scale * raw_low).astype(np.float32))


async def measure(
    encoded: _Encoded, path: Path, held_out: list[sets.Row], measured: dict[str, list[tuple[str, int]]]
) -> dict[str, float]:
    """Return the figures of the model card, by the same moderator that serves.

    `SET.auprc`, `SET.roc_auc` and `SET.recall@fprN` for the sets that only measure and for all that was held out,
    `SET.refused_harmful` and `SET.refused_harmless` under the standard policy; `everyday.refused` of held-out windows.
    """
    moderator = PolicyModerator(HeadScorer(encoded, path), named("standard"))
    found: dict[str, float] = {}
    known = [(row.text, round(row.targets["harm"])) for row in held_out if "harm" in row.targets]
    for name, texts in {"held-out": known, **measured}.items():
        if len({truth for _, truth in texts}) < 2:
            continue
        results = [await moderator.check(text, direction="input") for text, _ in texts]
        truth = np.array([truth for _, truth in texts])
        scores = np.array([result.scores["harm"] for result in results])
        refused = np.array([result.flagged for result in results])
        found[f"{name}.auprc"] = figures.auprc(truth, scores)
        found[f"{name}.roc_auc"] = figures.roc_auc(truth, scores)
        for percent in (1, 2, 5):
            recall = figures.recall_at(percent / 100, scores[truth == 1], scores[truth == 0])
            found[f"{name}.recall@fpr{percent}"] = recall
        found[f"{name}.refused_harmful"] = float(refused[truth == 1].mean())
        found[f"{name}.refused_harmless"] = float(refused[truth == 0].mean())
    everyday = [row.text for row in held_out if row.source in EVERYDAY]
    if everyday:
        flags = [(await moderator.check(text, direction="input")).flagged for text in everyday]
        found["everyday.refused"] = float(np.mean(flags))
    return found


async def measure_orders(encoded: _Encoded, path: Path, texts: list[tuple[str, int]]) -> dict[str, float]:
    """Return `injections.roc_auc` and `injections.recall@fprN` of the injection score."""
    scorer = HeadScorer(encoded, path)
    scores = np.array([(await scorer.score(text, direction="input")).scores["injection"] for text, _ in texts])
    truth = np.array([label for _, label in texts])
    found = {"injections.roc_auc": figures.roc_auc(truth, scores)}
    for percent in (1, 2, 5):
        recall = figures.recall_at(percent / 100, scores[truth == 1], scores[truth == 0])
        found[f"injections.recall@fpr{percent}"] = recall
    return found


def cross_validate(examples: Examples, rows: np.ndarray[Any, np.dtype[np.intp]]) -> dict[str, float]:
    """Return accuracy, macro-F1 and kappa of the five labels on `rows`, each judged by a head that did not see it.

    Rows whose label is a mix of two are fitted on but not judged.
    """
    clear = rows[examples.levels[rows].max(axis=1) == 1]
    if len(clear) < FOLDS:
        return {}
    rng = np.random.default_rng(sets.SEED)
    others = np.setdiff1d(np.arange(len(examples.targets)), clear)
    truth, said = [], []
    for fold in np.array_split(rng.permutation(clear), FOLDS):
        seen = np.concatenate([others, np.setdiff1d(clear, fold)])
        network = fit_network(examples[seen], sets.SEED)
        truth += examples.levels[fold].argmax(axis=1).tolist()
        said += _logits(network, examples[fold])[:, len(SCORED) :].argmax(axis=1).tolist()
    found = figures.agreement(truth, said, len(LABELS))
    return {f"five-labels.{name}": value for name, value in found.items()}
