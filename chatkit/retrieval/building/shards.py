"""Parts of an index that were made apart: a folder of plain files each, and the way back to one index.

```
shard-0003-of-0050/
  chunks.parquet    source, document, title, section, page, start, end, text, place in the order, vector (float32)
  sources.parquet   what became of every source
  shard.json        which shard of how many, encoder, chunking, counts, SHA-256 of both files
```
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenIndex, InvalidRequest
from chatkit.retrieval import layout, writing
from chatkit.retrieval.building import spool
from chatkit.retrieval.building.cache import VectorCache
from chatkit.retrieval.building.cutting import Share
from chatkit.retrieval.building.embedding import with_vectors
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.building.spool import SpoolWriter, Staged
from chatkit.retrieval.building.workplace import Staging
from chatkit.retrieval.checkpoint import sha256_of
from chatkit.retrieval.manifest import SOURCES
from chatkit.retrieval.writing import SourceRow

_FORMAT = 1
CHUNKS = "chunks.parquet"
FILE = "shard.json"
_SHARE = re.compile(r"([0-9]{1,5})/([0-9]{1,5})")
_NAME = "shard-{number:04d}-of-{of:04d}"
# Vectors of a row group, and chunks taken from a shard at a time.
_GROUP = 4096
_TAKEN = 512


def share_of(text: str) -> Share:
    """Return the share that `i/n` names, from 1/1.

    Raises:
        InvalidRequest: it is not of that form.
    """
    match = _SHARE.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InvalidRequest(f"the shard is {text[:40]!r}, expected its number and how many there are, such as 3/50")
    return Share(int(match[1]), int(match[2]))


def folder_of(out: Path, share: Share) -> Path:
    """Return where a shard is written in the folder of all shards."""
    return out / _NAME.format(number=share.number, of=share.of)


def write_shard(
    out: Path, share: Share, staged: Staging, cache: VectorCache, plan: dict[str, Any], prefix: str, meter: Meter
) -> Path:
    """Write a shard whose chunks are all embedded; it is on the disk, in place of one of the same number, on return.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    folder = folder_of(out, share)
    beside = out / f".{folder.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    writer = SpoolWriter(beside / CHUNKS, plan["encoder"]["dim"])
    done = 0
    meter.begin("write")
    for chunks, vectors in with_vectors(staged.spool, cache, prefix):
        writer.add_with_vectors(chunks, vectors)
        done += len(chunks)
        meter.chunks(done, staged.counts.passages)
    writer.close()
    writing.write_sources(beside, staged.rows)
    files = {}
    for name in (CHUNKS, SOURCES):
        with (beside / name).open("rb") as stream:
            os.fsync(stream.fileno())
        files[name] = {"size": (beside / name).stat().st_size, "sha256": sha256_of(beside / name)}
    counts = {"passages": staged.counts.passages, "duplicates": staged.counts.duplicates}
    table = {"format": _FORMAT, "number": share.number, "of": share.of, "plan": plan, "counts": counts, "files": files}
    with (beside / FILE).open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(table, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    layout.sync(beside)
    shutil.rmtree(folder, ignore_errors=True)  # of two folders one cannot take the other's place in one step
    beside.rename(folder)
    layout.sync(out)
    return folder


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard that was read back.

    Attributes:
        plan: what decided its chunks and vectors; that of all shards of an index is the same.
    """

    folder: Path
    number: int
    of: int
    plan: dict[str, Any]
    passages: int
    duplicates: int
    files: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> "Shard":
        """Read a shard and check every byte of it.

        Raises:
            BrokenIndex: a file is missing or was changed.
        """
        file = folder / FILE
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            if table["format"] != _FORMAT:
                raise BrokenIndex(f"{str(file)!r} has format {table['format']!r}, expected {_FORMAT}")
            counts = table["counts"]
            shard = cls(
                folder,
                table["number"],
                table["of"],
                table["plan"],
                counts["passages"],
                counts["duplicates"],
                table["files"],
            )
            for name in (CHUNKS, SOURCES):
                if sha256_of(folder / name) != shard.files[name]["sha256"]:
                    raise BrokenIndex(f"{str(folder / name)!r} was changed after it was made; make the shard again")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BrokenIndex(f"{str(file)!r} is missing or damaged ({error}); make the shard again") from error
        return shard

    def rows(self) -> list[SourceRow]:
        """Return what became of each source that this shard read."""
        return writing.read_sources(self.folder)

    def chunks(self) -> Iterator[Staged]:
        """Yield its chunks in order."""
        for batch in spool.read(self.folder / CHUNKS, batch=_TAKEN):
            yield from batch
