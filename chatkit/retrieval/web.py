"""Web pages as sources of an index: one address, one file, fetched through the guard. Off unless allowed."""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chatkit.errors import InvalidRequest
from chatkit.retrieval.charset import decode
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.guard import Answer, Guard, Limits, Refused, Unreachable

if TYPE_CHECKING:
    from chatkit.retrieval.document import Document

# Content types that are read, and the suffix of the file that a page becomes, which says how it is read.
TYPES = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "application/pdf": ".pdf",
}
LIMITS = Limits(seconds=30.0, bytes=32 << 20)
_CHARSET = re.compile(r"charset=[\"']?([\w.:-]+)", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Reads(Protocol):
    """What turns a file into documents."""

    def read(self, file: Any) -> "Iterator[Document]":
        """Yield the documents of `file`, which has `path`, `source`, `size` and `sha256`."""
        ...


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A page as it lies on the disk for its reader."""

    path: Path
    source: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WebPage:
    """One address as a source.

    Attributes:
        source: the address as it was given, which passages carry.
        digest: "": what it holds is only known after it was read.
    """

    source: str
    guard: Guard = field(default_factory=Guard)
    limits: Limits = LIMITS
    digest: str = ""

    def documents(self, reader: Reads) -> "Iterator[Document]":
        """Fetch the page and yield what `reader` makes of it.

        Raises:
            Unreadable: the address is refused or silent, or the page is of a kind that is not read.
        """
        try:
            with asyncio.Runner() as runner:
                runner.get_loop().set_default_executor(_Unwaited())
                answer = runner.run(self.guard.fetch(self.source, limits=self.limits))
        except (Refused, Unreachable) as error:
            raise Unreadable(f"was not fetched: {error}") from None
        suffix = _suffix(answer)
        with tempfile.TemporaryDirectory(prefix="chatkit-web-") as folder:
            path = Path(folder, f"page{suffix}")
            body = answer.body if suffix == ".pdf" else _as_utf8(answer)
            path.write_bytes(body)
            yield from reader.read(FetchedFile(path, self.source, len(body), hashlib.sha256(body).hexdigest()))


class _Unwaited(ThreadPoolExecutor):
    """Looks up names; the end of a loop does not wait for a name server that is silent longer than the limits."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def is_address(source: str | Path) -> bool:
    """Whether a source is an address and no path."""
    return _ADDRESS.match(str(source)) is not None


def split_pages(
    sources: Sequence[str | Path], *, allowed: bool, guard: Guard | None = None
) -> tuple[list[WebPage], list[str | Path]]:
    """Return the web pages among the sources, each once, and the rest.

    Raises:
        InvalidRequest: there are addresses and they are not allowed, or one of them can be none.
    """
    guard = guard or Guard()
    addresses = list(dict.fromkeys(str(source) for source in sources if is_address(source)))
    if addresses and not allowed:
        raise InvalidRequest(f"the source {addresses[0]!r:.200} is a web address; allow those with --allow-web")
    for address in addresses:
        try:
            guard.check(address)
        except Refused as error:
            raise InvalidRequest(f"a source cannot be fetched: {error}") from None
    return [WebPage(address, guard) for address in addresses], [s for s in sources if not is_address(s)]


def _suffix(answer: Answer) -> str:
    if answer.status != 200:
        raise Unreadable(f"was answered with status {answer.status}, expected 200")
    suffix = TYPES.get(answer.content_type)
    if suffix is None:
        raise Unreadable(f"is of type {answer.content_type[:80]!r}, expected one of {', '.join(TYPES)}")
    return suffix


def _as_utf8(answer: Answer) -> bytes:
    """Return a text with a byte order mark where its header names a charset, which goes before what the page says."""
    named = _CHARSET.search(answer.headers.get("content-type", ""))
    if named is None:
        return answer.body
    try:
        return decode(answer.body, named[1]).encode("utf-8-sig")
    except Unreadable:
        return answer.body  # the reader finds out what it is, or says so
