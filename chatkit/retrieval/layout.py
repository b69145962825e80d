"""The folder of one index: numbered versions, a pointer to the live one, a lock for the builder."""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from chatkit.errors import BadIndex, InvalidRequest, Unavailable
from chatkit.retrieval import manifest

_POINTER = "current"
_LOCK = ".lock"
_BUILDING = ".building-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[0-9]{6}")
# A pointer is seven bytes; whatever else stands there is not read whole.
_MOST_POINTER = 64


@dataclass(frozen=True, slots=True)
class Pointer:
    """The pointer file as it was read: equal ones mean that nothing was made live between."""

    text: str
    inode: int
    mtime_ns: int


class IndexFolder:
    """`<indexes>/<name>`; nothing is read or made before a method asks for it."""

    def __init__(self, indexes: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"index name {name[:80]!r} cannot be a folder's, expected 1 to 64 letters, digits, '.', '_' or '-'"
            )
        self.name = name
        self.folder = indexes / name

    def version_folder(self, version: str) -> Path:
        """Return where a version's files are."""
        return self.folder / version

    def current(self) -> str:
        """Return the live version.

        Raises:
            BadIndex: the index does not exist, or its pointer names no version; the next step is not in the message.
        """
        pointer = self.pointer()
        if pointer is None:
            raise BadIndex(f"there is no index {self.name!r} in {str(self.folder.parent)!r}")
        version = pointer.text
        if not VERSION.fullmatch(version) or not self.version_folder(version).is_dir():
            raise manifest.broken(self.folder / _POINTER, f"names the version {version!r}, which does not exist")
        return version

    def pointer(self) -> Pointer | None:
        """Return what the pointer is now, None where there is none; one small file is read."""
        try:
            with (self.folder / _POINTER).open("rb") as stream:
                stat = os.fstat(stream.fileno())
                text = stream.read(_MOST_POINTER).decode("ascii", "replace").strip()
        except OSError:
            return None
        return Pointer(text, stat.st_ino, stat.st_mtime_ns)

    def versions(self) -> list[str]:
        """Return all versions that are kept, oldest first; not all need be whole."""
        try:
            return sorted(entry.name for entry in self.folder.iterdir() if VERSION.fullmatch(entry.name))
        except OSError:
            return []

    @contextmanager
    def locked(self, timeout: float = 0.0) -> Iterator[None]:
        """Be the only builder of this index; the system frees the lock of a builder that is killed.

        Args:
            timeout: seconds to wait for another one.

        Raises:
            Unavailable: another process is building it.
            BadIndex: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / _LOCK, timeout=timeout)
            lock.acquire()
        except Timeout as error:
            raise Unavailable(
                f"the index {self.name!r} is being built by another process; wait for it, then run again"
            ) from error
        except OSError as error:
            raise BadIndex(f"{str(self.folder)!r} cannot be written ({error.strerror}); set --home") from error
        try:
            yield
        finally:
            lock.release()

    def publish(self, beside: Path, *, keep: Collection[str]) -> Path:
        """Make a built folder the live version, in two renames; returns its folder. Needs the lock.

        Of the other versions those in `keep` are kept, the rest is removed.
        """
        number = int(max(self.versions(), default="0")) + 1
        folder = self.version_folder(f"{number:06d}")
        beside.chmod(0o755)
        for entry in beside.iterdir():
            if entry.is_dir():
                sync(entry)
        sync(beside)
        beside.rename(folder)
        sync(self.folder)
        self.make_live(folder.name)
        for version in self.versions():
            if version != folder.name and version not in keep:
                shutil.rmtree(self.version_folder(version), ignore_errors=True)
        return folder

    def make_live(self, version: str) -> None:
        """Let the pointer name `version`, atomically and durably. Needs the lock."""
        pointer = self.folder / f"{_BUILDING}pointer"
        with pointer.open("w", encoding="ascii") as stream:
            stream.write(version + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        pointer.replace(self.folder / _POINTER)
        sync(self.folder)


def sync(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
