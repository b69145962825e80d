"""The weight of the dense leg in one index, from its own passages: does the encoder speak their language?

A sentence is taken out of a passage, and what is left of the passage has to be found by it among the rests of others.
No judged queries are needed, and neither leg has an advantage: the sentence and the rest share no text.
"""

import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval import fusion
from chatkit.retrieval.lexical import Lexical, LexicalWriter
from chatkit.retrieval.manifest import FusionEntry
from chatkit.retrieval.words import DEFAULT

# Pairs of sentence and rest; with 128 the mean reciprocal rank of a leg is within about .04.
_PAIRS = 128
# With fewer the figures say little, and the default stands.
_LEAST_PAIRS = 24
# Under this share of the lexical leg's mean reciprocal rank the encoder does not speak the language: with MiniLM .25
# to .35 on Chinese, .88 to 1.1 on five English collections.
_MUTE = 0.5
# From here on the default stands; between the two the weight that finds most is taken.
_FLUENT = 0.75
_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, fusion.DENSE_WEIGHT)

_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？।؟]+[\"')\]”’»]*(?=\s|[^\x00-\u02ff])|(?=\n)|\Z)", re.DOTALL)
_LEAST_SENTENCE = 12
_LEAST_REST = 24


class QueryEncoder(Protocol):
    """What is needed of an encoder; see `protocols.PassageEncoder`."""

    @property
    def query_prefix(self) -> str:
        """What the model expects before a query."""
        ...

    @property
    def passage_prefix(self) -> str:
        """What the model expects before a passage."""
        ...

    def encode_now(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), dim) float32 vectors."""
        ...


@dataclass(frozen=True, slots=True)
class _Rest:
    embedded: str


def choose_fusion(texts: Sequence[str], encoder: QueryEncoder, analyser: str = DEFAULT) -> FusionEntry:
    """Return the weight of the dense leg for an index, and what it was chosen on.

    Encodes at most 256 texts. The same texts give the same answer.

    Args:
        texts: passages of the index, without title and section; a sample of some hundreds is enough.
        encoder: the one of the index.
        analyser: of its lexical index.
    """
    pairs = pairs_of(texts)
    if len(pairs) < _LEAST_PAIRS:
        return FusionEntry(fusion.DENSE_WEIGHT, f"default, {len(pairs)} sentences are too few to tell")
    sentences, rests = [sentence for sentence, _ in pairs], [rest for _, rest in pairs]
    queries = _unit(encoder.encode_now([encoder.query_prefix + text for text in sentences]))
    dense = (queries @ _unit(encoder.encode_now([encoder.passage_prefix + text for text in rests])).T).astype(float)
    lexical = _lexical_scores(sentences, rests, analyser)
    background = float((dense.sum() - np.trace(dense)) / (dense.size - len(dense)))
    own, words = _found(dense), _found(lexical)
    said = (
        f"{len(pairs)} sentences and the rest of their passages, reciprocal rank {own:.2f} dense, {words:.2f} lexical"
    )
    weight = fusion.DENSE_WEIGHT
    if own < _MUTE * words:
        weight = 0.0
    elif own < _FLUENT * words:
        weight = max(_WEIGHTS, key=lambda each: _fused_found(dense, lexical, each, background))
    return FusionEntry(weight, said, round(max(0.0, background), 3))


def pairs_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return sentences and what is left of their passages, at most 128, from passages drawn by chance."""
    chance = random.Random(len(texts))
    order = list(range(len(texts)))
    chance.shuffle(order)
    pairs: list[tuple[str, str]] = []
    for place in order:
        text = texts[place].strip()
        spans = [match.span() for match in _SENTENCE.finditer(text)]
        fit = [
            (first, last)
            for first, last in spans
            if last - first >= _LEAST_SENTENCE and len(text) - (last - first) >= _LEAST_REST
        ]
        if len(spans) > 1 and fit:
            first, last = chance.choice(fit)
            pairs.append((text[first:last], f"{text[:first]} {text[last:]}".strip()))
        if len(pairs) == _PAIRS:
            break
    return pairs


def _lexical_scores(sentences: Sequence[str], rests: Sequence[str], analyser: str) -> NDArray[np.float64]:
    scores = np.zeros((len(sentences), len(rests)))
    with tempfile.TemporaryDirectory(prefix="chatkit-tuning-") as folder:
        writer = LexicalWriter(Path(folder), analyser)
        writer.add(0, [_Rest(text) for text in rests])
        writer.finish()
        lexical = Lexical.alone(Path(folder), analyser)
        for place, sentence in enumerate(sentences):
            for row, score in lexical.search(sentence, len(rests)):
                scores[place, row] = score
        lexical.close()
    return scores


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _found(scores: NDArray[np.float64]) -> float:
    """Return the mean reciprocal rank of the diagonal; what ties with it is counted as before it."""
    right = np.diag(scores)[:, None]
    ranks = (scores >= right).sum(axis=1)
    return float(np.mean(np.where(np.diag(scores) > 0, 1.0 / ranks, 0.0)))


def _fused_found(dense: NDArray[np.float64], lexical: NDArray[np.float64], weight: float, background: float) -> float:
    ranks = []
    for place, (likeness, words) in enumerate(zip(dense, lexical, strict=True)):
        order = fusion.fuse(likeness, words, weight, background=background).order
        ranks.append(1.0 / (1 + int(np.flatnonzero(order == place)[0])))
    return float(np.mean(ranks))
