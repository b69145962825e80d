"""The model cache: one entry folder a source, landed whole or not at all, with a receipt that says what is in it."""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from chatkit.errors import BrokenModel, ModelError, Offline

RECEIPT = "receipt.json"
DERIVED = "derived"
WORK = ".pulling"
RESUMABLE = ("hf-", "modelscope-")
# What a model may consist of. Anything else is left behind: pickled weights run code when they are read.
SAFE_SUFFIXES = frozenset({".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja"})
WEIGHTS = (".safetensors", ".gguf")
# What file systems take: bytes of one name, and of a path with room for the folders above it.
_LONGEST_NAME, _LONGEST_PATH = 255, 2048
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CHUNK = 1 << 20


class Progress(Protocol):
    """Who is told how a pull goes."""

    def note(self, line: str) -> None:
        """Take one line for the reader."""
        ...

    def received(self, name: str, done: int, total: int | None) -> None:
        """Take how many bytes of `name` have arrived; `total` is None while unknown."""
        ...


class Silent:
    """Progress that nobody watches."""

    def note(self, line: str) -> None:
        """Drop the line."""

    def received(self, name: str, done: int, total: int | None) -> None:
        """Drop the figures."""


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file of a pulled model.

    Attributes:
        path: relative to the entry folder, with forward slashes.
        verified: its hash was compared with a published one.
    """

    path: str
    bytes: int
    sha256: str
    verified: bool


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was pulled into an entry folder.

    Attributes:
        model: the file or folder to open, relative to the entry folder.
        revision: the commit that a moving name stood for.
    """

    source: str
    model: str
    files: tuple[CachedFile, ...]
    licence: str = ""
    revision: str = ""
    page: str = ""
    pulled_at: float = 0.0

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def verified(self) -> bool:
        """Whether every file was compared with a published hash."""
        return all(file.verified for file in self.files)


def read_receipt(entry: Path) -> Receipt | None:
    """Return the receipt of an entry folder, None where there is none.

    Raises:
        BrokenModel: the receipt cannot be read as one.
    """
    try:
        table = json.loads((entry / RECEIPT).read_text(encoding="utf-8"))
        return Receipt(**{**table, "files": tuple(CachedFile(**file) for file in table["files"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise BrokenModel(
            f"{str(entry / RECEIPT)!r} is not a receipt ({error}); pull the model with --force"
        ) from error


def size_fault(entry: Path, receipt: Receipt) -> str:
    """Return how the files differ from the receipt, "" where none does.

    Sizes only: hashing is for the pull, a start must not read 100 MB to open 100 MB.
    """
    for file in receipt.files:
        path = entry / file.path
        actual = path.stat().st_size if path.is_file() else None
        if actual != file.bytes:
            state = "is missing" if actual is None else f"has {actual} bytes"
            return f"{str(path)!r} {state}, expected {file.bytes} bytes"
    return ""


def relative(name: str) -> str:
    """Return `name` when it is a plain relative path inside an archive or repository.

    Raises:
        ModelError: for a name that would be written outside its folder, that cannot be seen whole, or that is too long.
    """
    if not name.isprintable():
        raise ModelError(
            f"the file name {name!r:.120} has control characters or others that cannot be seen; it is refused"
        )
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        raise ModelError(f"the file name {name!r} leaves its folder; this archive or repository is not to be trusted")
    longest = max(len(part.encode()) for part in parts)
    if longest > _LONGEST_NAME or len(name.encode()) > _LONGEST_PATH:
        raise ModelError(
            f"the file name {name!r:.120}… has {longest} bytes in one part, at most {_LONGEST_NAME} are taken"
        )
    return str(PurePosixPath(name))


def require_distinct(paths: Sequence[str], source: str) -> None:
    """Check that files can lie beside each other.

    Raises:
        ModelError: two have one name, or one is another's folder.
    """
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    seen: set[str] = set()
    for path in paths:
        if path in seen or path in folders:
            how = "twice" if path in seen else "as a file and as a folder"
            raise ModelError(f"{source!r} lists {path!r} {how}; this archive or repository is not to be trusted")
        seen.add(path)


def require_weights(path: str, size: int, source: str) -> None:
    """Check that a file of weights holds some.

    Raises:
        ModelError: it is empty.
    """
    if size == 0 and path.lower().endswith(WEIGHTS):
        raise ModelError(f"{path!r} of {source!r} has 0 bytes, expected weights; choose another revision or model")


def require_free_name(model: str) -> None:
    """Check that a model does not lie where the cache keeps its own.

    Raises:
        ModelError: it would.
    """
    if model.lower() in (RECEIPT, DERIVED):
        raise ModelError(
            f"a model cannot be called {model!r}: the cache keeps its own under that name; use it by its path instead"
        )


def is_safe(name: str) -> bool:
    """Whether a file of this name is of a kind that reading cannot turn into running."""
    return PurePosixPath(name).suffix.lower() in SAFE_SUFFIXES


def copy_hashed(stream: IO[bytes], path: Path) -> tuple[int, str]:
    """Write `stream` to `path`, through to the disk, and return its bytes and SHA-256."""
    digest, size = sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        while block := stream.read(_CHUNK):
            out.write(block)
            digest.update(block)
            size += len(block)
        out.flush()
        os.fsync(out.fileno())
    return size, digest.hexdigest()


def require_space(folder: Path, needed: int, setting: str = "CHATKIT_MODELS_DIR") -> None:
    """Check that `needed` bytes fit.

    Raises:
        ModelError: they do not.
    """
    if shutil.disk_usage(folder).free < needed:
        raise full_disk(folder, needed, setting)


def full_disk(folder: Path, needed: int | None, setting: str = "CHATKIT_MODELS_DIR") -> ModelError:
    """Return the error for a disk without room; `needed` is None where the size was never announced."""
    wanted = f"{needed} bytes" if needed is not None else "more than that"
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    return ModelError(
        f"no room in {str(folder)!r}: the pull needs {wanted}, {free} bytes are free; "
        f"free some or set {setting} to another disk"
    )


@contextmanager
def disk_errors(folder: Path, needed: int | None = None, *, setting: str = "CHATKIT_MODELS_DIR") -> Iterator[None]:
    """Turn what the disk refuses into a ModelError that names the folder, and the setting that chooses another."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise full_disk(folder, needed, setting) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ModelError(f"{str(folder)!r} cannot be written; set {setting} to a folder of yours") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise ModelError(f"{str(folder)!r} cannot be made a folder; set {setting} to another") from error
        raise ModelError(f"the pull into {str(folder)!r} failed ({error})") from error


@contextmanager
def one_at_a_time(models_dir: Path, *, timeout: float, progress: Progress) -> Iterator[None]:
    """Hold the cache's lock, so that one process pulls and the others find what it brought.

    Raises:
        ModelError: another pull held it for `timeout` seconds.
    """
    from filelock import FileLock, Timeout

    models_dir.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(models_dir / ".lock"), models_dir / ".lock.pid"
    try:
        lock.acquire(timeout=min(timeout, 0.2))
    except Timeout:
        progress.note(f"waiting for another pull (pid {_pid(holder)})")
        try:
            lock.acquire(timeout=max(timeout - 0.2, 0.0), poll_interval=0.1)
        except Timeout:
            raise ModelError(
                f"another pull (pid {_pid(holder)}) still holds {str(models_dir)!r} after {timeout:g} s; "
                "wait for it or give more --timeout"
            ) from None
    try:
        holder.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        lock.release()


def _pid(holder: Path) -> str:
    try:
        return holder.read_text(encoding="ascii") or "unknown"
    except FileNotFoundError:
        return "unknown"


@contextmanager
def workspace(models_dir: Path, name: str, *, keep: bool = False) -> Iterator[Path]:
    """Give a folder on the cache's own disk for one pull; call it under the lock.

    What killed pulls left is removed first. Names that start RESUMABLE are kept, also when the network goes away: the
    next pull of the same source goes on from there.

    Args:
        keep: keep one of these after every error but damaged files, also one that has to do with no network.
    """
    root = models_dir / WORK
    work = root / name
    resumable = name.startswith(RESUMABLE)
    for left in root.glob("*"):
        if not left.name.startswith(RESUMABLE):
            shutil.rmtree(left, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    except (Offline, KeyboardInterrupt):
        if not resumable:
            shutil.rmtree(work, ignore_errors=True)
        raise
    except BaseException as error:
        if not (keep and resumable) or isinstance(error, BrokenModel):
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def land(work: Path, entry: Path, receipt: Receipt) -> None:
    """Make `work/entry` the entry folder, in one rename, replacing what was there."""
    fresh = work / "entry"
    stamped = {**asdict(receipt), "pulled_at": round(time.time(), 3)}
    with (fresh / RECEIPT).open("w", encoding="utf-8") as out:
        json.dump(stamped, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    for folder in [fresh, *(path for path in fresh.rglob("*") if path.is_dir())]:
        _sync(folder)
    entry.parent.mkdir(parents=True, exist_ok=True)
    if entry.exists():
        entry.rename(work / "old")
    fresh.rename(entry)
    _sync(entry.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
