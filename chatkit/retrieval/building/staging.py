"""The first stage of a build: chunks in the order of the index, those that are there already left out, to the disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatkit.retrieval.building.keys import Seen, keys_of
from chatkit.retrieval.building.near import NearDuplicates
from chatkit.retrieval.building.spool import SpoolWriter, Staged
from chatkit.retrieval.chunking import Chunk, Chunking
from chatkit.retrieval.writing import SourceRow

# Chunks that are compared and written at a time.
_TOGETHER = 512


@dataclass(frozen=True, slots=True)
class Counts:
    """What was staged; without the duplicates that were dropped."""

    documents: int
    passages: int
    duplicates: int
    near_duplicates: int


class Stage:
    """Takes the documents of one source after the other; `rows` say what became of each source."""

    def __init__(self, file: Path, chunking: Chunking, *, near: bool = True) -> None:
        """Begin the spool `file`.

        Args:
            file: written anew.
            chunking: whether duplicates are dropped.
            near: False leaves near duplicates in for another stage to drop, which sees more of the corpus.
        """
        self.rows: list[SourceRow] = []
        self._spool = SpoolWriter(file)
        self._seen = Seen() if chunking.drop_duplicates else None
        self._near = NearDuplicates() if near and chunking.drop_near_duplicates else None
        self._buffer: list[tuple[SourceRow, Staged]] = []
        self._duplicates = 0
        self._near_duplicates = 0
        self.cut = 0

    def begin(self, source: str, digest: str) -> SourceRow:
        """Begin the next source in order; what is staged from here on is of it."""
        self.rows.append(SourceRow(source, digest))
        return self.rows[-1]

    def document(self, number: int, chunks: Sequence[Chunk]) -> None:
        """Take the chunks of document `number` of the current source, in order."""
        if chunks:
            self.rows[-1].documents += 1
            self.staged([Staged(chunk, number, place) for place, chunk in enumerate(chunks)])

    def staged(self, chunks: Sequence[Staged]) -> None:
        """Take chunks of the current source that have their places already."""
        row = self.rows[-1]
        self._buffer += [(row, entry) for entry in chunks]
        self.cut += len(chunks)
        if len(self._buffer) >= _TOGETHER:
            self._flush()

    def count_dropped(self, duplicates: int) -> None:
        """Count duplicates that were dropped before they came here."""
        self._duplicates += duplicates

    def finish(self) -> Counts:
        """Write what waits; the spool is good when this returns."""
        self._flush()
        self._spool.close()
        documents = sum(row.documents for row in self.rows)
        return Counts(documents, self._spool.rows, self._duplicates, self._near_duplicates)

    def abandon(self) -> None:
        """Close the file as it is."""
        self._spool.abandon()

    def _flush(self) -> None:
        fresh = self._buffer
        self._buffer = []
        if not fresh:
            return
        if self._seen is not None:
            new = self._seen.add(keys_of(entry.chunk.sameness for _, entry in fresh))
            self._duplicates += new.count(False)
            fresh = self._kept(fresh, new)
        if self._near is not None:
            near = self._near.add([entry.chunk for _, entry in fresh])
            self._near_duplicates += near.count(True)
            fresh = self._kept(fresh, [not is_near for is_near in near])
        for place, (row, _) in enumerate(fresh):
            if not row.chunks:
                row.first_row = self._spool.rows + place
            row.chunks += 1
        self._spool.add([entry for _, entry in fresh])

    def _kept(self, entries: list[tuple[SourceRow, Staged]], keep: list[bool]) -> list[tuple[SourceRow, Staged]]:
        for (row, _), kept in zip(entries, keep, strict=True):
            row.dropped += not kept
        return [entry for entry, kept in zip(entries, keep, strict=True) if kept]
