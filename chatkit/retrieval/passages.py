"""The passages of an index: a Parquet table in small row groups that is never in memory whole, and its documents.

Row number = number of the vector = number in the lexical index. Rows are ordered by document, then by start.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import InvalidRequest
from chatkit.retrieval import globs
from chatkit.retrieval.manifest import FILE, PASSAGES, Manifest, broken
from chatkit.retrieval.risks import Risks
from chatkit.types import Passage

# One row a document: where its passages begin and what a filter asks of it.
DOCUMENTS = "documents.parquet"
FILTERS = ("source", "title", "document")

# A row group is what one hit reads: 0.5 MB of text in 1 to 2 ms. Smaller ones make the table of contents, which every
# worker holds in memory, larger than what they save.
_ROW_GROUP = 1024
_DOCUMENT_GROUP = 65536
# Decoded row groups that are kept, in bytes of all of them.
_CACHE_BYTES = 12 * 2**20
# Up to here a file is read into memory, where nobody can spoil it; of a larger one what is needed is read. Bytes.
HELD_UP_TO = 4 * 2**20
# Answers of `filter` that are kept.
_FILTERS_KEPT = 8
_FIELDS = {
    **dict.fromkeys(("id", "source", "document", "title", "section"), "string"),
    "page": "int32",
    **dict.fromkeys(("start", "end"), "int64"),
    "text": "string",
}
_DOCUMENT_FIELDS = {**dict.fromkeys(FILTERS, "string"), "row": "int64"}


class Row(Protocol):
    """What is stored of a chunk."""

    @property
    def id(self) -> str:
        """Stable across rebuilds."""
        ...

    @property
    def source(self) -> str:
        """Where the document came from."""
        ...

    @property
    def document(self) -> str:
        """Id of the document; chunks that follow one another with the same one are of one document."""
        ...

    @property
    def title(self) -> str:
        """Of the document."""
        ...

    @property
    def section(self) -> str:
        """Headings above it."""
        ...

    @property
    def page(self) -> int:
        """From 1; 0 where there are none."""
        ...

    @property
    def start(self) -> int:
        """Offset in the document."""
        ...

    @property
    def end(self) -> int:
        """Offset in the document."""
        ...

    @property
    def text(self) -> str:
        """The words themselves."""
        ...


class PassageWriter:
    """Writes the passages of a version in the order they come, a row group at a time."""

    def __init__(self, folder: Path) -> None:
        """Open both tables in `folder`.

        Raises:
            OSError: they cannot be written.
        """
        self._passages = Table(folder / PASSAGES, _FIELDS, _ROW_GROUP)
        self._documents = Table(folder / DOCUMENTS, _DOCUMENT_FIELDS, _DOCUMENT_GROUP)
        self._last: tuple[str, str] | None = None
        self._count = 0

    def __len__(self) -> int:
        """Return the passages so far."""
        return self._count

    def add(self, chunks: Iterable[Row]) -> None:
        """Append passages.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        for chunk in chunks:
            document = (chunk.source, chunk.document)
            if document != self._last:
                self._documents.add((chunk.source, chunk.title, chunk.document, self._count))
                self._last = document
            self._passages.add(tuple(getattr(chunk, name) for name in _FIELDS))
            self._count += 1

    def finish(self) -> list[Path]:
        """Write what is left, flush both to the disk and return them.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        return [self._passages.finish(), self._documents.finish()]

    def close(self) -> None:
        """Let go of the files, finished or not; a build that broke off calls this."""
        for table in (self._passages, self._documents):
            table.close()


class Table:
    """A Parquet file that is written by rows."""

    def __init__(self, file: Path, fields: Mapping[str, str], group: int) -> None:
        import pyarrow
        import pyarrow.parquet

        self._file = file
        self._group = group
        self._schema = pyarrow.schema(list(fields.items()))
        self._stream = file.open("wb")
        # Without statistics: nothing asks for them, and they are the larger part of the table of contents.
        self._writer = pyarrow.parquet.ParquetWriter(
            self._stream, self._schema, compression="zstd", write_statistics=False
        )
        self._rows: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """Append one row, its values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) == self._group:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        columns = zip(*self._rows, strict=True)
        arrays = [pyarrow.array(each, kind) for each, kind in zip(columns, self._schema.types, strict=True)]
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=self._group)
        self._rows = []

    def finish(self) -> Path:
        """Write what is left, flush it to the disk and return the file."""
        if self._rows:
            self._flush()
        self._writer.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return self._file

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if not self._stream.closed:
            try:
                self._writer.close()
            finally:
                self._stream.close()


class Passages:
    """The open passages of a version. Methods may be called from several threads."""

    def __init__(self, folder: Path, passages: Any, documents: Any, risks: Risks | None = None) -> None:
        """Take two open `ParquetFile`s, and the scores of the passages where they have any."""
        self._folder = folder
        self._table = passages
        self._documents = documents
        self._risks = risks
        meta = passages.metadata
        self._starts = np.cumsum([0, *(meta.row_group(n).num_rows for n in range(meta.num_row_groups))])
        self._document_rows: NDArray[np.int64] | None = None
        self._lock = threading.Lock()
        self._reads = 0
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._documents_lock = threading.Lock()  # a filter reads a whole column, which no other search waits for
        self._filters: OrderedDict[tuple[tuple[str, str], ...], NDArray[np.uint8]] = OrderedDict()

    @classmethod
    def open(cls, folder: Path, manifest: Manifest | None = None) -> "Passages":
        """Open the passages in `folder`.

        Raises:
            BrokenIndex: a file is missing, is no such table, or counts other passages than the manifest.
        """
        passages = open_table(folder / PASSAGES, _FIELDS)
        try:
            documents = open_table(folder / DOCUMENTS, _DOCUMENT_FIELDS)
        except Exception:
            passages.close(force=True)
            raise
        try:
            risks = None if manifest is None else Risks.open(folder, manifest)
        except Exception:
            passages.close(force=True)
            documents.close(force=True)
            raise
        opened = cls(folder, passages, documents, risks)
        if manifest is not None and len(opened) != manifest.passages:
            opened.close()
            raise broken(
                folder / FILE, f"counts {manifest.passages} passages, but {PASSAGES} holds {len(opened)} passages"
            )
        return opened

    def __len__(self) -> int:
        """Return the number of passages."""
        return int(self._starts[-1])

    def rows(self, rows: Sequence[int]) -> list[Passage]:
        """Return the passages of these row numbers, in this order.

        Raises:
            IndexError: there is no such row.
            BrokenIndex: the file cannot be read any more.
        """
        groups = [self._group_of(int(row)) for row in rows]
        reads = self._reads
        tables = {group: self._group(group) for group in dict.fromkeys(groups)}
        if self._reads != reads:
            _release()
        found = []
        for row, group in zip(rows, groups, strict=True):
            values = tables[group].slice(int(row) - int(self._starts[group]), 1).to_pylist()[0]
            found.append(Passage(**values, risks=() if self._risks is None else self._risks.of(int(row))))
        return found

    def forget_risks(self) -> None:
        """Hand out no scores any more, as of passages that were never scored."""
        self._risks = None

    def documents_of(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each row the number of its document; equal numbers are one document.

        Raises:
            BrokenIndex: the file cannot be read any more.
        """
        found = np.searchsorted(self._first_rows(), np.asarray(rows, dtype=np.int64), side="right") - 1
        return found.astype(np.int64)

    def filter(self, where: Mapping[str, str]) -> NDArray[np.int64]:
        """Return the rows, ascending, of documents that match every pattern.

        Args:
            where: `source`, `title` or `document` → a pattern in which `*` stands for any characters, `?` for one and
                `[ab]` for one of some. Case matters.

        Raises:
            InvalidRequest: for another name, or brackets that are no set of characters.
            BrokenIndex: the file cannot be read any more.
        """
        for name in where:
            if name not in FILTERS:
                raise InvalidRequest(f"a filter names {name[:40]!r}, expected {', '.join(map(repr, FILTERS))}")
        firsts = self._first_rows()
        mask = np.unpackbits(self._documents_within(where), count=len(firsts)).view(np.bool_)
        return np.flatnonzero(np.repeat(mask, np.diff(firsts, append=len(self))))

    def _documents_within(self, where: Mapping[str, str]) -> NDArray[np.uint8]:
        """Return a bit for each document, which is all that is kept of a filter: rows take 64 bits each."""
        key = tuple(sorted(where.items()))
        with self._documents_lock:
            if (kept := self._filters.get(key)) is not None:
                self._filters.move_to_end(key)
                return kept
        mask = np.ones(len(self._first_rows()), dtype=bool)
        for name, pattern in where.items():
            mask &= self._matching(name, pattern)
        bits = np.packbits(mask)
        with self._documents_lock:
            self._filters[key] = bits
            while len(self._filters) > _FILTERS_KEPT:
                self._filters.popitem(last=False)
        return bits

    def close(self) -> None:
        """Close both files; no call may be under way."""
        with self._lock, self._documents_lock:
            self._cache.clear()
            self._table.close(force=True)
            self._documents.close(force=True)

    def _group_of(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"there is no passage {row}, expected 0 to {len(self) - 1}")
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _group(self, group: int) -> Any:
        with self._lock:
            table = self._cache.pop(group, None)
            if table is None:
                table = self._read(PASSAGES, lambda: self._table.read_row_group(group, use_threads=False))
                self._reads += 1
            self._cache[group] = table
            while len(self._cache) > 1 and sum(each.nbytes for each in self._cache.values()) > _CACHE_BYTES:
                self._cache.popitem(last=False)
        return table

    def _first_rows(self) -> NDArray[np.int64]:
        with self._documents_lock:
            if self._document_rows is None:
                table = self._read(DOCUMENTS, lambda: self._documents.read(columns=["row"], use_threads=False))
                self._document_rows = table.column("row").to_numpy()
            return self._document_rows

    def _matching(self, name: str, pattern: str) -> NDArray[np.bool_]:
        import pyarrow.compute

        with self._documents_lock:
            table = self._read(DOCUMENTS, lambda: self._documents.read(columns=[name], use_threads=False))
        column = table.column(name)
        if not globs.GLOB.search(pattern):
            matched = pyarrow.compute.equal(column, pattern)
        else:
            try:
                matched = pyarrow.compute.match_substring_regex(column, globs.regex(pattern))
            except pyarrow.ArrowInvalid as error:
                raise InvalidRequest(f"{pattern[:80]!r} is no pattern for {name} ({error}); write e.g. [a-z]") from None
        return np.asarray(matched.to_numpy(), dtype=bool)

    def _read(self, name: str, read: Any) -> Any:
        import pyarrow

        try:
            return read()
        except (pyarrow.ArrowException, OSError) as error:
            raise broken(self._folder / name, f"cannot be read as Parquet ({error})") from error


def read_table(folder: Path) -> Any:
    """Return all passages as one Arrow table; for small indexes and for looking at them.

    Raises:
        BrokenIndex: the file cannot be read.
    """
    file = open_table(folder / PASSAGES, _FIELDS)
    try:
        return file.read()
    finally:
        file.close(force=True)


def open_table(file: Path, fields: Mapping[str, str]) -> Any:
    """Open a Parquet file with exactly these columns as a `ParquetFile`.

    Raises:
        BrokenIndex: it is no Parquet or has others.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Never mapped: what is read is decompressed into memory anyway.
        held = file.stat().st_size <= HELD_UP_TO
        place = pyarrow.BufferReader(file.read_bytes()) if held else str(file)
        opened = pyarrow.parquet.ParquetFile(place, memory_map=False, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise broken(file, f"cannot be read as Parquet ({error})") from error
    schema = opened.schema_arrow
    if {name: str(schema.field(name).type) for name in schema.names} != dict(fields):
        opened.close(force=True)
        raise broken(file, f"has the columns {', '.join(schema.names)}, expected {', '.join(fields)}")
    return opened


def _release() -> None:
    """Give back what decoding took, which Arrow's allocator would keep: 20 MB in each worker."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()
