"""The second stage of a build: the chunks that have no vector yet, in batches, each on the disk before the next."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.building import spool
from chatkit.retrieval.building.cache import VectorCache
from chatkit.retrieval.building.keys import Keys, text_keys
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.building.spool import Staged

# Chunks embedded between two writes to the cache: what a kill may cost, and how soon Ctrl-C is heard.
BATCH = 256
# Chunks that are looked up at a time when vectors are read back.
_LOOKED_UP = 4096

Vectors = NDArray[np.float32]


class IndexingEncoder(Protocol):
    """What a build needs of an encoder; see `protocols.PassageEncoder`."""

    @property
    def name(self) -> str:
        """What callers call it."""
        ...

    @property
    def dim(self) -> int:
        """Length of one vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names everything that decides the vectors."""
        ...

    @property
    def pooling(self) -> str:
        """How one vector is made of the tokens'."""
        ...

    @property
    def normalised(self) -> bool:
        """Whether every vector has length one."""
        ...

    @property
    def metric(self) -> str:
        """What two vectors are compared by: "cosine" or "ip"."""
        ...

    @property
    def query_prefix(self) -> str:
        """What the model expects before a query."""
        ...

    @property
    def passage_prefix(self) -> str:
        """What the model expects before a passage."""
        ...

    def count_tokens_of(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, special tokens included."""
        ...

    def encode_now(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 vectors."""
        ...


class Embedding(Protocol):
    """Where texts become vectors: in this process or on other machines."""

    def run(self, batches: Iterator[tuple[Keys, list[str]]]) -> Iterator[tuple[Keys, Vectors]]:
        """Yield the keys of each batch with their (n, dim) vectors, in any order of batches."""
        ...


class InProcess:
    """Embeds with an encoder of this process, one batch after the other; implements `Embedding`."""

    def __init__(self, encoder: IndexingEncoder) -> None:
        self._encoder = encoder

    def run(self, batches: Iterator[tuple[Keys, list[str]]]) -> Iterator[tuple[Keys, Vectors]]:
        """Yield each batch as soon as it is encoded."""
        for keys, texts in batches:
            yield keys, self._encoder.encode_now(texts)


def embed_missing(
    file: Path,
    total: int,
    cache: VectorCache,
    encoder: IndexingEncoder,
    embedding: Embedding,
    meter: Meter,
    *,
    batch: int = BATCH,
) -> int:
    """Embed the chunks of a spool whose vectors are not in the cache; return how many.

    Raises:
        OSError: the cache cannot be written; what was embedded before is kept.
    """
    passed = _Passed()
    embedded = 0
    for keys, vectors in embedding.run(_missing(file, cache, encoder.passage_prefix, batch, passed)):
        cache.append(keys, _unit(vectors, encoder))
        embedded += len(keys)
        meter.chunks(min(passed.there + embedded, total), total, embedded)
    if not embedded:
        meter.chunks(total, total, 0)
    return embedded


class _Passed:
    """Chunks that needed no embedding so far."""

    there = 0


def _missing(
    file: Path, cache: VectorCache, prefix: str, batch: int, passed: _Passed
) -> Iterator[tuple[Keys, list[str]]]:
    """Yield full batches of texts that the cache does not have, each text once."""
    waiting: dict[bytes, tuple[Keys, str]] = {}
    for chunks in spool.read(file):
        texts = embedded_texts(chunks, prefix)
        keys = text_keys(texts)
        unknown = np.flatnonzero(cache.find(keys) < 0).tolist()
        passed.there += len(texts) - len(unknown)
        sent: set[bytes] = set()
        for row in unknown:
            key = keys[row].tobytes()
            if key in waiting or key in sent:
                passed.there += 1
                continue
            waiting[key] = keys[row], texts[row]
            if len(waiting) == batch:
                yield _batch(waiting)
                sent |= waiting.keys()
                waiting = {}
    if waiting:
        yield _batch(waiting)


def _batch(waiting: dict[bytes, tuple[Keys, str]]) -> tuple[Keys, list[str]]:
    return np.stack([keys for keys, _ in waiting.values()]), [text for _, text in waiting.values()]


def with_vectors(file: Path, cache: VectorCache, prefix: str) -> Iterator[tuple[list[Staged], Vectors]]:
    """Yield the chunks of a spool in order with their (n, dim) vectors out of the cache.

    Raises:
        LookupError: one has none; everything has to be embedded first.
    """
    for chunks in spool.read(file, batch=_LOOKED_UP):
        records = cache.find(text_keys(embedded_texts(chunks, prefix)))
        if (records < 0).any():
            raise LookupError(f"a chunk of {chunks[int(np.argmax(records < 0))].chunk.source!r} has no vector")
        yield chunks, cache.vectors(records)


def embedded_texts(chunks: Sequence[Staged], prefix: str) -> list[str]:
    """Return what the encoder reads of chunks."""
    return [prefix + entry.chunk.embedded for entry in chunks]


def _unit(vectors: Vectors, encoder: IndexingEncoder) -> Vectors:
    """Return vectors of length one where they are compared by their cosine."""
    if encoder.metric != "cosine" or encoder.normalised:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, 1e-12)
    return unit
