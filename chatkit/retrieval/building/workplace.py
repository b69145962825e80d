"""The folder in which a version is made: what is whole in it when a build is killed is where the next one goes on."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from chatkit.errors import BrokenIndex
from chatkit.retrieval import writing
from chatkit.retrieval.building.staging import Counts, Stage
from chatkit.retrieval.checkpoint import sha256_of
from chatkit.retrieval.chunking import Chunking
from chatkit.retrieval.manifest import SOURCES
from chatkit.retrieval.writing import SourceRow

# What every workplace is called at first; the next build removes those of others.
PREFIX = ".building-"
_SPOOL = "staged.parquet"
_NOTE = "staged.json"


@dataclass(frozen=True, slots=True)
class Staging:
    """The chunks of a version on the disk, and what became of each source."""

    spool: Path
    rows: list[SourceRow]
    counts: Counts


class Workplace:
    """`<parent>/.building-<digest>`; the digest stands for everything that decides the chunks."""

    def __init__(self, parent: Path, digest: str) -> None:
        self.folder = parent / f"{PREFIX}{digest[:16]}"
        self._digest = digest

    def staged(self, fill: Callable[[Stage], None], chunking: Chunking, *, near: bool = True) -> Staging:
        """Return the staged chunks: those of a killed build of the same plan, or what `fill` stages now.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        found = self._found()
        if found is not None:
            return found
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        stage = Stage(self.folder / _SPOOL, chunking, near=near)
        try:
            fill(stage)
            counts = stage.finish()
        except BaseException:
            stage.abandon()
            raise
        writing.write_sources(self.folder, stage.rows)
        hashes = {name: _flushed(self.folder / name) for name in (_SPOOL, SOURCES)}
        note = {"digest": self._digest, "counts": asdict(counts), "files": hashes}
        beside = self.folder / f"{_NOTE}.new"
        beside.write_text(json.dumps(note), encoding="utf-8")
        _flushed(beside)
        beside.replace(self.folder / _NOTE)
        return Staging(self.folder / _SPOOL, stage.rows, counts)

    def cleared(self) -> Path:
        """Remove what only the build needs; returns the folder."""
        for name in (_SPOOL, _NOTE):
            (self.folder / name).unlink(missing_ok=True)
        return self.folder

    def shrink(self) -> None:
        """Keep only staged chunks that are whole, from which the next build goes on: the disk may be full."""
        kept = (_SPOOL, _NOTE, SOURCES) if (self.folder / _NOTE).is_file() else ()
        for entry in self.folder.glob("*"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in kept:
                entry.unlink(missing_ok=True)
        if not kept:
            self.remove()

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> Staging | None:
        try:
            note = json.loads((self.folder / _NOTE).read_text(encoding="utf-8"))
            if note["digest"] != self._digest:
                return None
            if any(sha256_of(self.folder / name) != sha256 for name, sha256 in note["files"].items()):
                return None
            return Staging(self.folder / _SPOOL, writing.read_sources(self.folder), Counts(**note["counts"]))
        except (BrokenIndex, OSError, ValueError, KeyError, TypeError):
            return None


def remove_others(parent: Path, keep: Path | None = None) -> int:
    """Remove what killed builds of other plans left in an index's folder; returns how many. Needs the lock."""
    others = [entry for entry in parent.glob(f"{PREFIX}*") if entry != keep]
    for entry in others:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return len(others)


def _flushed(file: Path) -> str:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return sha256_of(file)
