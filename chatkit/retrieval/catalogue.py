"""What `chatkit index` shows and does: every index with its versions, and making one of them live."""

from dataclasses import dataclass
from pathlib import Path

from chatkit.errors import BadIndex, InvalidRequest
from chatkit.retrieval import published, versions, writing
from chatkit.retrieval.layout import VERSION, IndexFolder
from chatkit.retrieval.lexical import Lexical
from chatkit.retrieval.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Listed:
    """One index.

    Attributes:
        live: the live version; empty where the pointer names none.
        others: other versions that are kept, oldest first.
        bytes: size of the live version's files.
        encoder_matches: whether the encoder in use is the one it was built with; None where either is unknown.
        problem: why the live version cannot be used, with the command that mends it; empty for a good one.
        is_default: whether the settings name it.
    """

    name: str
    live: str
    others: tuple[str, ...]
    passages: int
    documents: int
    bytes: int
    encoder_matches: bool | None
    built_at: str
    problem: str
    is_default: bool


@dataclass(frozen=True, slots=True)
class Used:
    """What `use_version` did; `skipped` says of every version it passed over why it is bad."""

    name: str
    version: str
    before: str
    passages: int
    skipped: tuple[str, ...]


def list_indexes(indexes: Path, *, fingerprint: str | None, default: str) -> list[Listed]:
    """Return every index in the folder, checked as it would be when it is opened.

    Args:
        indexes: the folder of all indexes; it need not exist.
        fingerprint: of the encoder in use; None where it was not pulled.
        default: the index that the settings name.
    """
    rows = []
    for entry in sorted(indexes.iterdir()) if indexes.is_dir() else ():
        try:
            index = IndexFolder(indexes, entry.name)
        except InvalidRequest:
            continue
        if index.pointer() is not None or index.versions():
            rows.append(_listed(index, fingerprint, default))
    return rows


def _listed(index: IndexFolder, fingerprint: str | None, default: str) -> Listed:
    live, problem = "", ""
    manifest: Manifest | None = None
    try:
        with versions.advised(index, fingerprint):
            live = index.current()
            if (receipt := published.read_published(index.version_folder(live))) is not None:
                return _listed_copy(index, live, receipt, default)
            manifest = Manifest.read(index.version_folder(live))
            versions.check(index.version_folder(live), fingerprint)
    except BadIndex as error:
        problem = str(error)
    return Listed(
        name=index.name,
        live=live,
        others=tuple(version for version in index.versions() if version != live),
        passages=manifest.passages if manifest else 0,
        documents=manifest.documents if manifest else 0,
        bytes=sum(entry.size for entry in manifest.files.values()) if manifest else 0,
        encoder_matches=manifest.fingerprint == fingerprint if manifest and fingerprint else None,
        built_at=manifest.built_at if manifest else "",
        problem=problem,
        is_default=index.name == default,
    )


def _listed_copy(index: IndexFolder, live: str, receipt: published.Published, default: str) -> Listed:
    """Return the row of a published index, which is searched with the encoder that it names."""
    problem = ""
    try:
        receipt.check(index.version_folder(live))
    except BadIndex as error:
        problem = str(error)
    return Listed(
        name=index.name,
        live=live,
        others=tuple(version for version in index.versions() if version != live),
        passages=receipt.rows,
        documents=0,
        bytes=receipt.bytes,
        encoder_matches=None,
        built_at=receipt.prepared_at,
        problem=problem,
        is_default=index.name == default,
    )


def use_version(indexes: Path, name: str, wanted: str, *, fingerprint: str) -> Used:
    """Make a kept version the live one, after every byte of it was checked.

    Args:
        indexes: the folder of all indexes.
        name: the index.
        wanted: a version's number, `newest`, or `previous`: the newest good one before the live one.
        fingerprint: of the encoder that will query it.

    Raises:
        InvalidRequest: `wanted` or the name is malformed.
        BadIndex: there is no such version, or it is bad; what was live stays so.
        Unavailable: the index is being built.
    """
    if wanted not in ("previous", "newest") and not VERSION.fullmatch(wanted):
        raise InvalidRequest(f"the version is {wanted[:40]!r}, expected a number such as 000001, previous or newest")
    index = IndexFolder(indexes, name)
    if not index.versions():
        raise BadIndex(
            f"there is no index {name!r} in {str(indexes)!r}; build it with: "
            f"chatkit prepare-index SOURCE… --name {name}"
        )
    with index.locked():
        pointer = index.pointer()
        candidates = _candidates(index, wanted)
        version, manifest, skipped = _first_good(index, candidates, fingerprint)
        try:
            index.make_live(version)
        except OSError as error:
            raise BadIndex(f"{str(index.folder)!r} cannot be written ({error.strerror}); set --home") from error
    before = pointer.text if pointer is not None else ""
    return Used(name, version, before, manifest.passages, tuple(skipped))


def _candidates(index: IndexFolder, wanted: str) -> list[str]:
    kept = index.versions()
    if wanted == "newest":
        return kept[-1:]
    found = versions.before_live(index) if wanted == "previous" else [v for v in kept if v == wanted]
    if not found:
        what = "version before the live one" if wanted == "previous" else f"version {wanted}"
        raise BadIndex(f"there is no {what} of the index {index.name!r}, expected one of {', '.join(kept)}")
    return found


def _first_good(index: IndexFolder, candidates: list[str], fingerprint: str) -> tuple[str, Manifest, list[str]]:
    problems: list[str] = []
    for version in candidates:
        folder = index.version_folder(version)
        try:
            manifest = versions.check(folder, fingerprint, hashes=True)
            for part in writing.read_both(folder, manifest):
                part.close()
            if manifest.lexical is not None:
                Lexical.open(folder, manifest).close()
        except BadIndex as error:
            last = error
            problems.append(str(error))
        else:
            return version, manifest, problems
    raise type(last)(f"{last}; nothing was changed; {versions.remedy(index, fingerprint)}") from last
