"""Repositories of model hubs, fetched over HTTPS: pinned to a commit, verified, and resumed where they broke off."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chatkit.errors import ModelError
from chatkit.models import cache
from chatkit.models.cache import CachedFile, Progress, Receipt
from chatkit.models.huggingface import HuggingFace
from chatkit.models.modelscope import ModelScope
from chatkit.models.transfer import Hub, HubFile, Listing, Transfer, open_client

_FORM = re.compile(r"(?P<kind>hf|modelscope):(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^#@\s]+))?(?:#(?P<file>.+))?")
_HUBS: Mapping[str, Callable[[str], Hub]] = {"hf": HuggingFace.of_user, "modelscope": ModelScope.of_user}
_DEFAULT_REVISIONS = {"hf": "main", "modelscope": "master"}


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at a revision, or one file of it; `kind` is the word before the colon."""

    kind: str
    name: str
    revision: str
    file: str = ""

    @classmethod
    def parse(cls, source: str) -> "HubRepository | None":
        """Read `hf:ORG/NAME[@REV][#FILE]` and the same after `modelscope:`; None for another form."""
        match = _FORM.fullmatch(source)
        if match is None:
            return None
        revision = match["revision"] or _DEFAULT_REVISIONS[match["kind"]]
        if {".", ".."} & {*match["name"].split("/"), *revision.split("/")} or not revision.isprintable():
            raise ModelError(f"{source!r:.200} names no repository, expected {match['kind']}:ORG/NAME[@REV][#FILE]")
        file = cache.relative(match["file"]) if match["file"] else ""
        if file and not cache.is_safe(file):
            kinds = ", ".join(sorted(cache.SAFE_SUFFIXES))
            raise ModelError(f"{file!r} of {match['name']!r} is not of a kind that is read safely; expected {kinds}")
        return cls(match["kind"], match["name"], revision, file)

    def __str__(self) -> str:
        """Return the source as a user writes it."""
        return f"{self.kind}:{self.name}@{self.revision}" + (f"#{self.file}" if self.file else "")

    @property
    def slug(self) -> str:
        """The readable part of the entry folder's name."""
        return re.sub(r"[^\w.@-]", "--", f"{self.name}@{self.revision}")

    @property
    def model(self) -> str:
        """What the model's file or folder is called in the entry folder."""
        return PurePosixPath(self.file).name or self.name.split("/")[1]


def fetch(wanted: HubRepository, work: Path, *, progress: Progress) -> Receipt:
    """Download what is wanted of a repository into `work/entry`.

    What arrived before the network went away stays in `work`, and the next call goes on from there.

    Raises:
        Offline: the hub cannot be reached.
        BrokenModel: a file has another hash or size than the hub announced.
        ModelError: refused, not there, without safe weights, or no room.
    """
    site = _HUBS[wanted.kind](str(wanted))
    with open_client(site) as client:
        transfer = Transfer(client, site, wanted.name, str(wanted), progress)
        listing = transfer.listing(wanted.revision)
        chosen = _choose(wanted, listing)
        for file in chosen:
            cache.require_weights(file.path, file.bytes, str(wanted))
        parts = _parts(work, listing.commit)
        held = sum(path.stat().st_size for path in parts.rglob("*") if path.is_file())
        needed = max(sum(file.bytes for file in chosen) - held, 0)
        cache.require_space(work, needed)
        with cache.disk_errors(work, needed):
            hashes = [transfer.bring(file, parts / file.path, listing.commit) for file in chosen]
    model = wanted.model
    received = []
    for file, digest in zip(chosen, hashes, strict=True):
        path = model if wanted.file else f"{model}/{file.path}"
        (work / "entry" / path).parent.mkdir(parents=True, exist_ok=True)
        (parts / file.path).replace(work / "entry" / path)
        received.append(CachedFile(path, file.bytes, digest, verified=bool(file.sha256 or file.blob)))
    page = site.page(wanted.name)
    return Receipt(str(wanted), model, tuple(received), listing.licence, revision=listing.commit, page=page)


def _parts(work: Path, commit: str) -> Path:
    """Return the folder for files of this commit; what another one left is of no use."""
    for left in work.iterdir():
        if left.name != commit:
            shutil.rmtree(left)
    (work / commit).mkdir(exist_ok=True)
    return work / commit


def _choose(wanted: HubRepository, listing: Listing) -> Sequence[HubFile]:
    """Return the files to download: the named one, or everything that is safe to read.

    Raises:
        ModelError: nothing to choose, or a choice that only the user can make.
    """
    if wanted.file:
        named = [file for file in listing.files if file.path == wanted.file]
        if not named:
            near = ", ".join(repr(file.path) for file in listing.files if file.path.endswith(cache.WEIGHTS)) or "none"
            raise ModelError(f"{wanted.name!r} has no file {wanted.file!r} at {wanted.revision!r}; its weights: {near}")
        return named
    if not listing.complete:
        raise ModelError(
            f"{wanted.name!r} has more files than the hub lists at once; name one: {wanted.kind}:{wanted.name}#FILE"
        )
    safe = [file for file in listing.files if cache.is_safe(file.path)]
    if not any(file.path.endswith(cache.WEIGHTS) for file in safe):
        raise ModelError(
            f"{wanted.name!r} holds neither safetensors nor GGUF weights; pickled ones are never loaded: "
            "choose a repository or revision that has safe ones"
        )
    # Repositories of GGUF files hold one model in many precisions; the parts of a split file count once.
    ggufs = sorted({re.sub(r"-\d+-of-\d+(?=\.gguf$)", "", f.path) for f in safe if f.path.endswith(".gguf")})
    if len(ggufs) > 1:
        raise ModelError(
            f"{wanted.name!r} holds {len(ggufs)} GGUF models; name one: {wanted.kind}:{wanted.name}#FILE of {ggufs}"
        )
    return safe
