"""Getting OpenChatKit's published index: downloaded once, checked against the hub's hashes, laid out and made live."""

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatkit.errors import BadIndex, InvalidRequest, ModelError, Unavailable
from chatkit.settings import Settings

if TYPE_CHECKING:
    from chatkit.models.cache import Progress
    from chatkit.models.transfer import HubFile
    from chatkit.retrieval.layout import IndexFolder
    from chatkit.retrieval.published import Locked, Published, PublishedFile

REPOSITORY = "ChristophSchuhmann/wikipedia-3sentence-level-retrieval-index"
ENCODER = "hf:facebook/contriever-msmarco"
# Seconds to wait for another process that downloads: 40 GB at 4 MB/s.
TIMEOUT_S = 3 * 3600.0
_FICLONE = 0x40049409  # of Linux; other systems refuse it
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The table `[openchatkit]` of a recipe.

    Attributes:
        repository: ORG/NAME of a data set on the hub.
        revision: commit, tag or branch; of a branch the commit that is received first is locked, with its hashes.
        folder: a copy that is here already, in the place of the repository.
        encoder: source of the encoder that the index was built with; "" for the service's own.
        sha256: file name → hash that it must have, beside what the hub says.
    """

    repository: str = REPOSITORY
    revision: str = "main"
    folder: str = ""
    encoder: str = ENCODER
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Wanted":
        """Read the table.

        Raises:
            InvalidRequest: a key is unknown or its value is wrong.
        """
        known = [spec.name for spec in fields(cls)]
        for name, value in options.items():
            if name not in known:
                raise InvalidRequest(f"openchatkit has {name!r}, expected only {', '.join(known)}")
            ok = _are_hashes(value) if name == "sha256" else isinstance(value, str)
            if not ok:
                raise InvalidRequest(f"openchatkit.{name} is {value!r:.200}, expected {_EXPECTED.get(name, 'a text')}")
        wanted = cls(**options)
        if not _NAME.fullmatch(wanted.repository) or not wanted.revision or ".." in wanted.revision.split("/"):
            raise InvalidRequest(
                f"openchatkit has repository {wanted.repository!r:.120} at {wanted.revision!r:.80}, "
                "expected ORG/NAME and a commit, tag or branch"
            )
        return wanted

    @property
    def source(self) -> str:
        """What is got, as errors and the receipt name it."""
        return self.folder or f"hf:datasets/{self.repository}@{self.revision}"


_EXPECTED = {"sha256": "a table of the file names knn.index, wikipedia-en-sentences.parquet and 64 hexadecimal digits"}


def _are_hashes(value: Any) -> bool:
    from chatkit.retrieval.published import FILES

    return isinstance(value, Mapping) and all(
        name in FILES and re.fullmatch("[0-9a-f]{64}", str(digest)) for name, digest in value.items()
    )


@dataclass(frozen=True, slots=True)
class PreparedIndex:
    """What `prepare_openchatkit` did.

    Attributes:
        up_to_date: it was there, and nothing was asked for.
        sha256: hash of each file, to be written into a recipe that pins them.
    """

    name: str
    folder: Path
    version: str
    source: str
    commit: str
    rows: int
    bytes: int
    sha256: Mapping[str, str]
    seconds: float
    up_to_date: bool


def prepare_openchatkit(
    settings: Settings,
    options: Mapping[str, Any],
    *,
    name: str = "wikipedia",
    timeout: float = TIMEOUT_S,
    force: bool = False,
    progress: "Progress | None" = None,
) -> PreparedIndex:
    """Get the published index, lay out its texts, and make it the live version of the index `name`.

    Processes that do this at once wait for the first one, and find what it brought. A download that broke off, or was
    killed, goes on where it was; what arrived outlasts every error but a wrong hash. What is there already, of the
    same revision, is not asked for again. Of a hub's source the commit and hashes are locked when it is first received
    (`published.LOCK`, beside the versions): from then on that commit is asked for, and has to be the same.

    Args:
        settings: says where indexes are.
        options: the table `[openchatkit]` of the recipe.
        timeout: seconds to wait for another process.
        force: get it again.
        progress: is told how it goes.

    Raises:
        InvalidRequest: the options are wrong.
        Offline: the hub cannot be reached; what arrived is kept for the next call.
        BrokenModel: a file has another hash than the hub, the recipe or the lock says.
        ModelError: the hub refuses, or has no such repository or file; or there is no room.
        BrokenIndex: the two files do not belong together.
        Unavailable: another process still prepares it after `timeout`.
    """
    from chatkit.models.cache import Silent
    from chatkit.retrieval.layout import IndexFolder

    wanted = Wanted.from_options(options)
    index = IndexFolder(settings.indexes, name)
    began = time.monotonic()
    told = progress or Silent()
    found = None if force else _there(index, wanted)
    if found is not None:
        return _report(index, *found, wanted, began, up_to_date=True)
    with _locked(index, timeout, told):
        found = None if force else _there(index, wanted)
        up_to_date = found is not None
        version, receipt = found or _get(index, wanted, told)
    return _report(index, version, receipt, wanted, began, up_to_date=up_to_date)


def _locked(index: "IndexFolder", timeout: float, progress: "Progress") -> Any:
    """Hold the index's lock; say so when that means to wait."""
    from contextlib import ExitStack

    stack = ExitStack()
    try:
        stack.enter_context(index.locked(min(timeout, 0.2)))
    except Unavailable:
        progress.note(f"waiting for another process that prepares the index {index.name!r}")
        try:
            stack.enter_context(index.locked(max(timeout - 0.2, 0.0)))
        except Unavailable:
            raise Unavailable(
                f"another process still prepares the index {index.name!r} after {timeout:g} s; run this again later"
            ) from None
    return stack


def _there(index: "IndexFolder", wanted: Wanted) -> "tuple[str, Published] | None":
    """Return the live version and its receipt where that is what is wanted, and whole."""
    from chatkit.retrieval.published import read_published

    try:
        version = index.current()
        receipt = read_published(index.version_folder(version))
        if receipt is None:
            return None
        receipt.check(index.version_folder(version))
    except BadIndex:
        return None
    source = wanted.folder or wanted.repository
    same = receipt.repository == source and wanted.revision in (receipt.revision, receipt.commit)
    pins = _pins(wanted, _lock(index, wanted))
    pinned = all(receipt.files[name].sha256 == digest for name, digest in pins.items())
    kept = same and pinned and receipt.encoder == wanted.encoder and not _changed(wanted, receipt.files)
    return (version, receipt) if kept else None


def _lock(index: "IndexFolder", wanted: Wanted) -> "Locked | None":
    """Return what this source was when it was first received, None where the recipe says itself what it has to be."""
    from chatkit.retrieval.published import read_locks

    lock = None if wanted.folder else read_locks(index.folder).get(wanted.source)
    return lock if lock is not None and not set(wanted.sha256.items()) - set(lock.sha256.items()) else None


def _pins(wanted: Wanted, lock: "Locked | None") -> dict[str, str]:
    return {**(lock.sha256 if lock is not None else {}), **wanted.sha256}


def _changed(wanted: Wanted, files: "Mapping[str, PublishedFile]") -> bool:
    """Whether a file of the folder that was copied is another one now; it need not be there any more."""
    if not wanted.folder:
        return False
    for name, file in files.items():
        path = _folder(wanted) / name
        if path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) != (file.bytes, file.mtime_ns):
            return True
    return False


def _folder(wanted: Wanted) -> Path:
    return Path(os.path.expanduser(wanted.folder))


def _get(index: "IndexFolder", wanted: Wanted, progress: "Progress") -> "tuple[str, Published]":
    from chatkit.models import cache
    from chatkit.retrieval.published import Locked, Published, write_lock
    from chatkit.retrieval.reconstruction import require_faiss
    from chatkit.retrieval.wikipedia import PARQUET

    require_faiss()  # hours before it is needed
    pointer, lock = index.pointer(), _lock(index, wanted)
    slug = re.sub(r"[^\w.@-]", "--", wanted.source)[-180:]
    space = cache.workspace(index.folder, f"hf-{slug}", keep=not wanted.folder)
    with cache.disk_errors(index.folder, setting="--home"), space as work:
        if wanted.folder:
            commit, folder, files = _from_folder(wanted, work, progress)
        else:
            commit, folder, files = _from_hub(wanted, lock, work, progress)
        cache.require_space(work, _sidecar_bytes(files[PARQUET].bytes), "--home")
        progress.note("laying out the texts")
        rows = _lay_out(folder, _Rows(progress))
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        source = wanted.folder or wanted.repository
        receipt = Published(source, wanted.revision, commit, wanted.encoder, rows, files, stamp)
        receipt.write(folder)
        published = index.publish(folder, keep=[pointer.text] if pointer is not None else [])
        if not wanted.folder:
            digests = {name: file.sha256 for name, file in files.items()}
            write_lock(index.folder, wanted.source, Locked(commit, digests))
    return published.name, receipt


def _lay_out(folder: Path, tell: Callable[[int, int], None]) -> int:
    """Make the sidecar, check that index and texts belong together, and return their rows."""
    from chatkit.retrieval.wikipedia import lay_out

    return lay_out(folder, tell)


def _sidecar_bytes(parquet: int) -> int:
    """Return room for the texts that are laid out beside a Parquet file: four fifths of one of text alone."""
    return parquet


def _from_hub(
    wanted: Wanted, lock: "Locked | None", work: Path, progress: "Progress"
) -> "tuple[str, Path, dict[str, PublishedFile]]":
    """Download the files into a folder of `work` that bears the commit's name."""
    from chatkit.models import cache
    from chatkit.models.huggingface import HuggingFace
    from chatkit.models.transfer import Transfer, open_client
    from chatkit.retrieval.published import FILES, PublishedFile
    from chatkit.retrieval.wikipedia import PARQUET

    revision = lock.commit if lock is not None else wanted.revision
    source = replace(wanted, revision=revision).source
    site = HuggingFace.of_user(source, datasets=True)
    with open_client(site) as client:
        transfer = Transfer(client, site, wanted.repository, source, progress)
        listing = transfer.listing(revision)
        listed = {file.path: file for file in listing.files}
        if missing := [name for name in FILES if name not in listed]:
            raise ModelError(f"{source!r} has no file {missing[0]!r}; name another repository or revision")
        pins = _pins(wanted, lock)
        chosen = [_pinned(listed[name], pins) for name in FILES]
        for left in work.iterdir():
            if left.name != listing.commit:
                shutil.rmtree(left)
        folder = work / listing.commit
        folder.mkdir(exist_ok=True)
        held = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        needed = max(sum(file.bytes for file in chosen) - held, 0) + _sidecar_bytes(listed[PARQUET].bytes)
        cache.require_space(work, needed, "--home")
        hashes = [transfer.bring(file, folder / file.path, listing.commit) for file in chosen]
    files = {file.path: PublishedFile(file.bytes, digest) for file, digest in zip(chosen, hashes, strict=True)}
    return listing.commit, folder, files


def _pinned(file: "HubFile", pins: Mapping[str, str]) -> "HubFile":
    """Return the file with a pinned hash in the place of the hub's; both the same, or the pinned one holds."""
    from chatkit.models.transfer import HubFile

    return HubFile(file.path, file.bytes, pins.get(file.path, file.sha256), file.blob)


def _from_folder(wanted: Wanted, work: Path, progress: "Progress") -> "tuple[str, Path, dict[str, PublishedFile]]":
    """Copy the files of a folder that is here, so that a later change to them changes no live version."""
    from chatkit.errors import BrokenModel
    from chatkit.models import cache
    from chatkit.retrieval.checkpoint import sha256_of
    from chatkit.retrieval.published import FILES, PublishedFile

    origin = _folder(wanted)
    folder = work / "local"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {}
    for name in FILES:
        if not (origin / name).is_file():
            raise ModelError(f"there is no {name!r} in {str(origin)!r}; name a folder that has {' and '.join(FILES)}")
        progress.note(f"taking {name} from {origin}")
        stat = (origin / name).stat()
        if not _cloned(origin / name, folder / name):
            cache.require_space(work, stat.st_size, "--home")
            shutil.copyfile(origin / name, folder / name)
        digest = sha256_of(folder / name)
        if (expected := wanted.sha256.get(name, digest)) != digest:
            raise BrokenModel(f"{str(origin / name)!r} has SHA-256 {digest}, expected {expected}; nothing was kept")
        files[name] = PublishedFile((folder / name).stat().st_size, digest, stat.st_mtime_ns)
    return "", folder, files


def _cloned(origin: Path, target: Path) -> bool:
    """Copy a file without its bytes, where the file system can share them until one of both is written to."""
    import fcntl

    with origin.open("rb") as source, target.open("wb") as out:
        try:
            fcntl.ioctl(out, _FICLONE, source.fileno())
        except OSError:
            return False
    return True


class _Rows:
    """Tells a progress of bytes about rows, a hundred times at most."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._share = -1

    def __call__(self, done: int, total: int) -> None:
        """Take how many rows are laid out."""
        share = 10 * done // max(total, 1)
        if share > self._share:
            self._share = share
            self._progress.note(f"laid out {done} of {total} rows")


def _report(
    index: "IndexFolder", version: str, receipt: "Published", wanted: Wanted, began: float, *, up_to_date: bool
) -> PreparedIndex:
    return PreparedIndex(
        name=index.name,
        folder=index.version_folder(version),
        version=version,
        source=wanted.source,
        commit=receipt.commit,
        rows=receipt.rows,
        bytes=receipt.bytes,
        sha256={name: file.sha256 for name, file in receipt.files.items()},
        seconds=time.monotonic() - began,
        up_to_date=up_to_date,
    )
