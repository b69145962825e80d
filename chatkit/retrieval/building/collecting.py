"""What an index keeps besides its live version, and taking away what nothing needs any more."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatkit.errors import BadIndex, BrokenIndex
from chatkit.retrieval import layout, versions
from chatkit.retrieval.building import cache, scoring, workplace
from chatkit.retrieval.building.keys import KeyTable, text_keys
from chatkit.retrieval.chunking import Chunk
from chatkit.retrieval.manifest import PASSAGES, Manifest, broken

_log = logging.getLogger(__name__)

# A cache of more vectors than this many times the passages of the version that was just built is trimmed.
MOST_SPARE = 3
_TOGETHER = 4096


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed of an index.

    Attributes:
        versions: that were removed, oldest first.
        kept: versions that are still there.
        vectors, spare: vectors left in the cache, and those taken out of it.
        bytes: that were freed.
    """

    name: str
    versions: tuple[str, ...]
    kept: tuple[str, ...]
    vectors: int
    spare: int
    bytes: int


def collect(indexes: Path, name: str, *, keep: int) -> Collected:
    """Remove all but the live version and the `keep` newest before it, what killed builds left, and spare vectors.

    Versions after the live one, from which somebody went back, are removed too.
    A killed build whose rest is removed begins anew when it is run again, but for vectors that a version uses.

    Raises:
        InvalidRequest: the name cannot be an index's.
        BadIndex: there is no such index, or it cannot be written.
        Unavailable: it is being built.
    """
    index = layout.IndexFolder(indexes, name)
    if not index.versions() and not (index.folder / cache.FOLDER).is_dir():
        raise BadIndex(f"there is no index {name!r} in {str(indexes)!r}; `chatkit index list` shows those there are")
    with index.locked():
        before = _size(index.folder)
        removed = versions.remove_old(index, keep)
        workplace.remove_others(index.folder)
        try:
            vectors, spare = trim_cache(index)
        except OSError as error:
            raise BadIndex(f"{str(index.folder)!r} cannot be written ({error.strerror}); free some space") from error
        freed = max(0, before - _size(index.folder))
        return Collected(name, tuple(removed), tuple(index.versions()), vectors, spare, freed)


def trim_cache(index: layout.IndexFolder) -> tuple[int, int]:
    """Take out of the cache what no kept version uses; returns how many vectors were kept and dropped. Needs the lock.

    Where a version cannot be read, the vectors of its encoder all stay and are not counted.

    Raises:
        OSError: a file cannot be read or written; the cache is then as it was.
    """
    kept = dropped = 0
    folder = index.folder / cache.FOLDER
    by_file: dict[Path, list[tuple[Path, Manifest]]] = {}
    kinds: dict[Path, tuple[str, int]] = {}  # what each file holds, and how much of it a text
    for version in index.versions():
        try:
            manifest = Manifest.read(index.version_folder(version))
        except BadIndex:
            continue
        held = [(manifest.fingerprint, manifest.dim)]
        if manifest.risks is not None:
            held.append((scoring.fingerprint_of(manifest.risks.version), len(manifest.risks.categories)))
        for fingerprint, width in held:
            file = cache.file_of(index.folder, fingerprint)
            kinds[file] = fingerprint, width
            by_file.setdefault(file, []).append((index.version_folder(version), manifest))
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file not in by_file:
            file.unlink()
            continue
        try:
            used = _used(by_file[file])
        except BrokenIndex as error:
            _log.warning("no vector was taken out of %s, for it is not known which are used: %s", file.name, error)
            continue
        fingerprint, width = kinds[file]
        stays, goes = cache.trim(file, fingerprint, width, used)
        if not fingerprint.startswith(scoring.SCORES):
            kept, dropped = kept + stays, dropped + goes
    return kept, dropped


def _used(users: Sequence[tuple[Path, Manifest]]) -> KeyTable:
    """Return the keys of all passages of some versions.

    Raises:
        BrokenIndex: the passages of one cannot be read.
    """
    import pyarrow

    used = KeyTable()
    for folder, manifest in users:
        try:
            for texts in _embedded(folder, manifest.encoder.passage_prefix):
                used.add(text_keys(texts), np.zeros(len(texts), dtype=np.int64))
        except (pyarrow.ArrowException, OSError) as error:
            raise broken(folder / PASSAGES, f"cannot be read as Parquet ({error})") from error
    return used


def _embedded(folder: Path, prefix: str) -> Iterator[list[str]]:
    """Yield what the encoder read of the passages of a version, some at a time."""
    import pyarrow.parquet

    names = ["title", "section", "text"]
    with pyarrow.parquet.ParquetFile(str(folder / PASSAGES)) as table:
        for rows in table.iter_batches(batch_size=_TOGETHER, columns=names):
            columns = [rows.column(name).to_pylist() for name in names]
            yield [prefix + Chunk.embedded_of(*values) for values in zip(*columns, strict=True)]


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
