"""Requests to addresses that somebody else chose: only to public hosts, resolved once, and bounded in size and time.

An address is read by one parser, its host is resolved once, every address that the name has is checked, and the
connection goes to one of those that were checked, so that a name which means something else a moment later changes
nothing. Redirects are followed by the same steps, a few of them. Proxy variables are not read, nothing is unpacked, and
no cookie or header of one request goes to another host.
"""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:
    import httpcore

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PORTS = frozenset({80, 443})
MAX_REDIRECTS = 3
_MOST_CHARACTERS = 4096
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Seconds for one of a host's addresses, so that one that is silent leaves time for the others.
_EXTENSIONS = {"timeout": {"connect": 5.0}}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?")
# What may stand in a path and query as it is; a browser would escape the rest, and servers read it differently.
_TARGET = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%|{}^`\"<>-]*")
# Prefixes that carry an IPv4 address, and where in the 128 bits it is: mapped, compatible, NAT64 (RFC 6052), 6to4.
_CARRIERS = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
# Beyond what `is_global` refuses, which differs between versions of Python: local NAT64, Teredo, site-local, translated
# addresses, and two that clouds answer metadata on though they look public.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b:1::/48",
        "2001::/32",
        "fec0::/10",
        "::ffff:0:0:0/96",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.0/24",
        "192.88.99.0/24",
    )
)


class Refused(Exception):
    """The address, or what it answers, is not taken; the message says why and is one line."""


class Unreachable(Exception):
    """The host did not answer, or not in time; the message is one line."""


@dataclass(frozen=True, slots=True)
class Url:
    """An address that was read.

    Attributes:
        host: lower case, ASCII, without brackets and without a last dot.
        target: path and query.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        """The host with its port, as the Host header has it; no port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """Return the address."""
        return f"{self.scheme}://{self.netloc}{self.target}"


def parse(text: str) -> Url:
    """Read an address.

    Raises:
        Refused: it is none of http or https, has a user or password, or can be read in two ways.
    """
    shown = text if len(text) <= 200 else text[:200] + "…"
    if len(text) > _MOST_CHARACTERS:
        raise Refused(f"the address {shown!r} has {len(text)} characters, at most {_MOST_CHARACTERS} are taken")
    if not text.isprintable() or re.search(r"[\s\\]", text):
        raise Refused(f"the address {shown!r} has spaces, backslashes or control characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise Refused(f"the address {shown!r} cannot be read ({error})") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise Refused(f"the address {shown!r} starts {parts.scheme!r}, expected http:// or https://")
    if "@" in parts.netloc:
        raise Refused("the address has a user or password before its host, expected one without")
    if port == 0:
        raise Refused(f"the address {shown!r} has port 0")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    target = "".join(c if c.isascii() else "".join(f"%{byte:02X}" for byte in c.encode()) for c in target)
    if not _TARGET.fullmatch(target):
        raise Refused(f"the address {shown!r} has characters that belong escaped, such as %20")
    return Url(scheme, _host(host, shown), port or _DEFAULT_PORTS[scheme], target)


def _host(host: str, shown: str) -> str:
    if "%" not in host:
        try:
            return ipaddress.IPv6Address(host).compressed
        except ValueError:
            pass
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise Refused(f"the address {shown!r} has a host that is no name") from None
    host = host.lower()
    if not _HOST.fullmatch(host) or ".." in host or len(host) > 253:
        raise Refused(f"the address {shown!r} has no host, or one that is no name")
    return host.removesuffix(".")


def is_public(address: Address) -> bool:
    """Whether an address is one of the public network's: none of ours, of this machine's, or of a cloud's metadata."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        for network, shift in _CARRIERS:
            if address in network:
                return is_public(ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF))
    if any(address.version == network.version and address in network for network in _REFUSED):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


@dataclass(frozen=True, slots=True)
class Limits:
    """How far one fetch goes.

    Attributes:
        seconds: for everything together: names, redirects and the last byte.
        bytes: of the body.
    """

    seconds: float = 20.0
    bytes: int = 16 << 20
    redirects: int = MAX_REDIRECTS


@dataclass(frozen=True, slots=True)
class Answer:
    """What a fetch brought.

    Attributes:
        url: where the body came from, after redirects.
        headers: in lower case; of several of one name the last.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """The type in lower case, without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules, and the fetch under them.

    Attributes:
        private: hosts that may be reached though they are private, as `host` or `host:port`; a host alone allows every
            port. They are trusted as they are named: what they resolve to is not checked.
        ports: of every other host.
    """

    private: Collection[str] = field(default_factory=frozenset)
    ports: Collection[int] = PORTS

    def allows_private(self, url: Url) -> bool:
        """Whether the configuration names this host."""
        host = f"[{url.host}]" if ":" in url.host else url.host
        named = {name.lower() for name in self.private}
        return not named.isdisjoint({host, url.host, f"{host}:{url.port}"})

    def check(self, text: str) -> Url:
        """Read an address and check what can be seen without asking anybody.

        Raises:
            Refused: see `parse`; or the port is not taken, or the host is an address that is not public.
        """
        url = parse(text)
        if self.allows_private(url):
            return url
        if url.port not in self.ports:
            ports = ", ".join(map(str, sorted(self.ports)))
            raise Refused(f"{url.netloc!r} has port {url.port}, expected one of {ports}")
        try:
            literal = ipaddress.ip_address(url.host)
        except ValueError:
            return url
        _require_public(url, literal)
        return url

    async def resolve(self, url: Url) -> list[str]:
        """Return the addresses of a host, each of them checked.

        Raises:
            Refused: one of them is not public.
            Unreachable: it has none.
        """
        import socket

        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise Unreachable(f"the name {url.host!r} has no address ({reason})") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses:
            raise Unreachable(f"the name {url.host!r} has no address")
        if not self.allows_private(url):
            for address in addresses:
                _require_public(url, ipaddress.ip_address(address))
        return addresses

    async def fetch(
        self,
        text: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        limits: Limits | None = None,
    ) -> Answer:
        """Ask an address and return its answer, of any status but a redirect.

        Redirects are followed for GET only, and `headers` go to the first host alone.

        Raises:
            Refused: the address, one that it redirects to, or the size of the body.
            Unreachable: nobody answers, or not to the end within `limits.seconds`.
        """
        import h11
        import httpcore

        limits = limits or Limits()
        url = self.check(text)
        try:
            async with asyncio.timeout(limits.seconds):
                return await self._follow(url, method, dict(headers or {}), content, limits)
        except TimeoutError:
            raise Unreachable(f"{url.netloc!r} did not answer to the end within {limits.seconds:g} s") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise Unreachable(f"{url.netloc!r} does not answer ({type(error).__name__})") from None
        except (h11.ProtocolError, ssl.SSLError, OSError) as error:
            raise Unreachable(f"{url.netloc!r} does not answer ({error!s:.120})") from None

    async def _follow(self, url: Url, method: str, headers: dict[str, str], content: bytes, limits: Limits) -> Answer:
        first = url
        for _ in range(limits.redirects + 1):
            own = headers if (url.scheme, url.netloc) == (first.scheme, first.netloc) else {}
            async with self._stream(url, method, own, content) as response:
                told = _headers(response)
                if method == "GET" and response.status in (301, 302, 303, 307, 308) and told.get("location"):
                    url = self._next(url, told["location"])
                    continue
                body = await _body(response, told, url, limits.bytes)
                return Answer(str(url), response.status, told, body)
        raise Refused(f"{first.netloc!r} redirects more than {limits.redirects} times")

    def _next(self, url: Url, location: str) -> Url:
        target = self.check(urljoin(str(url), location))
        if (url.scheme, target.scheme) == ("https", "http"):
            raise Refused(f"{url.netloc!r} redirects to {target.netloc!r} without TLS")
        return target

    @asynccontextmanager
    async def _stream(
        self, url: Url, method: str, headers: Mapping[str, str], content: bytes
    ) -> "AsyncIterator[httpcore.Response]":
        """Send one request over a connection of its own to an address that was checked."""
        import httpcore

        addresses = await self.resolve(url)
        context = _tls() if url.scheme == "https" else None
        sent = {"User-Agent": "chatkit", "Accept": "*/*", **headers, "Accept-Encoding": "identity", "Host": url.netloc}
        if content:
            sent["Content-Length"] = str(len(content))
        # The host stays the origin's, so that the certificate is compared with it; only where to connect is pinned.
        origin = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        async with (
            httpcore.AsyncConnectionPool(ssl_context=context, network_backend=_pinned(addresses)) as pool,
            pool.stream(
                method, origin, headers=list(sent.items()), content=content or None, extensions=_EXTENSIONS
            ) as response,
        ):
            yield response


@cache
def _tls() -> ssl.SSLContext:
    """Return the context of all requests: to read the authorities takes longer than many a search."""
    import httpx

    return httpx.create_ssl_context()


def _require_public(url: Url, address: Address) -> None:
    if not is_public(address):
        meaning = "" if str(address) == url.host else f" is {address}, which"
        raise Refused(f"the host {url.host!r}{meaning} is not of the public network; it is not asked")


def _pinned(addresses: Sequence[str]) -> "httpcore.AsyncNetworkBackend":
    """Return what connects to these addresses, whatever host is asked for."""
    import httpcore

    class Pinned(httpcore.AnyIOBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: "Iterable[httpcore.SOCKET_OPTION] | None" = None,
        ) -> httpcore.AsyncNetworkStream:
            for address in addresses[:-1]:
                try:
                    return await super().connect_tcp(address, port, timeout, local_address, socket_options)
                except (httpcore.ConnectError, httpcore.ConnectTimeout):
                    continue
            return await super().connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    return Pinned()


def _headers(response: "httpcore.Response") -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


async def _body(response: "httpcore.Response", headers: Mapping[str, str], url: Url, most: int) -> bytes:
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refused(f"{url.netloc!r} sends its answer packed ({coding[:40]!r}) though that was not asked for")
    parts, size = [], 0
    async for part in response.aiter_stream():
        size += len(part)
        if size > most:
            raise Refused(f"{url.netloc!r} sends more than {most} bytes")
        parts.append(part)
    return b"".join(parts)
