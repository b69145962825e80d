"""The embedded moderator: the shared encoder and a small head over it, window by window."""

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from chatkit.errors import BrokenModel, ConfigError
from chatkit.moderation.features import MAX_WORDS
from chatkit.moderation.network import FORMAT, RETRAIN, SCORED, Floats, load_network
from chatkit.moderation.normalise import READING, normalised
from chatkit.protocols import Encoder
from chatkit.release import OVERLAP, overlapping_windows, sentence_windows
from chatkit.types import LABELS, Direction, Scores

WEIGHTS = Path(__file__).parent / "weights" / "head.safetensors"
# What is told of the scores: "orders" is a part of "injection" in a passage, and of no account elsewhere.
TOLD = tuple(name for name in SCORED if name != "orders")
# Windows whose vectors are kept: the long answers of about a hundred open turns, 7 MiB at 384 numbers.
CACHED_WINDOWS = 4096
# A longer text is cut into windows in a thread: the event loop has other streams to serve. Characters.
_SHORT = 4000
# More windows than this are weighed in a thread as well.
_FEW = 16
# Tokens of a window that an encoder surely reads, by an estimate; prose has half of them. Signs are a token each, so
# are letters of other scripts.
_TOKENS_READ = 200
_PIECE = re.compile(r"[A-Za-z]+|\S")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class _Window:
    """What is kept of one window: its (D,) vector, and (15,) logits from the words alone and in all."""

    vector: Floats
    words: Floats
    logits: Floats


def fitted_on(weights: Path | None = None) -> str:
    """Return the fingerprint of the encoder that the weights were fitted on; None takes the ones that are shipped.

    Raises:
        ModelError: they cannot be read, or (BrokenModel) are damaged.
    """
    return str(load_network(weights or WEIGHTS)[1]["encoder"])


def version_of(digest: str) -> str:
    """Return what names everything that decides scores: the weights, how they are used, and how a text is read."""
    return f"{digest}-{FORMAT}.{READING}"


class HeadScorer:
    """Scores each window of a text, and of several also their mean; the highest score of each category counts.

    Args:
        encoder: what the vectors come from; must be the one the weights were fitted on.
        weights: a file written by `chatkit moderation train`; None takes the one that is shipped.

    Raises:
        ModelError: the weights cannot be read, or (BrokenModel) are damaged.
        ConfigError: the weights were fitted on another encoder.
    """

    def __init__(self, encoder: Encoder, weights: Path | None) -> None:
        path = weights or WEIGHTS
        self._network, meta = load_network(path)
        if meta["encoder"] != encoder.fingerprint:
            raise ConfigError(
                f"the moderation weights {str(path)!r} were fitted on the encoder {meta['encoder']!r}, "
                f"but the encoder is {encoder.fingerprint!r}; {RETRAIN}"
            )
        self._encoder = encoder
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self.model = f"head-{meta['digest'][:8]}"
        # All that decides a score: the weights, and how texts become windows, words and vectors.
        self.version = version_of(str(meta["digest"]))

    async def score(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> Scores:
        """Score `text`; only windows that were not seen lately are encoded, all of them in one call.

        A message is judged alone, and its beginning behind the end of the user's message before it too; of a passage
        each sentence by itself.
        """
        earlier = history[-2] if direction == "input" and len(history) > 1 else ""
        read = partial(_units, text, None if direction == "passage" else before, earlier)
        units = read() if len(text) <= _SHORT else await asyncio.to_thread(read)
        if not units:
            calm = {label: float(label == LABELS[0]) for label in LABELS}
            return Scores(dict.fromkeys(TOLD, 0.0), calm, model=self.model, version=self.version)
        known = await self._judge(list(dict.fromkeys(units)))
        logits = np.stack([known[unit].logits for unit in units])
        if len(units) > 1:
            mean = np.mean([known[unit].vector for unit in units], axis=0)
            mean /= max(float(np.linalg.norm(mean)), 1e-6)
            words = np.mean([known[unit].words for unit in units], axis=0)
            logits = np.vstack([logits, self._network.from_vectors(mean[None]) + words])
        return self._scores(logits, direction)

    async def _judge(self, units: list[str]) -> dict[str, _Window]:
        """Return what is known of each of the distinct `units`, encoding those that are new."""
        known = {}
        for unit in units:
            if (window := self._windows.get(unit)) is not None:
                self._windows.move_to_end(unit)
                known[unit] = window
        new = [unit for unit in units if unit not in known]
        if new:
            vectors = np.asarray(await self._encoder.encode(new), np.float32)
            if not np.isfinite(vectors).all():  # every comparison with NaN is false: it would pass as harmless
                raise BrokenModel(
                    f"the encoder {self._encoder.fingerprint!r} gave vectors that are not finite; pull it again"
                )
            weighed = (
                self._weighed(new, vectors)
                if len(new) <= _FEW
                else await asyncio.to_thread(self._weighed, new, vectors)
            )
            for unit, *row in zip(new, vectors, *weighed, strict=True):
                known[unit] = self._windows[unit] = _Window(*row)
            while len(self._windows) > CACHED_WINDOWS:
                self._windows.popitem(last=False)
        return known

    def _weighed(self, units: list[str], vectors: Floats) -> tuple[Floats, Floats]:
        """Return (n, 15) logits of units from their words alone, and in all."""
        words: Floats = np.stack([self._network.from_words(unit) for unit in units])
        return words, self._network.from_vectors(vectors) + words

    def _scores(self, logits: Floats, direction: Direction) -> Scores:
        """Return the highest score of each category in (n, 15) logits; the gravest row gives the levels.

        Nobody but a reader of the index asks anything of a passage, so any order to a model is an injection there.
        """
        scores = dict(zip(SCORED, self._network.scores(logits).max(axis=0).tolist(), strict=True))
        if direction == "passage":
            scores["injection"] = max(scores["injection"], scores["orders"])
        rows = self._network.levels(logits)
        gravest = rows[int(np.argmax(rows @ np.arange(len(LABELS))))]
        levels = dict(zip(LABELS, gravest.tolist(), strict=True))
        return Scores({name: scores[name] for name in TOLD}, levels, model=self.model, version=self.version)


def _units(text: str, before: str | None, earlier: str) -> list[str]:
    """Return what is judged of a text, each as scorers read it.

    Args:
        before: what stands before the text; None where each sentence is judged by itself.
        earlier: the message before; the beginning of the text is judged behind its end as well.
    """
    windows = sentence_windows(text) if before is None else overlapping_windows(text, before)
    if earlier and windows:
        windows.append(overlapping_windows(text, earlier + " ")[0])
    return [part for window in windows for part in _parts(normalised(window)) if _says(part)]


def _says(part: str) -> bool:
    """Whether there is more than ASCII signs: those alone say nothing, and a vector of them is chance."""
    return not part.isascii() or any(map(str.isalnum, part))


def _parts(window: str) -> list[str]:
    """Return a window, or where an encoder would not read all of it halves of it, each with the end of the one before.

    A window of signs and single letters has more tokens than one of words.
    """
    if len(window) <= min(_TOKENS_READ, MAX_WORDS):
        return [window]
    tokens = sum(1 + len(piece) // 4 for piece in _PIECE.findall(window))
    if tokens <= _TOKENS_READ and len(_WORD.findall(window)) <= MAX_WORDS:
        return [window]
    middle = len(window) // 2
    return [*_parts(window[:middle].strip()), *_parts(window[middle - OVERLAP :].strip())]
