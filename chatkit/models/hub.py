"""Repositories of the model hub, fetched over HTTPS: pinned to a commit, verified, and resumed where they broke off."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from chatkit.errors import BrokenModel, ModelError, Offline
from chatkit.models import cache
from chatkit.models.cache import CachedFile, Progress, Receipt

if TYPE_CHECKING:
    import httpx

HUB = "https://huggingface.co"
_FORM = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^#@\s]+))?(?:#(?P<file>.+))?")
_WEIGHTS = (".safetensors", ".gguf")
_CHUNK = 1 << 20
# Seconds before each new try of a request that brought nothing.
_PAUSES_S = (0.2, 0.6, 1.5)
_LATER = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at a revision, or one file of it."""

    name: str
    revision: str = "main"
    file: str = ""

    @classmethod
    def parse(cls, source: str) -> "HubRepository | None":
        """Read `hf:ORG/NAME[@REV][#FILE]`; None for another form."""
        match = _FORM.fullmatch(source)
        if match is None:
            return None
        file = cache.relative(match["file"]) if match["file"] else ""
        if file and not cache.is_safe(file):
            kinds = ", ".join(sorted(cache.SAFE_SUFFIXES))
            raise ModelError(f"{file!r} of {match['name']!r} is not of a kind that is read safely; expected {kinds}")
        return cls(match["name"], match["revision"] or "main", file)

    def __str__(self) -> str:
        """Return the source as a user writes it."""
        return f"hf:{self.name}@{self.revision}" + (f"#{self.file}" if self.file else "")

    @property
    def slug(self) -> str:
        """The readable part of the entry folder's name."""
        return re.sub(r"[^\w.@-]", "--", f"{self.name}@{self.revision}")


@dataclass(frozen=True, slots=True)
class _File:
    """One file as the hub lists it: LFS files carry a SHA-256, the others their git blob id."""

    path: str
    bytes: int
    sha256: str
    blob: str


@dataclass(frozen=True, slots=True)
class _Listing:
    commit: str
    licence: str
    files: tuple[_File, ...]


class _TryLater(Exception):
    """The hub answered, but not with the file."""


def fetch(wanted: HubRepository, work: Path, *, progress: Progress) -> Receipt:
    """Download what is wanted of a repository into `work/entry`.

    What arrived before the network went away stays in `work`, and the next call goes on from there.

    Raises:
        Offline: the hub cannot be reached.
        BrokenModel: a file has another hash or size than the hub announced.
        ModelError: refused, not there, without safe weights, or no room.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise Offline(
            f"{str(wanted)!r} is not here and HF_HUB_OFFLINE forbids to fetch it; unset it or use a local path"
        )
    with _client(endpoint) as client:
        download = _Download(client, endpoint, wanted, progress)
        listing = download.listing()
        chosen = _choose(wanted, listing)
        parts = _parts(work, listing.commit)
        held = sum(path.stat().st_size for path in parts.rglob("*") if path.is_file())
        needed = max(sum(file.bytes for file in chosen) - held, 0)
        cache.require_space(work, needed)
        with cache.disk_errors(work, needed):
            hashes = [download.bring(file, parts / file.path, listing.commit) for file in chosen]
    model = PurePosixPath(wanted.file).name or wanted.name.split("/")[1]
    received = []
    for file, digest in zip(chosen, hashes, strict=True):
        path = model if wanted.file else f"{model}/{file.path}"
        (work / "entry" / path).parent.mkdir(parents=True, exist_ok=True)
        (parts / file.path).replace(work / "entry" / path)
        received.append(CachedFile(path, file.bytes, digest, verified=bool(file.sha256 or file.blob)))
    page = f"{endpoint}/{wanted.name}"
    return Receipt(str(wanted), model, tuple(received), listing.licence, revision=listing.commit, page=page)


def _parts(work: Path, commit: str) -> Path:
    """Return the folder for files of this commit; what another one left is of no use."""
    for left in work.iterdir():
        if left.name != commit:
            shutil.rmtree(left)
    (work / commit).mkdir(exist_ok=True)
    return work / commit


def _client(endpoint: str) -> "httpx.Client":
    """Return a client whose token leaves for the hub's own host only: httpx drops it on a redirect to another."""
    import httpx

    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelError(f"HF_ENDPOINT is {endpoint!r}, expected an address that starts https://")
    secure = parts.scheme == "https"

    def no_downgrade(request: httpx.Request) -> None:
        if secure and request.url.scheme != "https":
            raise ModelError(f"{parts.hostname!r} sent the download to {request.url.host!r} without TLS; it is refused")

    headers = {"User-Agent": "chatkit", "Accept-Encoding": "identity"}
    if token := _token():
        if not secure and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ModelError(
                f"HF_ENDPOINT is {endpoint!r}: the token is not sent without TLS; use https:// or no token"
            )
        headers["Authorization"] = f"Bearer {token}"
    return httpx.Client(
        headers=headers,
        follow_redirects=True,
        timeout=httpx.Timeout(30.0, connect=5.0),
        event_hooks={"request": [no_downgrade]},
    )


def _token() -> str:
    """Return the hub token of this user, "" where there is none."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _read(table: dict[str, Any]) -> _Listing:
    card = table.get("cardData") or {}
    tags = [tag.removeprefix("license:") for tag in table.get("tags", ()) if tag.startswith("license:")]
    licence = card.get("license") or ", ".join(tags)
    files = []
    for row in table["siblings"]:
        lfs = row.get("lfs") or {}
        path = cache.relative(row["rfilename"])
        blob = "" if lfs else row.get("blobId", "")
        files.append(_File(path, int(row["size"]), lfs.get("sha256", ""), blob))
    if not re.fullmatch("[0-9a-f]{40,64}", table["sha"]):
        raise ValueError(f"the commit is {table['sha'][:80]!r}")
    return _Listing(table["sha"], licence if isinstance(licence, str) else ", ".join(licence), tuple(files))


def _choose(wanted: HubRepository, listing: _Listing) -> Sequence[_File]:
    """Return the files to download: the named one, or everything that is safe to read.

    Raises:
        ModelError: nothing to choose, or a choice that only the user can make.
    """
    if wanted.file:
        named = [file for file in listing.files if file.path == wanted.file]
        if not named:
            near = ", ".join(repr(file.path) for file in listing.files if file.path.endswith(_WEIGHTS)) or "none"
            raise ModelError(f"{wanted.name!r} has no file {wanted.file!r} at {wanted.revision!r}; its weights: {near}")
        return named
    safe = [file for file in listing.files if cache.is_safe(file.path)]
    if not any(file.path.endswith(_WEIGHTS) for file in safe):
        raise ModelError(
            f"{wanted.name!r} holds neither safetensors nor GGUF weights; pickled ones are never loaded: "
            "choose a repository or revision that has safe ones"
        )
    # Repositories of GGUF files hold one model in many precisions; the parts of a split file count once.
    ggufs = sorted({re.sub(r"-\d+-of-\d+(?=\.gguf$)", "", f.path) for f in safe if f.path.endswith(".gguf")})
    if len(ggufs) > 1:
        raise ModelError(f"{wanted.name!r} holds {len(ggufs)} GGUF models; name one: hf:{wanted.name}#FILE of {ggufs}")
    return safe


@dataclass(frozen=True, slots=True)
class _Download:
    """One pull's requests."""

    client: "httpx.Client"
    endpoint: str
    wanted: HubRepository
    progress: Progress

    def listing(self) -> _Listing:
        """Return the commit that the revision stands for, and its files."""
        import httpx

        url = f"{self.endpoint}/api/models/{self.wanted.name}/revision/{quote(self.wanted.revision, safe='')}"
        failures = 0
        while True:
            try:
                answer = self.client.get(url, params={"blobs": "true"})
                self._check(answer)
                return _read(answer.json())
            except (httpx.TransportError, _TryLater) as error:
                self._pause(failures, error)
                failures += 1
            except (ValueError, KeyError, TypeError, AttributeError, httpx.TooManyRedirects) as error:
                raise ModelError(
                    f"{self.endpoint!r} did not answer like a model hub for {self.wanted.name!r} ({error}); "
                    "check HF_ENDPOINT"
                ) from error

    def bring(self, file: _File, part: Path, commit: str) -> str:
        """Download one file to `part`, going on where an earlier try broke off, and return its verified SHA-256."""
        import httpx

        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        url = f"{self.endpoint}/{self.wanted.name}/resolve/{commit}/{quote(file.path)}"
        failures = 0
        while (start := part.stat().st_size) != file.bytes:
            cut: Exception = _TryLater("with less than the whole file")
            try:
                self._receive(url, file, part, start)
            except (httpx.TransportError, _TryLater) as error:
                cut = error
            if part.stat().st_size > start:
                failures = 0  # it goes on, if slowly
            else:
                self._pause(failures, cut)
                failures += 1
        self.progress.received(file.path, file.bytes, file.bytes)
        return _verified(part, file, self.wanted)

    def _receive(self, url: str, file: _File, part: Path, start: int) -> None:
        """Append what one answer brings to `part`, from byte `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self.client.stream("GET", url, headers=headers) as answer:
            self._check(answer)
            if answer.status_code == 416:
                part.write_bytes(b"")
                raise _TryLater("status 416")
            resumed = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            )
            done = start if resumed else 0
            with part.open("ab" if resumed else "wb") as out:
                for block in answer.iter_raw():
                    done += len(block)
                    if done > file.bytes:
                        raise BrokenModel(
                            f"{file.path!r} of {str(self.wanted)!r} is longer than its {file.bytes} bytes"
                        )
                    out.write(block)
                    self.progress.received(file.path, done, file.bytes)
                out.flush()
                os.fsync(out.fileno())

    def _check(self, answer: "httpx.Response") -> None:
        """Turn a refusal into the error that says what to do."""
        status, page = answer.status_code, f"{self.endpoint}/{self.wanted.name}"
        if status in (401, 403):
            raise ModelError(
                f"the hub refused {str(self.wanted)!r} ({status}): it has a licence to accept, is private or does not "
                f"exist; open {page} , accept the licence there, then set HF_TOKEN"
            )
        if status == 404:
            raise ModelError(
                f"the hub has no {str(self.wanted)!r}; check the name, the revision and the file at {page}"
            )
        if status in _LATER:
            raise _TryLater(f"status {status}")
        if status not in (200, 206, 416):
            raise ModelError(f"the hub answered {status} for {str(self.wanted)!r}, expected 200; see {page}")

    def _pause(self, failures: int, error: Exception) -> None:
        """Wait before the next try, or give up."""
        import httpx

        if failures < len(_PAUSES_S) and not isinstance(error, httpx.ConnectTimeout):
            time.sleep(_PAUSES_S[failures])
            return
        host, source = urlsplit(self.endpoint).netloc, str(self.wanted)
        if isinstance(error, _TryLater):
            raise Offline(f"{host!r} keeps answering {error} for {source!r}; try again later") from error
        raise Offline(
            f"cannot reach {host!r} for {source!r} ({error or type(error).__name__}); connect and pull again, "
            "set HF_ENDPOINT to a mirror, or use a model that is already here by its path"
        ) from error


def _verified(part: Path, file: _File, wanted: HubRepository) -> str:
    digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    with part.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
            blob.update(block)
    for kind, actual, published in (("SHA-256", digest, file.sha256), ("git blob id", blob, file.blob)):
        if published and actual.hexdigest() != published:
            raise BrokenModel(
                f"{file.path!r} of {str(wanted)!r} has {kind} {actual.hexdigest()}, "
                f"expected {published}; nothing was kept"
            )
    return digest.hexdigest()
