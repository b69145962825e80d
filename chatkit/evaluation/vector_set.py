"""The vectors of `bench retrieval`: real ones as far as they go, then synthetic ones made from them; and questions.

All of it is written to a folder once and found again there by what it was made of.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit import wiring
from chatkit.errors import InvalidRequest
from chatkit.evaluation.passages import read_passages
from chatkit.settings import Settings

Array = NDArray[np.float32]

# Texts that are encoded between two reports of progress.
_ENCODED = 512
# Synthetic vectors that are made at a time.
_SLICE = 50_000
# Of a synthetic vector: neighbours from which one is chosen, and the bounds of the share that is the first vector's.
_NEIGHBOURS = 32
_LEAST, _MOST = 0.4, 0.8
# How far at most a difference of two real vectors moves it.
_MOVED = 0.4
SYNTHETIC = (
    f"a mix of a real vector ({_LEAST} to {_MOST}) and one of its {_NEIGHBOURS} nearest, moved by 0 to {_MOVED} times "
    "the difference of two others"
)


@dataclass(frozen=True, slots=True)
class VectorSet:
    """What is searched and what is asked.

    Attributes:
        file: float32 rows of `dim` numbers, of length one.
        questions: (n, dim); none of them is in the file.
        real: how many of the rows are of real texts; they come first.
        texts: of the real rows, from the first on.
        questions_are: what they were made of, in words.
    """

    file: Path
    dim: int
    count: int
    real: int
    questions: Array
    texts: Sequence[str]
    questions_are: str
    key: str

    def rows(self) -> Array:
        """Return all rows, (count, dim), mapped."""
        return np.memmap(self.file, dtype=np.float32, mode="r", shape=(self.count, self.dim))


def make_set(
    settings: Settings, texts: Sequence[Path], count: int, questions: int, folder: Path, tell: Callable[[str], None]
) -> VectorSet:
    """Return `count` vectors and at most `questions` questions, made in `folder` where they are not there.

    Args:
        settings: the encoder's.
        texts: BEIR folders, `corpus.jsonl` files, or folders of text; the project's documentation where there is none.
        count: vectors in all.
        questions: how many; those of `queries.jsonl` beside a corpus, else passages that are held out.
        folder: where the files go.
        tell: is told of progress.

    Raises:
        InvalidRequest: there are too few texts.
        NotFound: a path does not exist.
    """
    named: Sequence[Path | None] = texts or [None]
    passages = list(dict.fromkeys(text for path in named for text in read_passages(path, 10**9)))
    asked = list(dict.fromkeys(text for path in texts for text in _questions(path)))
    if len(passages) < 2 * _NEIGHBOURS:
        raise InvalidRequest(f"--texts holds {len(passages)} passages, expected at least {2 * _NEIGHBOURS}")
    rng = np.random.default_rng(0)
    asked = [asked[place] for place in rng.permutation(len(asked))[:questions]]
    passages = [passages[place] for place in rng.permutation(len(passages))]
    real = _encoded(settings, passages, folder / "real", tell)
    if asked:
        wanted, told = _encoded(settings, asked, folder / "questions", tell), "questions of the texts"
    else:
        held = min(questions, len(real) // 2)
        wanted, real, passages, told = real[:held], real[held:], passages[held:], "passages that are held out"
    real, passages = real[:count], passages[:count]
    key = hashlib.sha256(f"{SYNTHETIC} {count}".encode() + real.tobytes()).hexdigest()[:16]
    file = folder / f"vectors-{count}-{key}.f32"
    if not file.exists():
        _write(real, count, file, tell)
    return VectorSet(file, real.shape[1], count, len(real), wanted, passages, told, key)


def _questions(path: Path) -> Iterator[str]:
    for name in ("queries.jsonl", "queries.jsonl.gz"):
        file = path / name
        if file.is_file():
            opened: Any = gzip.open if file.suffix == ".gz" else open
            with opened(file, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        yield str(json.loads(line)["text"])
                    except (ValueError, KeyError, TypeError):
                        raise InvalidRequest(f"line {number} of {str(file)!r} has no text") from None


def _encoded(settings: Settings, texts: Sequence[str], file: Path, tell: Callable[[str], None]) -> Array:
    """Return the vectors of texts; kept in a file that is named after both the texts and the encoder."""
    encoder = wiring.open_encoder(settings)
    try:
        named = hashlib.sha256("\0".join([encoder.fingerprint, *texts]).encode()).hexdigest()[:16]
        kept = file.with_name(f"{file.name}-{named}.npy")
        if kept.exists():
            found: Array = np.load(kept, allow_pickle=False)
            return found
        parts = []
        for start in range(0, len(texts), _ENCODED):
            parts.append(encoder.encode_now(texts[start : start + _ENCODED]))
            tell(f"encoded {min(start + _ENCODED, len(texts))} of {len(texts)} {file.name}")
    finally:
        encoder.close()
    vectors = np.concatenate(parts)
    beside = kept.with_suffix(".part.npy")
    np.save(beside, vectors)
    beside.replace(kept)
    return vectors


def _write(real: Array, count: int, file: Path, tell: Callable[[str], None]) -> None:
    rng = np.random.default_rng(1)
    beside = file.with_suffix(".part")
    nearest = _nearest(real) if count > len(real) else np.empty((0, 0), np.int64)
    with beside.open("wb") as stream:
        stream.write(real.tobytes())
        for start in range(len(real), count, _SLICE):
            stream.write(mixed(real, nearest, min(_SLICE, count - start), rng).tobytes())
            tell(f"made {min(start + _SLICE, count)} of {count} vectors")
    beside.replace(file)


def _nearest(real: Array) -> NDArray[np.int64]:
    """Return the rows of the nearest others of each vector, (n, at most 32)."""
    k = min(_NEIGHBOURS, len(real) - 1)
    found = []
    for start in range(0, len(real), 1024):
        scores = real[start : start + 1024] @ real.T
        scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -2
        found.append(np.argpartition(-scores, k - 1, axis=1)[:, :k])
    return np.concatenate(found)


def mixed(real: Array, nearest: NDArray[np.int64], count: int, rng: np.random.Generator) -> Array:
    """Return (count, dim) vectors of length one that lie among the real ones as these lie among one another.

    A point between two neighbours alone would be an average, with less in it than a text has; the difference of two
    other real vectors puts it back, in the directions in which texts do differ.
    """
    first, plus, minus = rng.integers(len(real), size=(3, count))
    second = nearest[first, rng.integers(nearest.shape[1], size=count)]
    share = rng.uniform(_LEAST, _MOST, (count, 1)).astype(np.float32)
    moved = rng.uniform(0, _MOVED, (count, 1)).astype(np.float32)
    made = real[first] * share + real[second] * (1 - share) + moved * (real[plus] - real[minus])
    return np.ascontiguousarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)
