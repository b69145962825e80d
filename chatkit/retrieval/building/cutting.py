"""Sources to staged chunks: every document read, cut and compared, unless an earlier version has its chunks."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from chatkit.retrieval.apart import Reader
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.building.spool import Staged
from chatkit.retrieval.building.staging import Stage
from chatkit.retrieval.chunking import Chunk, Chunking, CountTokens, cut
from chatkit.retrieval.document import Document, Unreadable
from chatkit.retrieval.entries import Skipped, SourceEntry
from chatkit.retrieval.gathering import gather
from chatkit.retrieval.writing import SourceRow

# With fewer sources than this for each shard, the shards share out documents, for which all of them read everything.
_SOURCES_A_SHARD = 16


@dataclass(frozen=True, slots=True)
class Sources:
    """What a build reads: entries in the order of the index, by name, and what cannot even be opened.

    Attributes:
        other_kinds: what is told of folders; another file that is not read does not make them others.
    """

    entries: tuple[SourceEntry, ...]
    skipped: tuple[Skipped, ...]
    other_kinds: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work is done here: shard `number` of `of`, from 1; 1 of 1 is all of it."""

    number: int = 1
    of: int = 1

    def split(self, entries: Sequence[SourceEntry]) -> tuple[list[SourceEntry], Callable[[str], bool]]:
        """Return the entries that this shard reads and whether it takes a document, by its name.

        Every shard comes to the same division from the same entries: by source where there are many, else by document.
        """
        if self.of == 1:
            return list(entries), lambda _: True
        if len(entries) >= self.of * _SOURCES_A_SHARD:
            return [entry for entry in entries if self._is_own(entry.source)], lambda _: True
        return list(entries), self._is_own

    def _is_own(self, name: str) -> bool:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1


class Earlier(Protocol):
    """An earlier version whose chunks may be taken over."""

    def row_of(self, entry: SourceEntry) -> SourceRow | None:
        """Return the row of an entry that has the same content as then and lost no chunk; None for any other."""
        ...

    def chunks_of(self, row: SourceRow) -> Iterator[list[Staged]]:
        """Yield its chunks in order, some at a time."""
        ...


def find(sources: Sequence[str | Path], entries: Sequence[SourceEntry], meter: Meter) -> Sources:
    """Name every source: paths, folders and patterns are looked up, entries are taken as they are.

    Raises:
        InvalidRequest: a path without wildcards does not exist.
    """
    gathered = gather(sources, tell=meter.reading)
    found: list[SourceEntry] = [*gathered.files, *entries]
    return Sources(tuple(sorted(found, key=lambda entry: entry.source)), gathered.skipped, gathered.other_kinds)


def digest_of(rows: Sequence[SourceRow]) -> str:
    """Return a hex digest of what was to be read: names and contents; empty where one is known only after reading."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: (row.source, row.reason)):
        if row.part:
            continue
        if not row.digest:
            return ""
        digest.update(f"{row.source}\0{row.digest}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def planned_rows(sources: Sources) -> list[SourceRow]:
    """Return a row for each source before any is read; one that cannot be opened counts by its reason."""
    rows = [SourceRow(entry.source, entry.digest) for entry in sources.entries]
    rows += (
        SourceRow(entry.source, hashlib.sha256(entry.reason.encode()).hexdigest(), reason=entry.reason)
        for entry in sources.skipped
    )
    rows += (SourceRow(entry.source, "", reason=entry.reason, part=True) for entry in sources.other_kinds)
    return rows


def cut_all(
    sources: Sources,
    stage: Stage,
    chunking: Chunking,
    count: CountTokens,
    meter: Meter,
    *,
    share: Share,
    earlier: Earlier | None = None,
) -> None:
    """Stage every chunk of this share; what cannot be read gets a row with its reason.

    Args:
        sources: in the order of the index.
        stage: takes the chunks.
        chunking: how they are cut.
        count: tokens as the encoder counts them.
        meter: told after every source.
        share: of the sources or documents.
        earlier: takes the place of reading where it can.
    """
    entries, takes = share.split(sources.entries)
    skipped = len(sources.skipped) + len(sources.other_kinds)
    with Reader() as reader:
        cutter = _Cutter(reader, stage, chunking, count, takes, earlier)
        for done, entry in enumerate(entries, start=1):
            skipped += cutter.cut(entry)
            meter.cutting(done, len(entries), stage.cut, skipped)
    for row in planned_rows(sources):
        if row.reason:
            row.whole = False
            stage.rows.append(row)


class _Cutter:
    def __init__(
        self,
        reader: Reader,
        stage: Stage,
        chunking: Chunking,
        count: CountTokens,
        takes: Callable[[str], bool],
        earlier: Earlier | None,
    ) -> None:
        self._reader = reader
        self._stage = stage
        self._chunking = chunking
        self._count = count
        self._takes = takes
        self._earlier = earlier

    def cut(self, entry: SourceEntry) -> int:
        """Stage one source; return how many things in it were skipped."""
        row = self._stage.begin(entry.source, entry.digest)
        before = self._earlier.row_of(entry) if self._earlier is not None else None
        if before is not None and self._earlier is not None:
            row.documents = before.documents
            for chunks in self._earlier.chunks_of(before):
                self._stage.staged(chunks)
            return 0
        left_out = len(self._reader.left_out)
        try:
            self._read(entry, row)
        except Unreadable as error:
            row.reason = str(error)
        if entry.source in self._reader.disturbed:
            row.digest = ""  # unknown: the next build reads it again
        parts = list(self._reader.left_out[left_out:])
        row.whole = not row.reason and not parts
        for part in parts:
            self._stage.rows.append(SourceRow(part.source, "", whole=False, reason=part.reason, part=True))
        return len(parts) + bool(row.reason)

    def _read(self, entry: SourceEntry, row: SourceRow) -> None:
        found = False
        for number, document in enumerate(_told_apart(entry.documents(self._reader))):
            if not self._takes(document.source):
                found = True
                continue
            chunks = self._cut(document, entry)
            found = found or bool(chunks)
            self._stage.document(number, chunks)
        if not found:
            raise Unreadable("has headings only, nothing to retrieve")

    def _cut(self, document: Document, entry: SourceEntry) -> list[Chunk]:
        return list(cut(document, self._chunking, self._count, source=entry.source))


def _told_apart(documents: Iterator[Document]) -> Iterator[Document]:
    """Yield documents, with a number for one that is named as the one before it: `rows.jsonl#7`, `rows.jsonl#7-2`.

    What follows under one name would count as one document, whose passages are read together.
    """
    name, times = "", 0
    for document in documents:
        times = times + 1 if document.source == name else 1
        name = document.source
        yield document if times == 1 else replace(document, source=f"{name}-{times}")
