"""Vectors that were made once: an append-only file beside the versions of an index, from which builds resume.

One file an encoder: a header, then blocks of keys and float32 vectors, each block with its checksum and on the disk
before the next batch is embedded. A last block that a kill or a full disk left half is cut off when the file is opened;
one that was damaged later, anywhere, is passed over, and what it held is embedded again.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.building.keys import KEY_BYTES, Keys, KeyTable

FOLDER = "cache"
SUFFIX = ".vectors"
_MAGIC = b"ckvec\0\0\1"
_HEADER = struct.Struct("<8sI32sI")  # magic, dimensions, SHA-256 of the fingerprint, CRC-32 of what stands before it
_BLOCK = struct.Struct("<4sIII")  # mark, vectors, CRC-32 of the payload, CRC-32 of what stands before it
_MARK = b"BLK1"
# Bytes copied or checked at a time.
_PIECE = 1 << 22

Vectors = NDArray[np.float32]


def file_of(index_folder: Path, fingerprint: str) -> Path:
    """Return where an index keeps the vectors that one encoder made."""
    return index_folder / FOLDER / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}{SUFFIX}"


class VectorCache:
    """The vectors of one index and encoder by key of the embedded text. One process at a time: under the index's lock.

    In memory it takes some 40 to 70 bytes a vector, whatever the dimension.
    """

    def __init__(self, file: Path, fingerprint: str, dim: int) -> None:
        """Open the file, or make it; a file of another encoder or another release is begun anew.

        Raises:
            OSError: it cannot be read or written.
        """
        self._dim = dim
        self._table = KeyTable()
        self._starts: list[int] = []  # the first record of each block, and where its vectors begin in the file
        self._offsets: list[int] = []
        self._records = 0
        self._header = _header(fingerprint, dim)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self._end = 0
        try:
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        """Return the number of different texts."""
        return len(self._table)

    def __enter__(self) -> "VectorCache":
        """Nothing more is opened."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        os.close(self._file)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._end

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Return the record of each of the (n, 2) keys, -1 where there is none."""
        return self._table.find(keys)

    def append(self, keys: Keys, vectors: Vectors) -> None:
        """Add (n, 2) keys with their (n, dim) vectors; they are on the disk when this returns.

        Raises:
            OSError: the disk is full or cannot be written; what was there before stays good.
        """
        if not len(keys):
            return
        payload = keys.astype("<u8").tobytes() + np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        start = _BLOCK.pack(_MARK, len(keys), zlib.crc32(payload), 0)[:-4]
        try:
            self._write(start + struct.pack("<I", zlib.crc32(start)) + payload, self._end)
        except OSError:
            self._forget_torn()
            raise
        self._take(keys, self._end + _BLOCK.size)
        self._end += _BLOCK.size + len(payload)

    def vectors(self, records: NDArray[np.int64]) -> Vectors:
        """Return the (n, dim) vectors of records, read from the file: neighbours with one read."""
        out = np.empty((len(records), self._dim), dtype=np.float32)
        if not len(records):
            return out
        starts = np.asarray(self._starts, dtype=np.int64)
        block = np.searchsorted(starts, records, side="right") - 1
        width = 4 * self._dim
        where = np.asarray(self._offsets, dtype=np.int64)[block] + (records - starts[block]) * width
        breaks = np.flatnonzero(np.diff(where) != width) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(records)], strict=True):
            raw = os.pread(self._file, (last - first) * width, int(where[first]))
            out[first:last] = np.frombuffer(raw, dtype="<f4").reshape(-1, self._dim)
        return out

    def blocks(self) -> Iterator[tuple[Keys, Vectors]]:
        """Yield the keys and vectors of each good block in the order in which they were made."""
        for number, offset in enumerate(self._offsets):
            following = self._starts[number + 1] if number + 1 < len(self._starts) else self._records
            count = following - self._starts[number]
            raw = os.pread(self._file, count * KEY_BYTES, offset - count * KEY_BYTES)
            records = np.arange(self._starts[number], following)
            yield np.frombuffer(raw, dtype="<u8").reshape(-1, 2).astype(np.uint64), self.vectors(records)

    def _take(self, keys: Keys, payload: int) -> None:
        self._starts.append(self._records)
        self._offsets.append(payload + len(keys) * KEY_BYTES)
        self._table.add(keys, np.arange(self._records, self._records + len(keys), dtype=np.int64))
        self._records += len(keys)

    def _load(self) -> None:
        """Take in every good block; cut the file after the last whole one."""
        size = os.fstat(self._file).st_size
        if os.pread(self._file, _HEADER.size, 0) != self._header:
            os.ftruncate(self._file, 0)
            self._write(self._header, 0)
            self._end = len(self._header)
            return
        self._end = _HEADER.size
        while (start := self._next_block(self._end, size)) is not None:
            payload = start + _BLOCK.size
            _, count, expected, _ = _BLOCK.unpack(os.pread(self._file, _BLOCK.size, start))
            length = count * (KEY_BYTES + 4 * self._dim)
            if self._checksum(payload, length) == expected:
                raw = os.pread(self._file, count * KEY_BYTES, payload)
                self._take(np.frombuffer(raw, dtype="<u8").reshape(-1, 2).astype(np.uint64), payload)
            self._end = payload + length
        if self._end < size:
            self._forget_torn()

    def _next_block(self, offset: int, size: int) -> int | None:
        """Return where the first whole block from `offset` on begins: there, unless the head of that one is damaged."""
        while offset < size:
            piece = os.pread(self._file, _PIECE, offset)
            at = piece.find(_MARK)
            while at >= 0:
                if self._is_block(offset + at, size):
                    return offset + at
                at = piece.find(_MARK, at + 1)
            if len(piece) < _PIECE:
                return None
            offset += len(piece) - len(_MARK) + 1
        return None

    def _is_block(self, offset: int, size: int) -> bool:
        """Return whether a whole block with a good head begins at `offset`."""
        raw = os.pread(self._file, _BLOCK.size, offset)
        if len(raw) < _BLOCK.size:
            return False
        mark, count, _, own = _BLOCK.unpack(raw)
        whole: bool = offset + _BLOCK.size + count * (KEY_BYTES + 4 * self._dim) <= size
        return mark == _MARK and own == zlib.crc32(raw[:-4]) and whole

    def _checksum(self, offset: int, length: int) -> int:
        crc = 0
        for start in range(0, length, _PIECE):
            crc = zlib.crc32(os.pread(self._file, min(_PIECE, length - start), offset + start), crc)
        return crc

    def _write(self, content: bytes, offset: int) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written
        os.fsync(self._file)

    def _forget_torn(self) -> None:
        with suppress(OSError):  # a disk that cannot even do this is told of by the write that failed
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)


def trim(file: Path, fingerprint: str, dim: int, wanted: KeyTable) -> tuple[int, int]:
    """Keep of a cache file only the vectors of `wanted` keys, atomically; returns how many were kept and dropped.

    Raises:
        OSError: it cannot be read or written; the file is then as it was.
    """
    beside = file.with_suffix(".trimming")
    beside.unlink(missing_ok=True)
    kept = total = 0
    with VectorCache(file, fingerprint, dim) as old:
        with VectorCache(beside, fingerprint, dim) as new:
            for keys, vectors in old.blocks():
                good = (wanted.find(keys) >= 0) & (new.find(keys) < 0)
                new.append(keys[good], vectors[good])
                kept, total = kept + int(good.sum()), total + len(keys)
        if kept == total:
            beside.unlink()
        else:
            beside.replace(file)
    return kept, total - kept


def _header(fingerprint: str, dim: int) -> bytes:
    start = _HEADER.pack(_MAGIC, dim, hashlib.sha256(fingerprint.encode()).digest(), 0)[:-4]
    return start + struct.pack("<I", zlib.crc32(start))
