"""The files of a version: entries for the manifest, the table of sources, and vectors and passages opened together."""

import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from chatkit.retrieval import passages, vectors
from chatkit.retrieval.checkpoint import sha256_of
from chatkit.retrieval.manifest import SOURCES, FileEntry, Manifest, broken

__all__ = ["SourceRow", "entries", "read_both", "read_sources", "write_sources"]

_SOURCE_FIELDS = {
    **dict.fromkeys(("source", "digest"), "string"),
    **dict.fromkeys(("documents", "first_row", "chunks", "dropped"), "int64"),
    "whole": "bool",
    "reason": "string",
    "part": "bool",
}


@dataclass(slots=True)
class SourceRow:
    """What became of one source.

    Attributes:
        digest: of its content; empty where that is not known.
        documents: those that gave a chunk or a duplicate of one.
        first_row: row of its first passage; its others follow.
        chunks: passages of it that are in the index.
        dropped: chunks of it that were left out as duplicates, near ones too.
        whole: nothing in it was skipped.
        reason: why it was skipped, all or in part; empty for one that was not.
        part: it is a part of a source, named because it was skipped.
    """

    source: str
    digest: str
    documents: int = 0
    first_row: int = 0
    chunks: int = 0
    dropped: int = 0
    whole: bool = True
    reason: str = ""
    part: bool = False


def write_sources(folder: Path, rows: Iterable[SourceRow]) -> Path:
    """Write `sources.parquet` durably and return it.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    table = passages.Table(folder / SOURCES, _SOURCE_FIELDS, 65536)
    try:
        for row in rows:
            table.add(astuple(row))
        return table.finish()
    finally:
        table.close()


def read_sources(folder: Path) -> list[SourceRow]:
    """Return what became of every source.

    Raises:
        BrokenIndex: the table cannot be read.
    """
    import pyarrow

    table = passages.open_table(folder / SOURCES, _SOURCE_FIELDS)
    try:
        return [SourceRow(**row) for row in table.read().to_pylist()]
    except (pyarrow.ArrowException, OSError) as error:
        raise broken(folder / SOURCES, f"cannot be read as Parquet ({error})") from error
    finally:
        table.close(force=True)


def entries(folder: Path, files: Iterable[Path]) -> dict[str, FileEntry]:
    """Flush files in `folder`, or in a folder of it, to the disk and return their entries for the manifest."""
    return {file.relative_to(folder).as_posix(): _entry(file) for file in files}


def read_both(folder: Path, manifest: Manifest) -> tuple[vectors.Vectors, passages.Passages]:
    """Open vectors and passages, which stand row by row in the same order.

    Raises:
        BrokenIndex: a file cannot be read, or they do not belong together.
        MissingExtra: faiss is not installed.
    """
    opened = vectors.Vectors.open(folder, manifest)
    try:
        return opened, passages.Passages.open(folder, manifest)
    except Exception:
        opened.close()
        raise


def _entry(file: Path) -> FileEntry:
    """Flush a file to the disk and describe it."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return FileEntry(file.stat().st_size, sha256_of(file))
