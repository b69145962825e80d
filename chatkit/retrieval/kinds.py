"""The kinds of vector index, which one a corpus gets, and what Faiss calls it.

Sizes behind the choice are in docs/scale.md, recalls in benchmarks/README.md; `chatkit bench retrieval` measures both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatkit.errors import ConfigError

KINDS = ("flat", "sq8", "hnsw_sq8", "ivf_sq8", "ivf_rabitq")

# Vectors up to which each kind is chosen. Up to the first an exact search takes a millisecond or two and costs little
# memory; up to the second the same search over bytes is fast enough and nothing is built. A graph is the fastest there
# is, but it is built in memory, costs 68 % more than the bytes and takes ten minutes a million on two cores.
_MOST_FLAT = 50_000
_MOST_SQ8 = 150_000
_MOST_HNSW = 5_000_000
_MOST_IVF_SQ8 = 20_000_000
# One byte a dimension finds about 99 in 100 of the true neighbours: who asks for more gets exact ones.
_MOST_RECALL_OF_BYTES = 0.985

# Neighbours of each node of the graph. With 384 dimensions 656 bytes a vector.
_GRAPH = 32
# Candidates while the graph is built.
EF_CONSTRUCTION = 200
# Faiss wants 39 rows a list to train on.
TRAIN_ROWS_PER_LIST = 39
_MOST_LISTS = 65536
# What the sample that an index is trained on may take in memory. Bytes.
_MOST_SAMPLE = 2**30


@dataclass(frozen=True, slots=True)
class VectorKind:
    """How the vectors of one index are stored.

    Attributes:
        name: one of `KINDS`.
        factory: what `faiss.index_factory` makes it of.
        search: parameters of a search before they are tuned.
        train_rows: rows of a sample that is large enough; 0 where nothing is trained.
    """

    name: str
    factory: str
    search: Mapping[str, int] = field(default_factory=dict)
    train_rows: int = 0


def choose(count: int, dim: int, recall: float = 0.98, *, kind: str = "") -> VectorKind:
    """Return the kind for a corpus.

    Args:
        count: vectors that there will be, at least 1.
        dim: length of one.
        recall: share of the ten true neighbours that a search has to find, 0 to 1.
        kind: one of `KINDS` instead of the chosen one.

    Raises:
        ConfigError: for another kind or a recall out of range.
    """
    if kind and kind not in KINDS:
        raise ConfigError(f"the kind of vectors is {kind[:40]!r}, expected one of {', '.join(KINDS)}")
    if not 0 < recall <= 1:
        raise ConfigError(f"the recall is {recall!r}, expected a number above 0 and up to 1")
    name = kind or _by_size(count, recall)
    if name == "flat":
        return VectorKind(name, "Flat")
    if name == "sq8":
        return VectorKind(name, "SQ8", train_rows=_sample(count, dim, 65536))
    if name == "hnsw_sq8":
        return VectorKind(name, f"HNSW{_GRAPH},SQ8", {"ef": 64}, _sample(count, dim, 65536))
    lists = _lists(count, dim)
    coarse = f"IVF{lists}" if lists < 4096 else f"IVF{lists}_HNSW{_GRAPH}"
    rows = _sample(count, dim, lists * TRAIN_ROWS_PER_LIST * 2)
    if name == "ivf_sq8":
        return VectorKind(name, f"{coarse},SQ8", {"nprobe": min(lists, 64)}, rows)
    return VectorKind(name, f"{coarse},RaBitQ,Refine(SQ8)", {"nprobe": min(lists, 64), "k_factor": 10}, rows)


def _by_size(count: int, recall: float) -> str:
    if count <= _MOST_FLAT or recall > _MOST_RECALL_OF_BYTES:
        return "flat"
    steps = (("sq8", _MOST_SQ8), ("hnsw_sq8", _MOST_HNSW), ("ivf_sq8", _MOST_IVF_SQ8))
    return next((name for name, most in steps if count <= most), "ivf_rabitq")


def _lists(count: int, dim: int) -> int:
    """Return about four times the root of `count`, a power of two, and no more than a sample in memory can train."""
    wanted = min(4 * math.sqrt(count), count / TRAIN_ROWS_PER_LIST, _MOST_SAMPLE / (4 * dim * TRAIN_ROWS_PER_LIST))
    return int(min(_MOST_LISTS, 2 ** max(0, math.floor(math.log2(max(1.0, wanted))))))


def _sample(count: int, dim: int, wanted: int) -> int:
    return int(max(1, min(count, wanted, _MOST_SAMPLE // (4 * dim))))


def on_gpu(faiss: Any) -> bool:
    """Return whether this Faiss has GPUs to train on."""
    return hasattr(faiss, "StandardGpuResources") and int(faiss.get_num_gpus()) > 0
