"""The two large files of an index: Faiss vectors and a Parquet table of passages, row by row the same order."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import MissingExtra
from chatkit.retrieval.checkpoint import sha256_of
from chatkit.retrieval.chunking import Chunk
from chatkit.retrieval.manifest import FILE, HASHED_AT_OPEN, PASSAGES, VECTORS, FileEntry, Manifest, broken

_TEXT_COLUMNS = ("id", "source", "title", "section", "text")
_NUMBER_COLUMNS = ("start", "end")


def import_faiss() -> Any:
    """Return the module.

    Raises:
        MissingExtra: neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtra("faiss", "cpu") from error
    return faiss


def write_files(folder: Path, chunks: list[Chunk], vectors: NDArray[np.float32]) -> dict[str, FileEntry]:
    """Write both files durably and return their entries for the manifest.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    faiss = import_faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # Written by hand: Faiss reports a full disk only for some of its writes.
    (folder / VECTORS).write_bytes(faiss.serialize_index(index).data)
    _write_passages(folder / PASSAGES, chunks)
    return {name: _entry(folder / name) for name in (VECTORS, PASSAGES)}


def read_both(folder: Path, manifest: Manifest) -> tuple[Any, Any]:
    """Open vectors and passages, which stand row by row in the same order.

    Raises:
        BrokenIndex: a file cannot be read, or they do not belong together.
        MissingExtra: faiss is not installed.
    """
    vectors, passages = read_vectors(folder), read_passages(folder)
    if not vectors.ntotal == passages.num_rows == manifest.passages or vectors.d != manifest.dim:
        raise broken(
            folder / FILE,
            f"counts {manifest.passages} passages and {manifest.dim} dimensions, but the files hold {vectors.ntotal} "
            f"vectors of {vectors.d} dimensions and {passages.num_rows} passages",
        )
    kinds = {name: str(passages.schema.field(name).type) for name in passages.schema.names}
    expected = dict.fromkeys(_TEXT_COLUMNS, "string") | dict.fromkeys(_NUMBER_COLUMNS, "int64")
    if kinds != expected:
        raise broken(folder / PASSAGES, f"has the columns {', '.join(kinds)}, expected {', '.join(expected)}")
    return vectors, passages


def read_vectors(folder: Path) -> Any:
    """Open the Faiss index: a small one in memory, a large one mapped, so that several workers share its pages.

    A mapped file that is cut short while it is read ends the process, so only what would cost memory is mapped, and
    its length is looked at before every search.

    Raises:
        BrokenIndex: Faiss cannot read the file.
    """
    faiss = import_faiss()
    mapped = _is_large(folder / VECTORS)
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mapped else faiss.IO_FLAG_READ_ONLY
    try:
        return faiss.read_index(str(folder / VECTORS), flags)
    except RuntimeError as error:
        raise broken(folder / VECTORS, f"cannot be read by Faiss ({str(error).strip()[:200]})") from error


def mapped_file(folder: Path) -> BinaryIO | None:
    """Open the file of vectors where `read_vectors` maps it, so that its length can be watched."""
    return (folder / VECTORS).open("rb") if _is_large(folder / VECTORS) else None


def read_passages(folder: Path) -> Any:
    """Open the table of passages as an Arrow table.

    Raises:
        BrokenIndex: the file is no Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Not mapped: what is read is decompressed into memory anyway.
        return pyarrow.parquet.read_table(str(folder / PASSAGES), memory_map=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise broken(folder / PASSAGES, f"cannot be read as Parquet ({error})") from error


def _is_large(file: Path) -> bool:
    return file.exists() and file.stat().st_size > HASHED_AT_OPEN


def _write_passages(file: Path, chunks: list[Chunk]) -> None:
    import pyarrow
    import pyarrow.parquet

    types = dict.fromkeys(_TEXT_COLUMNS, "string") | dict.fromkeys(_NUMBER_COLUMNS, "int64")
    columns = {name: pyarrow.array([getattr(c, name) for c in chunks], kind) for name, kind in types.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), str(file), compression="zstd")


def _entry(file: Path) -> FileEntry:
    """Flush a file to the disk and describe it."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return FileEntry(file.stat().st_size, sha256_of(file))
