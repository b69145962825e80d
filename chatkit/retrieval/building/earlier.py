"""The live version as a source of chunks: what has not changed since is taken over, not read and cut again."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatkit.retrieval import writing
from chatkit.retrieval.building.spool import Staged
from chatkit.retrieval.chunking import Chunk
from chatkit.retrieval.entries import SourceEntry
from chatkit.retrieval.manifest import PASSAGES
from chatkit.retrieval.writing import SourceRow

_COLUMNS = ("source", "document", "title", "section", "page", "start", "end", "text")


class LiveChunks:
    """The chunks of a version by source; implements `cutting.Earlier`.

    A source of which a chunk was dropped as a duplicate, or a part was skipped, is not taken over: what it lost may be
    wanted now.
    """

    def __init__(self, folder: Path) -> None:
        """Read which sources the version has.

        Raises:
            BrokenIndex: a file of it cannot be read.
        """
        import pyarrow.parquet

        rows = writing.read_sources(folder)
        self._rows = {row.source: row for row in rows if row.digest and row.whole and not row.dropped and row.chunks}
        self._table = pyarrow.parquet.ParquetFile(str(folder / PASSAGES))
        sizes = (self._table.metadata.row_group(number).num_rows for number in range(self._table.num_row_groups))
        self._bounds = [0, *itertools.accumulate(sizes)]
        self._group: tuple[int, Any] | None = None

    def row_of(self, entry: SourceEntry) -> SourceRow | None:
        """Return the row of an entry that has the same content as then and lost no chunk; None for any other."""
        row = self._rows.get(entry.source)
        return row if row is not None and entry.digest == row.digest else None

    def chunks_of(self, row: SourceRow) -> Iterator[list[Staged]]:
        """Yield its chunks in order, those of one row group at a time."""
        number = place = 0
        document: str | None = None
        for columns in self._read(row.first_row, row.first_row + row.chunks):
            staged = []
            for values in zip(*(columns[name] for name in _COLUMNS), strict=True):
                chunk = Chunk(*values)
                if chunk.document == document:
                    place += 1
                else:
                    number, place, document = number + (document is not None), 0, chunk.document
                staged.append(Staged(chunk, number, place))
            yield staged

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    def _read(self, first: int, last: int) -> Iterator[dict[str, list[Any]]]:
        for number, (start, end) in enumerate(itertools.pairwise(self._bounds)):
            if start < last and end > first:
                if self._group is None or self._group[0] != number:
                    self._group = number, self._table.read_row_group(number, columns=list(_COLUMNS))
                begin = max(first - start, 0)
                part = self._group[1].slice(begin, min(last, end) - start - begin)
                yield {name: part.column(name).to_pylist() for name in _COLUMNS}
