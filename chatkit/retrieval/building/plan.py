"""What is asked of a build and what it says it did."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import chatkit
from chatkit.errors import BadIndex
from chatkit.retrieval.building.embedding import BATCH, IndexingEncoder
from chatkit.retrieval.chunking import CHUNKER, Chunking
from chatkit.retrieval.entries import Skipped
from chatkit.retrieval.risks import PassageScorer
from chatkit.retrieval.writing import SourceRow

# What decides chunks and vectors, as it may stand in JSON.
Plan = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an index is built, beside what it is built of.

    Attributes:
        chunking: how documents are cut and whether duplicates are dropped.
        vectors: kind of the Faiss index; chosen by the number of passages where empty.
        recall: share of the exact nearest neighbours that a search is to find, 0 to 1.
        keep: older versions that are kept beside the new one.
        batch: chunks embedded between two writes to the cache.
        scorer: scores the text of every passage, as moderation does; None leaves them without scores.
    """

    chunking: Chunking = field(default_factory=Chunking)
    vectors: str = ""
    recall: float = 0.98
    keep: int = 1
    batch: int = BATCH
    scorer: PassageScorer | None = None

    def with_chunking(self, options: Mapping[str, int] | None) -> "BuildOptions":
        """Return these options with another chunking, where one is given.

        Raises:
            ConfigError: an option of it is unknown or out of range.
        """
        return self if options is None else replace(self, chunking=Chunking.from_options(options))


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        up_to_date: sources and settings are those of the live version, nothing was built.
        embedded: chunks that the encoder ran on.
        duplicates: chunks left out because the index has their title, section and text already.
        near_duplicates: chunks left out that differ from one in the index in spelling or markup only.
        vectors: kind of the Faiss index.
    """

    name: str
    version: str
    folder: Path
    up_to_date: bool
    documents: int
    passages: int
    embedded: int
    duplicates: int
    near_duplicates: int
    vectors: str
    skipped: tuple[Skipped, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What the build of one shard did; near duplicates are found when the shards are merged."""

    folder: Path
    number: int
    of: int
    documents: int
    passages: int
    embedded: int
    duplicates: int
    skipped: tuple[Skipped, ...]
    seconds: float


def plan_of(encoder: IndexingEncoder, chunking: Chunking) -> Plan:
    """Return what decides chunks and vectors, but for the sources."""
    names = ("fingerprint", "name", "dim", "pooling", "normalised", "metric", "query_prefix", "passage_prefix")
    return {
        "encoder": {name: getattr(encoder, name) for name in names},
        "chunker": CHUNKER,
        "chunking": {name: int(value) for name, value in asdict(chunking).items()},
        "release": chatkit.__version__,
    }


def digest_of(plan: Plan, **more: Any) -> str:
    """Return a hex digest of a plan and what else decides the chunks."""
    return hashlib.sha256(json.dumps({**plan, **more}, sort_keys=True).encode()).hexdigest()


def skipped_of(rows: Sequence[SourceRow]) -> tuple[Skipped, ...]:
    """Return what is not in the index, by name."""
    return tuple(sorted((Skipped(row.source, row.reason) for row in rows if row.reason), key=lambda s: s.source))


@contextmanager
def told_of_the_disk(what: str, folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into one error that says what to do."""
    try:
        yield
    except OSError as error:
        raise BadIndex(
            f"{what} could not be written to {str(folder)!r} ({error.strerror or error}); "
            f"the version before it, if there was one, is untouched; free some space or set --home, then run again"
        ) from error
