"""The kept versions of an index: whether one is whole, which to go back to, and what to tell who meets a bad one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatkit.errors import BadIndex, IndexMismatch
from chatkit.retrieval.layout import VERSION, IndexFolder
from chatkit.retrieval.manifest import Manifest


def check(folder: Path, fingerprint: str | None, *, hashes: bool | None = None) -> Manifest:
    """Return the manifest of a version folder whose files are those that were built.

    Args:
        folder: the version folder.
        fingerprint: of the encoder that will query it; None where that is not known.
        hashes: as in `Manifest.verify`.

    Raises:
        IndexMismatch: it was built with another encoder.
        BrokenIndex: a file is missing or was changed.
    """
    manifest = Manifest.read(folder)
    if fingerprint is not None and manifest.fingerprint != fingerprint:
        raise IndexMismatch(
            f"version {folder.name} of the index {folder.parent.name!r} was built with the encoder "
            f"{manifest.fingerprint!r}, but the one in use is {fingerprint!r}"
        )
    manifest.verify(folder, hashes=hashes)
    return manifest


def is_good(index: IndexFolder, version: str, fingerprint: str | None) -> bool:
    """Return whether a version would be opened."""
    try:
        check(index.version_folder(version), fingerprint)
    except BadIndex:
        return False
    return True


def before_live(index: IndexFolder) -> list[str]:
    """Return the versions before the live one, newest first; all of them where none is known to be live."""
    pointer = index.pointer()
    newest_first = index.versions()[::-1]
    if pointer is None or not VERSION.fullmatch(pointer.text):
        return newest_first
    return [version for version in newest_first if version < pointer.text]


def to_keep(index: IndexFolder, fingerprint: str, keep: int = 1) -> list[str]:
    """Return the versions to keep beside a new one, newest first: the live one and older ones, `keep` in all.

    Where the live one is bad and another is good, the newest good one is among them.
    """
    pointer = index.pointer()
    versions = index.versions()
    live = pointer.text if pointer is not None and pointer.text in versions else max(versions, default="")
    if not live or not keep:
        return []
    candidates = list(dict.fromkeys((live, *reversed(versions))))
    good = next((version for version in candidates if is_good(index, version, fingerprint)), live)
    return list(dict.fromkeys((good, *(version for version in candidates if version <= live))))[:keep]


def remove_old(index: IndexFolder, keep: int) -> list[str]:
    """Remove all versions but the live one and the `keep` newest before it; returns them. Needs the lock.

    Where none is live, none is removed.
    """
    pointer = index.pointer()
    if pointer is None or pointer.text not in index.versions():
        return []
    stay = {pointer.text, *before_live(index)[:keep]}
    gone = [version for version in index.versions() if version not in stay]
    for version in gone:
        shutil.rmtree(index.version_folder(version), ignore_errors=True)
    return gone


def remedy(index: IndexFolder, fingerprint: str | None) -> str:
    """Return the command that mends an index whose live version is bad: going back where that helps, or a build."""
    build = f"build it again with: chatkit prepare-index SOURCE… --name {index.name}"
    pointer = index.pointer()
    live = pointer.text if pointer is not None else ""
    older = before_live(index)
    newer = [version for version in reversed(index.versions()) if version != live and version not in older]
    good = next((version for version in (*older, *newer) if is_good(index, version, fingerprint)), None)
    if good is None:
        return build
    return f"go back with: chatkit index use {index.name} {'previous' if good in older else good}, or {build}"


@contextmanager
def advised(index: IndexFolder, fingerprint: str | None) -> Iterator[None]:
    """Add the command that mends it to what is found wrong with the live version of `index`."""
    try:
        yield
    except BadIndex as error:
        raise type(error)(f"{error}; {remedy(index, fingerprint)}") from error
