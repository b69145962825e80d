"""Requests to a model hub: retried, resumed where they broke off, and compared with what the hub publishes.

What differs between hubs is a `Hub`; `huggingface` and `modelscope` are the two.
"""

import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult, urlsplit

from chatkit.errors import BrokenModel, ModelError, Offline
from chatkit.models import cache
from chatkit.models.cache import Progress

if TYPE_CHECKING:
    import httpx

_CHUNK = 1 << 20
# Seconds before each new try of a request that brought nothing.
_PAUSES_S = (0.2, 0.6, 1.5)
_LATER = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file as a hub lists it.

    Attributes:
        sha256: "" where the hub publishes none.
        blob: the git blob id, "" where the hub publishes none.
    """

    path: str
    bytes: int
    sha256: str = ""
    blob: str = ""

    @classmethod
    def listed(cls, path: object, size: object, sha256: object = "", blob: object = "") -> "HubFile":
        """Return one row of a hub's listing, after a look at everything in it.

        Raises:
            ValueError: a field is none.
            ModelError: the name cannot be a file's.
        """
        if not isinstance(path, str) or isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"the file {path!r:.120} has size {size!r:.40}")
        hashes = [str(value or "").lower() for value in (sha256, blob)]
        if not re.fullmatch("(?:[0-9a-f]{64})? (?:[0-9a-f]{40}|[0-9a-f]{64})?", " ".join(hashes)):
            raise ValueError(f"the file {path!r:.120} has hashes {sha256!r:.80} and {blob!r:.80}")
        return cls(cache.relative(path), size, *hashes)


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit.

    Attributes:
        complete: False where the hub may have left files out.
    """

    commit: str
    licence: str
    files: tuple[HubFile, ...]
    complete: bool = True


class Hub(Protocol):
    """One hub: its address and this user's token there, its URLs, and how its answers are read."""

    @property
    def endpoint(self) -> str:
        """The address that all others start with, without a slash at its end."""
        ...

    @property
    def endpoint_variable(self) -> str:
        """The variable that sets the endpoint."""
        ...

    @property
    def token_variable(self) -> str:
        """The variable that sets the token."""
        ...

    def credentials(self) -> Mapping[str, str]:
        """Return the headers that carry the token, none without one."""
        ...

    def page(self, name: str) -> str:
        """Return the address of a repository for people."""
        ...

    def address(self, name: str, commit: str, path: str) -> str:
        """Return where a file is downloaded from."""
        ...

    def status(self, answer: "httpx.Response") -> int:
        """Return the HTTP status that an answer stands for, which need not be the one it was sent with."""
        ...

    def listing(self, transfer: "Transfer", name: str, revision: str) -> Listing:
        """Return the commit that the revision stands for, and its files."""
        ...


def usable_token(value: str, where: str) -> str:
    """Return a token without the spaces around it.

    Raises:
        ModelError: no header can carry it; the error names `where` it is kept, and never the token.
    """
    token = value.strip()
    if not (token.isascii() and token.isprintable()):
        raise ModelError(f"the token in {where} has characters that no HTTP header takes, expected printable ASCII")
    return token


class TryLater(Exception):
    """The hub answered, but not with what was asked for."""


def open_client(hub: Hub) -> "httpx.Client":
    """Return a client whose token leaves for the hub's own host only: httpx drops it on a redirect to another."""
    import httpx

    parts = _address(hub)
    secure = parts.scheme == "https"

    def no_downgrade(request: httpx.Request) -> None:
        if secure and request.url.scheme != "https":
            raise ModelError(f"{parts.hostname!r} sent the download to {request.url.host!r} without TLS; it is refused")

    credentials = hub.credentials()
    if credentials and not secure and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ModelError(
            f"{hub.endpoint_variable} is {hub.endpoint!r}: the token is not sent without TLS; use https:// or no token"
        )
    try:
        return httpx.Client(
            headers={"User-Agent": "chatkit", "Accept-Encoding": "identity", **credentials},
            follow_redirects=True,
            timeout=httpx.Timeout(30.0, connect=5.0),
            event_hooks={"request": [no_downgrade]},
        )
    except (ValueError, ImportError, httpx.InvalidURL):  # its words hold the proxy's password
        raise ModelError(
            "the proxy of HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used, expected http://HOST:PORT"
        ) from None


def _address(hub: Hub) -> SplitResult:
    """Return the endpoint's parts; it is shown in errors and kept in receipts, so it holds no secret."""
    if "@" in hub.endpoint:
        raise ModelError(
            f"{hub.endpoint_variable} has a user or password, expected an address without; "
            f"a token goes into {hub.token_variable}"
        )
    try:
        parts = urlsplit(hub.endpoint)
        whole = parts.hostname and parts.port != 0 and hub.endpoint.isprintable() and not parts.query + parts.fragment
    except ValueError:
        whole = False
    if not whole or parts.scheme not in ("http", "https"):
        shown = re.sub(r"[?#].*", "…", hub.endpoint, flags=re.DOTALL)
        raise ModelError(f"{hub.endpoint_variable} is {shown!r:.120}, expected an address that starts https://")
    return parts


@dataclass(frozen=True, slots=True)
class Transfer:
    """One pull's requests.

    Attributes:
        name: ORG/NAME of the repository.
        source: what is pulled, as a user writes it.
    """

    client: "httpx.Client"
    hub: Hub
    name: str
    source: str
    progress: Progress

    def listing(self, revision: str) -> Listing:
        """Return the commit that the revision stands for, and its files.

        Raises:
            Offline: the hub cannot be reached, or is overloaded.
            ModelError: refused, not there, no answer of a model hub, or files that cannot lie beside each other.
        """
        import httpx

        strange = (httpx.TooManyRedirects, httpx.DecodingError, httpx.InvalidURL)
        try:
            listing = self.hub.listing(self, self.name, revision)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, *strange) as error:
            raise self._stranger(error) from error
        cache.require_distinct([file.path for file in listing.files], self.source)
        return listing

    def _stranger(self, error: Exception) -> ModelError:
        return ModelError(
            f"{self.hub.endpoint!r} did not answer like a model hub for {self.name!r} "
            f"({type(error).__name__}: {error!s:.200}); check {self.hub.endpoint_variable}"
        )

    def ask(self, url: str, **params: str) -> Any:
        """Return the JSON of one answer."""
        import httpx

        failures = 0
        while True:
            try:
                answer = self.client.get(url, params=params)
                self._check(self.hub.status(answer))
                return answer.json()
            except (httpx.TransportError, TryLater) as error:
                self._pause(failures, error)
                failures += 1

    def bring(self, file: HubFile, part: Path, commit: str) -> str:
        """Download one file to `part`, going on where an earlier try broke off, and return its verified SHA-256."""
        import httpx

        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        url = self.hub.address(self.name, commit, file.path)
        failures = 0
        while (start := part.stat().st_size) != file.bytes:
            cut: Exception = TryLater("with less than the whole file")
            try:
                self._receive(url, file, part, start)
            except (httpx.TransportError, TryLater) as error:
                cut = error
            except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
                raise self._stranger(error) from error
            if part.stat().st_size > start:
                failures = 0  # it goes on, if slowly
            else:
                self._pause(failures, cut)
                failures += 1
        self.progress.received(file.path, file.bytes, file.bytes)
        return self._verified(part, file)

    def _receive(self, url: str, file: HubFile, part: Path, start: int) -> None:
        """Append what one answer brings to `part`, from byte `start` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self.client.stream("GET", url, headers=headers) as answer:
            self._check(answer.status_code)
            if answer.status_code == 416:
                part.write_bytes(b"")
                raise TryLater("status 416")
            # Told by the header and not by status 206: ModelScope sends the part that was asked for with status 200.
            resumed = bool(start) and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            done = start if resumed else 0
            _require_whole(answer, file, done)
            with part.open("ab" if resumed else "wb") as out:
                for block in answer.iter_raw():
                    done += len(block)
                    if done > file.bytes:
                        raise BrokenModel(f"{file.path!r} of {self.source!r} is longer than its {file.bytes} bytes")
                    out.write(block)
                    self.progress.received(file.path, done, file.bytes)
                out.flush()
                os.fsync(out.fileno())

    def _check(self, status: int) -> None:
        """Turn a refusal into the error that says what to do."""
        page = self.hub.page(self.name)
        if status in (401, 403):
            raise ModelError(
                f"the hub refused {self.source!r} ({status}): it has a licence to accept, is private or does not "
                f"exist; open {page} , accept the licence there, then set {self.hub.token_variable}"
            )
        if status == 404:
            raise self.absent()
        if status in _LATER:
            raise TryLater(f"status {status}")
        if status not in (200, 206, 416):
            raise ModelError(f"the hub answered {status} for {self.source!r}, expected 200; see {page}")

    def absent(self) -> ModelError:
        """Return the error for what the hub does not have."""
        return ModelError(
            f"the hub has no {self.source!r}; check the name, the revision and the file at {self.hub.page(self.name)}"
        )

    def _pause(self, failures: int, error: Exception) -> None:
        """Wait before the next try, or give up."""
        import httpx

        if failures < len(_PAUSES_S) and not isinstance(error, httpx.ConnectTimeout):
            time.sleep(_PAUSES_S[failures])
            return
        host = urlsplit(self.hub.endpoint).netloc
        if isinstance(error, TryLater):
            raise Offline(f"{host!r} keeps answering {error} for {self.source!r}; try again later") from error
        raise Offline(
            f"cannot reach {host!r} for {self.source!r} ({_reason(error)}); connect and pull again, "
            f"set {self.hub.endpoint_variable} to a mirror, or use a model that is already here by its path"
        ) from error

    def _verified(self, part: Path, file: HubFile) -> str:
        digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
        with part.open("rb") as stream:
            while block := stream.read(_CHUNK):
                digest.update(block)
                blob.update(block)
        for kind, actual, published in (("SHA-256", digest, file.sha256), ("git blob id", blob, file.blob)):
            if published and actual.hexdigest() != published:
                raise BrokenModel(
                    f"{file.path!r} of {self.source!r} has {kind} {actual.hexdigest()}, "
                    f"expected {published}; nothing was kept"
                )
        return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Return what the system says; httpx's words on a protocol may hold a header, and with it the token."""
    import httpx

    told = str(error) if isinstance(error, httpx.NetworkError | httpx.TimeoutException) else ""
    return told or type(error).__name__


def _require_whole(answer: "httpx.Response", file: HubFile, done: int) -> None:
    """Refuse an answer that says itself that it ends early: an error page sent in place of the file."""
    announced = answer.headers.get("Content-Length", "")
    if announced.isdecimal() and done + int(announced) < file.bytes:
        raise TryLater(f"{announced} bytes in place of the {file.bytes - done} of {file.path!r}")
