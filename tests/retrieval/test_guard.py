"""No request goes where it should not: private networks, other schemes, redirects, names that change."""

import asyncio
import ipaddress
import socket
import time

import pytest

from chatkit.retrieval.guard import Guard, Limits, Refused, Unreachable, is_public, parse
from tests.retrieval.answering import Answering

TEXT = {"Content-Type": "text/plain"}


def fetch(address, guard=None, **options):
    return asyncio.run((guard or Guard()).fetch(address, **options))


@pytest.fixture
def server():
    with Answering(lambda path, body: (200, TEXT, b"inside")) as server:
        yield server


@pytest.fixture
def names(monkeypatch):
    """Let names mean what the test says, one list an ask; the last goes on to hold."""
    told: dict[str, list[list[str]]] = {}
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **named):
        if host not in told:
            return real(host, port, *rest, **named)
        asked.append(host)
        answers = told[host].pop(0) if len(told[host]) > 1 else told[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return told, asked


ATTACKS = {
    "loopback": "http://127.0.0.1/",
    "loopback, short": "http://127.1/",
    "loopback, hexadecimal": "http://0x7f.1/",
    "loopback, one number": "http://2130706433/",
    "loopback, octal": "http://0177.0.0.1/",
    "loopback by name": "http://localhost/",
    "loopback by name with a last dot": "http://LOCALHOST./",
    "loopback, wide digits": "http://\uff11\uff12\uff17.0.0.1/",
    "loopback, IPv6": "http://[::1]/",
    "loopback, IPv6 written out": "http://[0:0:0:0:0:0:0:1]/",
    "loopback, mapped": "http://[::ffff:127.0.0.1]/",
    "loopback, mapped in hexadecimal": "http://[::ffff:7f00:1]/",
    "loopback, compatible": "http://[::127.0.0.1]/",
    "loopback, NAT64": "http://[64:ff9b::7f00:1]/",
    "loopback, 6to4": "http://[2002:7f00:1::]/",
    "this host": "http://0.0.0.0/",
    "this host, IPv6": "http://[::]/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata of a container": "http://169.254.170.2/v2/credentials",
    "metadata, IPv6": "http://[fd00:ec2::254]/",
    "metadata of another cloud": "http://100.100.100.200/",
    "metadata of a third cloud": "http://168.63.129.16/",
    "private, ten": "http://10.0.0.1/",
    "private, 172": "http://172.16.0.1/",
    "private, 192": "http://192.168.1.1/",
    "shared by carriers": "http://100.64.0.1/",
    "multicast": "http://224.0.0.1/",
    "multicast, IPv6": "http://[ff02::1]/",
    "broadcast": "http://255.255.255.255/",
    "link-local, IPv6": "http://[fe80::1]/",
    "local NAT64": "http://[64:ff9b:1::a00:1]/",
    "Teredo": "http://[2001:0:7f00:1::]/",
    "site-local": "http://[fec0::1]/",
    "documentation": "http://192.0.2.1/",
    "with a zone": "http://[fe80::1%25eth0]/",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:70/_x",
    "ftp": "ftp://example.com/",
    "data": "data:text/plain,x",
    "no scheme": "//127.0.0.1/",
    "a user": "http://example.com@127.0.0.1/",
    "a user and password": "http://a:b@127.0.0.1/",
    "an empty user": "http://@127.0.0.1/",
    "a backslash": "http://example.com\\@127.0.0.1/",
    "a hash before the host": "http://127.0.0.1#@example.com/",
    "a tab": "http://127.0.0\t.1/",
    "a line end": "http://127.0.0.1/\r\nX: y",
    "another port": "http://example.com:22/",
    "port zero": "http://example.com:0/",
    "a port that is none": "http://example.com:99999/",
    "no host": "http:///path",
    "a name of two dots": "http://example..com/",
    "an open bracket": "http://[::1/",
    "far too long": "http://example.com/" + "a" * 5000,
}


@pytest.mark.parametrize("address", ATTACKS.values(), ids=ATTACKS)
def test_an_address_that_is_not_of_the_public_web_is_refused(address) -> None:
    with pytest.raises((Refused, Unreachable)) as caught:
        fetch(address, limits=Limits(seconds=5))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert not isinstance(caught.value, Unreachable) or "has no address" in message


def test_the_refused_server_was_never_asked(server) -> None:
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
        with pytest.raises(Refused, match="not of the public network"):
            fetch(f"http://{host}:{server.server_port}/", Guard(ports=range(1, 65536)))
    assert server.seen == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_of_the_public_network_is_one(address) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_name_is_refused_when_one_of_its_addresses_is_private(names) -> None:
    told, _ = names
    told["mixed.example"] = [["8.8.8.8", "10.1.2.3"]]
    with pytest.raises(Refused, match=r"'mixed.example' is 10\.1\.2\.3, which is not of the public network"):
        fetch("http://mixed.example/")


def test_a_name_that_changes_after_the_check_is_not_asked_again(names, server, monkeypatch) -> None:
    """DNS rebinding: the connection goes to the address that was checked, and the name is resolved once."""
    told, asked = names
    told["rebind.example"] = [["8.8.8.8"], ["127.0.0.1"]]
    connected = []

    async def connect(self, host, port, *rest):
        connected.append((host, port))
        raise OSError("nobody there")

    import httpcore

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    with pytest.raises(Unreachable):
        fetch("http://rebind.example/")
    assert asked == ["rebind.example"]
    assert connected == [("8.8.8.8", 80)]


def test_a_host_that_the_configuration_names_is_asked_and_no_other_on_it(server) -> None:
    guard = Guard(private={server.netloc})
    answer = fetch(f"{server.address}/a?q=%20x", guard)
    assert (answer.status, answer.body, answer.content_type) == (200, b"inside", "text/plain")
    method, path, headers, _ = server.seen[0]
    assert (method, path) == ("GET", "/a?q=%20x")
    assert (headers["Host"], headers["Accept-Encoding"]) == (server.netloc, "identity")
    with Answering(server.reply) as other, pytest.raises(Refused, match="expected one of 80, 443"):
        fetch(other.address, guard)
    assert Guard(private={"127.0.0.1"}).check(f"{server.address}/").port == server.server_port


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:1/",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "//localhost/",
        "http://a@b.example/",
    ],
)
def test_a_redirect_is_checked_like_the_first_address(location) -> None:
    with Answering(lambda path, body: (302, {"Location": location}, b"")) as server, pytest.raises(Refused):
        fetch(server.address, Guard(private={server.netloc}))


def test_redirects_are_followed_a_few_times_and_headers_stay_at_the_first_host() -> None:
    with Answering(lambda path, body: (200, TEXT, b"there")) as second:

        def reply(path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
            return 301, {"Location": "/b" if path == "/a" else f"{second.address}/c"}, b""

        with Answering(reply) as first:
            guard = Guard(private={first.netloc, second.netloc})
            answer = fetch(f"{first.address}/a", guard, headers={"Authorization": "Bearer x"})
    assert (answer.url, answer.body) == (f"{second.address}/c", b"there")
    assert [seen[2].get("Authorization") for seen in first.seen + second.seen] == ["Bearer x", "Bearer x", None]

    with Answering(lambda path, body: (302, {"Location": path + "x"}, b"")) as loop:
        with pytest.raises(Refused, match="redirects more than 3 times"):
            fetch(f"{loop.address}/", Guard(private={loop.netloc}))
        assert len(loop.seen) == 4


def test_a_redirect_of_a_post_is_not_followed() -> None:
    with Answering(lambda path, body: (307, {"Location": "/other"}, b"")) as server:
        answer = fetch(server.address, Guard(private={server.netloc}), method="POST", content=b"{}")
    assert (answer.status, len(server.seen), server.seen[0][3]) == (307, 1, b"{}")


def test_a_body_over_the_limit_ends_the_fetch_whatever_its_header_says() -> None:
    limits = Limits(bytes=100_000)
    told = (200, {"Content-Length": "4000000000"}, b"x" * 5_000_000)
    with Answering(lambda path, body: told) as server, pytest.raises(Refused, match="sends more than 100000 bytes"):
        fetch(server.address, Guard(private={server.netloc}), limits=limits)


def test_a_body_that_drips_and_a_server_that_is_silent_end_at_the_time_limit() -> None:
    began = time.monotonic()
    with Answering(lambda path, body: (200, TEXT, b"x" * 10_000)) as server:
        server.pause = 0.05
        with pytest.raises(Unreachable, match=r"did not answer to the end within 0\.3 s"):
            fetch(server.address, Guard(private={server.netloc}), limits=Limits(seconds=0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        netloc = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unreachable, match="did not answer"):
            fetch(f"http://{netloc}/", Guard(private={netloc}), limits=Limits(seconds=0.3))
    assert time.monotonic() - began < 3


def test_an_answer_that_is_packed_is_refused() -> None:
    told = (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")
    with Answering(lambda path, body: told) as server, pytest.raises(Refused, match=r"packed \('gzip'\)"):
        fetch(server.address, Guard(private={server.netloc}))


def test_proxy_variables_are_not_read(server, monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert fetch(server.address, Guard(private={server.netloc})).body == b"inside"


def test_nobody_there_is_said_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        netloc = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(Unreachable, match=f"'{netloc}' does not answer"):
        fetch(f"http://{netloc}/", Guard(private={netloc}))


def test_an_address_is_read_the_same_way_by_check_and_fetch() -> None:
    url = parse("HTTPS://B\u00fccher.Example.:443/a/\u00fc?x=1#part")
    assert str(url) == "https://xn--bcher-kva.example/a/%C3%BC?x=1"
    assert parse("http://[2606:4700:0::1111]:8080").netloc == "[2606:4700::1111]:8080"
