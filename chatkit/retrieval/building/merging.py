"""All the shards of an index back to one: their vectors into the cache, their chunks into the order of one process."""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from chatkit.errors import BadIndex
from chatkit.retrieval.building import spool
from chatkit.retrieval.building.cache import VectorCache
from chatkit.retrieval.building.embedding import embedded_texts
from chatkit.retrieval.building.keys import text_keys
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.building.shards import CHUNKS, FILE, Shard
from chatkit.retrieval.building.spool import Staged
from chatkit.retrieval.building.staging import Stage
from chatkit.retrieval.writing import SourceRow

# Vectors that are taken over at a time, and chunks.
_GROUP = 4096
_TAKEN = 512


def open_all(folders: Sequence[Path]) -> list[Shard]:
    """Open the shards in folders: each is a shard, or holds some.

    Raises:
        BadIndex: they are not all the shards of one index, each once; the message says which are missing.
        BrokenIndex: one is damaged.
    """
    found = []
    for folder in folders:
        inside = sorted(entry.parent for entry in folder.glob(f"shard-*/{FILE}"))
        if (folder / FILE).is_file():
            inside.append(folder)
        if not inside:
            raise BadIndex(f"there is no shard in {str(folder)!r}, expected a folder that `--shard i/n --out` wrote")
        found += inside
    shards = sorted((Shard.open(folder) for folder in dict.fromkeys(found)), key=lambda shard: shard.number)
    first = shards[0]
    for shard in shards[1:]:
        if (shard.plan, shard.of) != (first.plan, first.of):
            raise BadIndex(
                f"{str(shard.folder)!r} and {str(first.folder)!r} are not of one index: they were made with another "
                f"encoder, chunking, release or number of shards; make the odd one again"
            )
    numbers = [shard.number for shard in shards]
    if numbers != list(range(1, first.of + 1)):
        missing = sorted(set(range(1, first.of + 1)) - set(numbers))
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        what = f"is missing {missing[:10]}" if missing else f"has {twice[:10]} more than once"
        raise BadIndex(f"an index of {first.of} shards {what}; name the folders of all shards, each once")
    return shards


def import_vectors(shards: Sequence[Shard], cache: VectorCache, prefix: str, meter: Meter) -> None:
    """Put the vectors of shards into the cache, from which the index is written.

    Raises:
        OSError: the cache cannot be written.
    """
    total = sum(shard.passages for shard in shards)
    done = 0
    meter.begin("read")
    for shard in shards:
        for chunks, vectors in spool.read_with_vectors(
            shard.folder / CHUNKS, shard.plan["encoder"]["dim"], batch=_GROUP
        ):
            keys = text_keys(embedded_texts(chunks, prefix))
            new = cache.find(keys) < 0
            cache.append(keys[new], vectors[new])
            done += len(chunks)
            meter.chunks(done, total)


def stage_merged(shards: Sequence[Shard], stage: Stage, meter: Meter) -> None:
    """Stage the chunks of all shards in the order in which one process would have met them.

    Raises:
        BadIndex: two shards have the same document.
    """
    rows = rows_of(shards)
    groups = itertools.groupby(_in_order(shards), key=lambda entry: entry.chunk.source)
    following = next(groups, None)
    stage.count_dropped(sum(shard.duplicates for shard in shards))
    for done, row in enumerate(rows, start=1):
        own = stage.begin(row.source, row.digest)
        own.documents, own.dropped, own.whole, own.reason = row.documents, row.dropped, row.whole, row.reason
        if following is not None and following[0] == row.source:
            while chunks := list(itertools.islice(following[1], _TAKEN)):
                stage.staged(chunks)
            following = next(groups, None)
        meter.cutting(done, len(rows), stage.cut, 0)
    stage.rows += _parts(shards)


def _in_order(shards: Sequence[Shard]) -> Iterator[Staged]:
    tagged = (zip(shard.chunks(), itertools.repeat(shard.number), strict=False) for shard in shards)
    last: tuple[tuple[str, int], int] | None = None
    for entry, shard in heapq.merge(*tagged, key=lambda pair: pair[0].order):
        document = entry.order[:2]
        if last is not None and last[0] == document and last[1] != shard:
            raise BadIndex(
                f"shards {last[1]} and {shard} both have the document {entry.chunk.document!r} of "
                f"{entry.chunk.source!r}; with --already-split a source has to be in one shard only: make them again"
            )
        last = document, shard
        yield entry


def rows_of(shards: Sequence[Shard]) -> list[SourceRow]:
    """Return one row for each source that any shard read, by name."""
    merged: dict[str, SourceRow] = {}
    for row in itertools.chain.from_iterable(shard.rows() for shard in shards):
        if row.part:
            continue
        whole = merged.setdefault(row.source, SourceRow(row.source, row.digest))
        if not row.digest or not whole.digest:
            whole.digest = ""  # a shard lost something of it to a fault that may pass, or it is never known
        elif whole.digest != row.digest:
            raise BadIndex(
                f"two shards read different things under the name {row.source!r}; give every source one name, and make "
                f"those shards again where it changed between"
            )
        whole.documents += row.documents
        whole.dropped += row.dropped
        whole.whole = whole.whole and row.whole
        whole.reason = whole.reason or row.reason
    return sorted(merged.values(), key=lambda row: row.source)


def _parts(shards: Sequence[Shard]) -> list[SourceRow]:
    parts: dict[tuple[str, str], SourceRow] = {}
    for row in itertools.chain.from_iterable(shard.rows() for shard in shards):
        if row.part:
            parts.setdefault((row.source, row.reason), row)
    return [parts[key] for key in sorted(parts)]
