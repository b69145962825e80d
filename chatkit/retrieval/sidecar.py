"""The texts of a large Parquet file by row number: a file of small compressed blocks and their offsets, made once.

A Parquet file written by others may hold all its rows in one group, and to read one row of a group is to unpack all
before it in its page and column. The sidecar holds the columns that a search needs in blocks of 32 rows, so that a hit
and its neighbours are one or two reads, and of each row whether an article begins there. It lies in a folder beside the
Parquet file, names the file that it was made from by length and end, and appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from chatkit.errors import BadIndex, BrokenIndex, Unavailable

FOLDER = "sidecar"
TEXT, POSITION = "text_snippet", "position_in_source_text"
# Columns that name the article where the file has them.
TITLE, URL = "title", "url"
_FORMAT = 1
_BLOCK = 32
_BATCH = 4096
# Bytes at both ends of a file that are hashed to know it again; of a Parquet file the end is its table of contents.
_ENDS = 1 << 16
_FACTS, _TEXTS, _OFFSETS, _STARTS = "sidecar.json", "texts.bin", "offsets.npy", "starts.npy"

Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file; empty where it has no such column."""

    text: str
    title: str = ""
    url: str = ""


class Sidecar:
    """An open sidecar; safe to read from several threads."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Map the files of `folder`.

        Raises:
            BrokenIndex: one is missing or has another length than it should.
        """
        import pyarrow

        self.folder = folder
        self._rows: int = facts["rows"]
        self._codec = pyarrow.Codec("zstd")
        try:
            self._offsets: NDArray[np.uint64] = np.load(folder / _OFFSETS, mmap_mode="r", allow_pickle=False)
            self._starts: NDArray[np.bool_] = np.load(folder / _STARTS, mmap_mode="r", allow_pickle=False)
            self._file = os.open(folder / _TEXTS, os.O_RDONLY)
        except (OSError, ValueError) as error:
            raise _broken(folder, str(error)) from error
        whole = os.fstat(self._file).st_size == int(self._offsets[-1])
        if not whole or len(self._starts) != self._rows or len(self._offsets) != -(-self._rows // _BLOCK) + 1:
            os.close(self._file)
            raise _broken(folder, "its files do not fit each other")

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    def read(self, first: int, last: int) -> list[Row]:
        """Return the rows from `first` to `last`, both included.

        Raises:
            BrokenIndex: the file was changed.
        """
        blocks = range(first // _BLOCK, last // _BLOCK + 1)
        rows = [row for block in blocks for row in self._block(block)]
        start = blocks[0] * _BLOCK
        return rows[first - start : last - start + 1]

    def article(self, row: int, reach: int) -> tuple[int, int]:
        """Return the first and last row of the article around `row`, at most `reach` rows away from it."""
        low, high = max(0, row - reach), min(self._rows - 1, row + reach)
        begun = np.flatnonzero(self._starts[low : row + 1])
        if len(begun):
            low += int(begun[-1])
        following = np.flatnonzero(self._starts[row + 1 : high + 1])
        if len(following):
            high = row + int(following[0])
        return low, high

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _block(self, number: int) -> list[Row]:
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        packed = os.pread(self._file, end - start, start)
        try:
            size = int.from_bytes(packed[:4], "little")
            table = json.loads(self._codec.decompress(packed[4:], size, asbytes=True))
            return [Row(*columns) for columns in table]
        except (OSError, ValueError, TypeError) as error:
            raise _broken(self.folder, f"block {number} cannot be read") from error


def open_sidecar(parquet: Path, *, timeout: float = 3600.0, tell: Tell = lambda done, total: None) -> Sidecar:
    """Open the sidecar of a Parquet file; make it where there is none for this file.

    Processes that need it at once wait for the one that makes it.

    Args:
        parquet: has the column `text_snippet`.
        timeout: seconds to wait for another process.
        tell: is told how many rows are done, of how many.

    Raises:
        BrokenIndex: the file is no Parquet, or lacks the column.
        BadIndex: the folder cannot be written.
        Unavailable: another process still makes it after `timeout`.
    """
    folder = parquet.parent / FOLDER
    identity = identity_of(parquet)
    if (facts := _facts(folder, identity)) is None:
        with _locked(parquet.parent, timeout):
            facts = _facts(folder, identity) or _make(parquet, folder, identity, tell)
    return Sidecar(folder, facts)


def identity_of(file: Path) -> str:
    """Return what tells a file from others without reading it whole: its length and a hash of both its ends.

    Raises:
        BrokenIndex: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(stream.read(_ENDS))
            stream.seek(max(0, size - _ENDS))
            digest.update(stream.read(_ENDS))
    except OSError as error:
        raise BrokenIndex(f"{str(file)!r} cannot be read ({error.strerror})") from error
    return f"{size}-{digest.hexdigest()[:32]}"


def write_array(file: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file through to the disk, whole or not at all."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with part.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


@contextmanager
def _locked(beside: Path, timeout: float) -> Iterator[None]:
    lock = FileLock(beside / ".sidecar.lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise Unavailable(f"another process still prepares the texts of {str(beside)!r} after {timeout:g} s") from error
    except OSError as error:
        raise _read_only(beside, error) from error
    try:
        yield
    finally:
        lock.release()


def _facts(folder: Path, identity: str) -> dict[str, Any] | None:
    """Return what a finished sidecar says, None where there is none of this file and format."""
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ok = isinstance(facts, dict) and facts.get("format") == _FORMAT and facts.get("parquet") == identity
    return facts if ok and isinstance(facts.get("rows"), int) else None


def _make(parquet: Path, folder: Path, identity: str, tell: Tell) -> dict[str, Any]:
    try:
        for left in parquet.parent.glob(f".{FOLDER}-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=parquet.parent))
    except OSError as error:
        raise _read_only(parquet.parent, error) from error
    try:
        rows = _write(parquet, work, tell)
        facts = {"format": _FORMAT, "rows": rows, "parquet": identity}
        (work / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        work.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
    except OSError as error:
        raise _read_only(parquet.parent, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return facts


def _write(parquet: Path, work: Path, tell: Tell) -> int:
    """Write the files of a sidecar and return the number of rows."""
    import pyarrow

    codec = pyarrow.Codec("zstd")
    offsets, waiting, starts = [0], [], []
    rows = 0
    with (work / _TEXTS).open("wb") as out:

        def pack(table: list[tuple[str, ...]]) -> None:
            plain = json.dumps(table, ensure_ascii=False).encode("utf-8", "replace")
            packed = codec.compress(plain, asbytes=True)
            out.write(len(plain).to_bytes(4, "little") + packed)
            offsets.append(offsets[-1] + 4 + len(packed))

        for table, begins, total in _batches(parquet):
            waiting += table
            starts.append(begins)
            rows += len(begins)
            whole = len(waiting) // _BLOCK * _BLOCK
            for at in range(0, whole, _BLOCK):
                pack(waiting[at : at + _BLOCK])
            del waiting[:whole]
            tell(rows, total)
        if waiting:
            pack(waiting)
        out.flush()
        os.fsync(out.fileno())
    if not rows:
        raise BrokenIndex(f"{str(parquet)!r} has no rows")
    write_array(work / _OFFSETS, np.array(offsets, np.uint64))
    write_array(work / _STARTS, np.concatenate(starts))
    return rows


def _batches(parquet: Path) -> Iterator[tuple[list[tuple[str, ...]], NDArray[np.bool_], int]]:
    """Yield rows, whether an article begins at each, and the number of all rows."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(parquet, pre_buffer=False) as file:
            kinds = {field.name: field.type for field in file.schema_arrow}
            if TEXT not in kinds:
                raise BrokenIndex(f"{str(parquet)!r} has no column {TEXT!r}, only {', '.join(kinds)}")
            shown = [name for name in (TEXT, TITLE, URL) if name in kinds]
            numeric = POSITION in kinds and (
                pyarrow.types.is_integer(kinds[POSITION]) or pyarrow.types.is_floating(kinds[POSITION])
            )
            columns = [*shown, POSITION] if numeric else shown
            before: tuple[Any, ...] | None = None
            for batch in file.iter_batches(_BATCH, columns=columns):
                values = {name: batch.column(name).to_pylist() for name in columns}
                words = {name: [str(value or "") for value in values[name]] for name in shown}
                empty = [""] * len(batch)
                table = list(zip(*(words.get(name, empty) for name in (TEXT, TITLE, URL)), strict=True))
                named = [words[name] for name in (TITLE, URL) if name in words] or [empty]
                places = list(zip(*named, values[POSITION] if numeric else empty, strict=True))
                yield table, _begins(places, before, numeric), file.metadata.num_rows
                before = places[-1] if places else before
    except (pyarrow.ArrowException, OSError) as error:
        raise BrokenIndex(f"{str(parquet)!r} cannot be read as Parquet ({str(error)[:200]})") from error


def _begins(places: list[tuple[Any, ...]], before: tuple[Any, ...] | None, numeric: bool) -> NDArray[np.bool_]:
    """Return of each row whether its article is not that of the row before.

    An article begins where the name changes, and where the position in its text does not go up.
    """
    begins = np.zeros(len(places), np.bool_)
    for at, place in enumerate(places):
        last = places[at - 1] if at else before
        if last is None or place[:-1] != last[:-1]:
            begins[at] = True
        elif numeric and place[-1] is not None and last[-1] is not None:
            begins[at] = place[-1] <= last[-1]
    return begins


def _broken(folder: Path, problem: str) -> BrokenIndex:
    return BrokenIndex(f"the sidecar {str(folder)!r} is damaged ({problem}); remove that folder, it is made again")


def _read_only(folder: Path, error: OSError) -> BadIndex:
    return BadIndex(
        f"{str(folder)!r} cannot be written ({error.strerror or error}): the texts are laid out there once; "
        "make it writable, or prepare the index elsewhere and copy it"
    )
