"""Which passage supports which sentence of an answer. Pure but for the encoder; knows no model, index or store.

A sentence is supported by a passage when it says what one or two sentences of the passage say. How near they are is the
cosine of their vectors mixed with the share of the sentence's own words that stand there; a number or a name that the
passage lacks means that it supports nothing, whatever the cosine: vectors hardly tell 308 from 380.
"""

import hashlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatkit.errors import Unavailable
from chatkit.protocols import Encoder
from chatkit.sentences import COMMON, sentence_spans, stem, words_of
from chatkit.types import Citation, Passage

log = logging.getLogger(__name__)

# Score from which a sentence counts as supported; benchmarks/citations.py measures precision and recall there.
THRESHOLD = 0.65
# Part of the score that is the cosine, the rest is the share of the sentence's words found.
COSINE_SHARE = 0.75
# What a number or a name counts for among a sentence's words.
TELLING = 2.0
# A further passage is named beside the best one when it is supported and not further below it than this.
BESIDE = 0.1
# Sentences of one passage that are compared; a passage of an index has far fewer.
MOST_SENTENCES = 64
# Passages whose sentences' vectors are kept, some 10 sentences of 384 floats each: about 15 MB.
KEPT_PASSAGES = 1024


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for one sentence being supported by one passage: by that piece of it for which the most speaks.

    Attributes:
        cosine: of the sentence to the piece, which is a sentence of the passage or two in a row.
        coverage: share of the sentence's words that are in the piece, 0..1; numbers and names weigh more.
        missing: a number of the sentence is not in the piece, or a name is not in the passage.
        quoted: the sentence stands in the passage word by word.
    """

    cosine: float
    coverage: float
    missing: bool
    quoted: bool

    @property
    def score(self) -> float:
        """Return 0..1, higher is better; 0 where a number or a name is missing."""
        return self.mixed(COSINE_SHARE)

    def mixed(self, share: float) -> float:
        """Return the score where the cosine is this part of it."""
        if self.quoted:
            return 1.0
        if self.missing:
            return 0.0
        return share * max(0.0, min(1.0, self.cosine)) + (1 - share) * self.coverage


class Attributor:
    """Attributes sentences to passages with an encoder, and keeps the vectors of passages that were seen.

    Args:
        encoder: any; vectors of unit length are taken as they are.
        threshold: score from which a sentence is supported.
    """

    def __init__(self, encoder: Encoder, *, threshold: float = THRESHOLD) -> None:
        self._encoder = encoder
        self._threshold = threshold
        self._kept: OrderedDict[str, _Pieces] = OrderedDict()

    async def cite(self, text: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
        """Return one citation a sentence of `text`, in order; none where no passage has text, or the encoder fails."""
        spans = sentence_spans(text)
        known = [passage for passage in passages if passage.text.strip()]
        if not spans or not known:
            return ()
        try:
            evidence = await self.evidence([text[start:end] for start, end in spans], known)
        except Unavailable as error:
            log.warning("an answer was not attributed to its sources: %s", error)
            return ()
        return tuple(
            _citation(span, known, [found.score for found in row], self._threshold)
            for span, row in zip(spans, evidence, strict=True)
        )

    async def evidence(self, sentences: Sequence[str], passages: Sequence[Passage]) -> list[list[Evidence]]:
        """Return for each sentence what each of the passages says of it.

        Raises:
            Unavailable: the encoder failed.
        """
        keys = [_key(passage) for passage in passages]
        new = {key: _Pieces(passage) for key, passage in zip(keys, passages, strict=True) if key not in self._kept}
        texts = [*sentences, *(text for pieces in new.values() for text in pieces.texts)]
        vectors = await self._encoder.encode(texts)
        at = len(sentences)
        own = vectors[:at]
        for pieces in new.values():
            pieces.vectors = vectors[at : at + len(pieces.texts)]
            at += len(pieces.texts)
        found = {key: new.get(key) or self._kept[key] for key in keys}
        self._keep(found)
        said = [_Sentence(sentence) for sentence in sentences]
        near = {key: (own @ pieces.vectors.T).tolist() for key, pieces in found.items()}
        return [[found[key].evidence(one, near[key][at]) for key in keys] for at, one in enumerate(said)]

    def _keep(self, found: "dict[str, _Pieces]") -> None:
        for key, pieces in found.items():
            self._kept[key] = pieces
            self._kept.move_to_end(key)
        while len(self._kept) > KEPT_PASSAGES:
            self._kept.popitem(last=False)


class _Sentence:
    """A sentence of an answer, taken apart.

    Attributes:
        weights: its words by stem, each with what it counts for.
        numbers, names: the words of it that have to be in the passage.
    """

    def __init__(self, text: str) -> None:
        words = words_of(text)
        telling = [word for at, word in enumerate(words) if _is_telling(word, first=at == 0)]
        self.numbers = {stem(word) for word in telling if _has_digit(word)}
        self.names = {stem(word) for word in telling if not _has_digit(word)}
        own = [word for word in words if word.casefold() not in COMMON]
        self.weights = {stem(word): 1.0 for word in own} | dict.fromkeys(self.numbers | self.names, TELLING)
        self.running = _running(words)


class _Pieces:
    """What a passage says, piece by piece: its sentences, each alone and each with the next.

    Attributes:
        texts: the pieces; at least one.
        vectors: (len(texts), dim), once they were made.
    """

    def __init__(self, passage: Passage) -> None:
        sentences = [passage.text[start:end] for start, end in sentence_spans(passage.text)[:MOST_SENTENCES]]
        pairs = [f"{one} {two}" for one, two in itertools.pairwise(sentences)]
        self.texts = [*sentences, *pairs] or [passage.text]
        self.vectors: Any = None
        self._stems = [frozenset(map(stem, words_of(text))) for text in self.texts]
        self._heading = frozenset(map(stem, words_of(f"{passage.title}\n{passage.section}")))
        words = words_of(passage.text)
        self._all = self._heading.union(map(stem, words))
        self._running = _running(words)

    def evidence(self, sentence: _Sentence, cosines: Sequence[float]) -> Evidence:
        """Return the best evidence, given the cosine of the sentence to each piece."""
        named = sentence.names <= self._all
        quoted = bool(sentence.weights) and sentence.running in self._running
        found = [
            Evidence(
                cosine,
                _coverage(sentence, stems | self._heading),
                missing=not (named and sentence.numbers <= stems),
                quoted=quoted,
            )
            for cosine, stems in zip(cosines, self._stems, strict=True)
        ]
        return max(found, key=lambda one: (one.score, one.cosine))


def _coverage(sentence: _Sentence, stems: frozenset[str]) -> float:
    total = sum(sentence.weights.values())
    return sum(weight for stem, weight in sentence.weights.items() if stem in stems) / total if total else 0.0


def _citation(
    span: tuple[int, int], passages: Sequence[Passage], scores: Sequence[float], threshold: float
) -> Citation:
    best = max(scores)
    if best < threshold:
        return Citation(*span, (), best, False)
    ranked = sorted(range(len(scores)), key=lambda at: -scores[at])
    named = [passages[at].id for at in ranked if scores[at] >= max(threshold, best - BESIDE)]
    return Citation(*span, tuple(dict.fromkeys(named)), best, True)


def _key(passage: Passage) -> str:
    return hashlib.sha256(f"{passage.id}\n{passage.text}".encode("utf-8", "surrogatepass")).hexdigest()


def _is_telling(word: str, *, first: bool) -> bool:
    """Whether a word must stand in the passage: a number, or a name by its capital where no sentence begins."""
    return _has_digit(word) or (not first and word[:1].isupper() and word.casefold() not in COMMON)


def _has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


def _running(words: Sequence[str]) -> str:
    return f" {' '.join(map(str.casefold, words))} "
