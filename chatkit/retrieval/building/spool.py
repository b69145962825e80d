"""Chunks on the disk between two stages of a build: a Parquet file that is written and read in bounded pieces."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.chunking import Chunk

# Chunks of one row group: some 3 MB of text.
_GROUP = 4096
_TEXTS = ("source", "document", "title", "section", "text")
_NUMBERS = ("page", "start", "end", "number", "place")
_VECTOR = "vector"


@dataclass(frozen=True, slots=True)
class Staged:
    """A chunk and its place in the order of the index, which is source, then document, then place.

    Attributes:
        number: of the document among those of its source, from 0.
        place: of the chunk in its document, from 0.
    """

    chunk: Chunk
    number: int
    place: int

    @property
    def order(self) -> tuple[str, int, int]:
        """What the chunks of an index are sorted by."""
        return self.chunk.source, self.number, self.place


class SpoolWriter:
    """Writes chunks, with vectors where `dim` is given; the file is good once `close` returned."""

    def __init__(self, file: Path, dim: int = 0) -> None:
        import pyarrow.parquet

        self._dim = dim
        self._schema = _schema(dim)
        self._writer = pyarrow.parquet.ParquetWriter(str(file), self._schema, compression="lz4")
        self._waiting: list[Staged] = []
        self.rows = 0

    def add(self, chunks: Sequence[Staged]) -> None:
        """Add chunks that come after all before them.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self.rows += len(chunks)
        self._waiting += chunks
        while len(self._waiting) >= _GROUP:
            self._write(self._waiting[:_GROUP])
            del self._waiting[:_GROUP]

    def add_with_vectors(self, chunks: Sequence[Staged], vectors: NDArray[np.float32]) -> None:
        """Add chunks with their (n, dim) vectors, as one row group."""
        self.rows += len(chunks)
        self._write(chunks, vectors)

    def close(self) -> None:
        """Write what waits and the footer."""
        if self._waiting:
            self._write(self._waiting)
        self._writer.close()

    def abandon(self) -> None:
        """Close the file as it is: it is of no use."""
        self._writer.close()

    def _write(self, chunks: Sequence[Staged], vectors: NDArray[np.float32] | None = None) -> None:
        import pyarrow

        columns: dict[str, Any] = {name: [getattr(entry.chunk, name) for entry in chunks] for name in _TEXTS}
        columns |= {name: [getattr(entry.chunk, name) for entry in chunks] for name in _NUMBERS[:3]}
        columns |= {name: [getattr(entry, name) for entry in chunks] for name in _NUMBERS[3:]}
        if vectors is not None:
            flat = pyarrow.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
            columns[_VECTOR] = pyarrow.FixedSizeListArray.from_arrays(flat, self._dim)
        self._writer.write_table(pyarrow.table(columns, schema=self._schema))


def read(file: Path, *, batch: int = _GROUP) -> Iterator[list[Staged]]:
    """Yield the chunks of a spool in order, at most `batch` at a time."""
    for staged, _ in _batches(file, batch, [*_TEXTS, *_NUMBERS]):
        yield staged


def read_with_vectors(file: Path, dim: int, *, batch: int = 512) -> Iterator[tuple[list[Staged], NDArray[np.float32]]]:
    """Yield the chunks of a spool with their (n, dim) vectors."""
    for staged, rows in _batches(file, batch, [*_TEXTS, *_NUMBERS, _VECTOR]):
        flat = rows.column(_VECTOR).flatten().to_numpy(zero_copy_only=False)
        yield staged, np.asarray(flat, dtype=np.float32).reshape(-1, dim)


def _batches(file: Path, batch: int, columns: list[str]) -> Iterator[tuple[list[Staged], Any]]:
    import pyarrow.parquet

    parts = operator.itemgetter(*_TEXTS, *_NUMBERS)
    with pyarrow.parquet.ParquetFile(str(file)) as table:
        for rows in table.iter_batches(batch_size=batch, columns=columns):
            lists = parts({name: rows.column(name).to_pylist() for name in (*_TEXTS, *_NUMBERS)})
            yield [_staged(row) for row in zip(*lists, strict=True)], rows


def _staged(row: tuple[Any, ...]) -> Staged:
    source, document, title, section, text, page, start, end, number, place = row
    return Staged(Chunk(source, document, title, section, page, start, end, text), number, place)


def _schema(dim: int) -> Any:
    import pyarrow

    fields = [(name, pyarrow.string()) for name in _TEXTS] + [(name, pyarrow.int64()) for name in _NUMBERS]
    if dim:
        fields.append((_VECTOR, pyarrow.list_(pyarrow.float32(), dim)))
    return pyarrow.schema(fields)
