"""The folder of one index: numbered versions, a pointer to the live one, a lock for the builder."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from chatkit.errors import BadIndex, InvalidRequest, Unavailable
from chatkit.retrieval import manifest

_POINTER = "current"
_LOCK = ".lock"
_BUILDING = ".building-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9]{6}")


class IndexFolder:
    """`<indexes>/<name>`; nothing is read or made before a method asks for it."""

    def __init__(self, indexes: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"index name {name!r} cannot be a folder's, expected 1 to 64 letters, digits, '.', '_' or '-'"
            )
        self.name = name
        self.folder = indexes / name

    def version_folder(self, version: str) -> Path:
        """Return where a version's files are."""
        return self.folder / version

    def current(self) -> str:
        """Return the live version.

        Raises:
            BadIndex: the index does not exist, or its pointer names no version.
        """
        pointer = self.folder / _POINTER
        try:
            version = pointer.read_text(encoding="ascii").strip()
        except OSError as error:
            raise BadIndex(
                f"there is no index {self.name!r} in {str(self.folder.parent)!r}; build it with: "
                f"chatkit prepare-index SOURCE… --name {self.name}"
            ) from error
        except UnicodeDecodeError as error:
            raise manifest.broken(pointer, "names no version") from error
        if not _VERSION.fullmatch(version) or not self.version_folder(version).is_dir():
            raise manifest.broken(pointer, f"names the version {version!r}, which does not exist")
        return version

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only builder of this index; the system frees the lock of a builder that is killed.

        Raises:
            Unavailable: another process is building it.
            BadIndex: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / _LOCK, timeout=0)
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

    def remove_leftovers(self) -> None:
        """Remove what killed builds left, and versions older than the one before the live one. Needs the lock."""
        for entry in self.folder.glob(f"{_BUILDING}*"):
            shutil.rmtree(entry, ignore_errors=True)
        try:
            live = self.current()
        except BadIndex:
            return  # nothing is known to be live, so nothing is known to be old
        versions = self._versions()
        kept = {live, *[version for version in versions if version < live][-1:]}
        for version in versions:
            if version not in kept:
                shutil.rmtree(self.version_folder(version), ignore_errors=True)

    @contextmanager
    def building(self) -> Iterator[Path]:
        """Give a new folder on the same disk, removed again unless it is published."""
        beside = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self.folder))
        try:
            yield beside
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def publish(self, beside: Path) -> Path:
        """Make a built folder the live version, in two renames; returns its folder."""
        number = int(max(self._versions(), default="0")) + 1
        folder = self.version_folder(f"{number:06d}")
        beside.chmod(0o755)
        _sync(beside)
        beside.rename(folder)
        _sync(self.folder)
        pointer = self.folder / f"{_BUILDING}pointer"
        with pointer.open("w", encoding="ascii") as stream:
            stream.write(folder.name + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        pointer.replace(self.folder / _POINTER)
        _sync(self.folder)
        self.remove_leftovers()
        return folder

    def _versions(self) -> list[str]:
        return sorted(entry.name for entry in self.folder.iterdir() if _VERSION.fullmatch(entry.name))


def _sync(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
