"""Web addresses as sources of an index: off by default, one document an address, every fault a reason to skip."""

import codecs
import hashlib
import socket
import time

import pytest
from click.testing import CliRunner

from chatkit.cli import group
from chatkit.errors import InvalidRequest
from chatkit.retrieval.apart import Reader
from chatkit.retrieval.document import Document, Unreadable
from chatkit.retrieval.guard import Guard, Limits
from chatkit.retrieval.web import WebPage, split_pages
from tests.retrieval.answering import Answering

PAGE = b"<html><title>Leases</title><p>A lease lasts fifteen seconds.</p></html>"


class Keeping:
    """A reader that keeps what it is given."""

    def read(self, file):
        self.suffix, self.content, self.file = file.path.suffix, file.path.read_bytes(), file
        yield Document(file.source, "title", "text", ())


@pytest.fixture
def page():
    with Answering(lambda path, body: (200, {"Content-Type": "text/html; charset=utf-8"}, PAGE)) as server:
        yield server


def documents(server, path="/", **options):
    reader = Keeping()
    page = WebPage(server.address + path, Guard(private={server.netloc}), **options)
    return list(page.documents(reader)), reader


def test_a_page_is_one_document_under_its_address(page) -> None:
    (document,), reader = documents(page, "/leases")
    assert document.source == f"{page.address}/leases"
    marked = codecs.BOM_UTF8 + PAGE
    assert (reader.suffix, reader.content) == (".html", marked)
    assert (reader.file.size, reader.file.sha256) == (len(marked), hashlib.sha256(marked).hexdigest())
    assert not reader.file.path.exists()


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("text/plain", ".txt"),
        ("Text/Markdown; x=y", ".md"),
        ("application/pdf", ".pdf"),
        ("application/xhtml+xml", ".html"),
    ],
)
def test_the_type_that_is_sent_says_how_it_is_read(page, kind, suffix) -> None:
    page.reply = lambda path, body: (200, {"Content-Type": kind}, b"%PDF")
    assert documents(page, "/a.exe")[1].suffix == suffix


@pytest.mark.parametrize(
    ("told", "sent", "shown"),
    [
        ("ISO-8859-1", b"B\xfccher \x93f\xfcr\x94 alle", "Bücher “für” alle"),
        ("utf-8", '<meta charset="iso-8859-1">Müller'.encode(), '<meta charset="iso-8859-1">Müller'),
        ("ks_c_5601-1987", "한국어".encode("cp949"), "한국어"),
        ("nonsense", "Größe".encode(), "Größe"),
    ],
)
def test_the_charset_that_is_sent_goes_before_what_the_page_says(page, told, sent, shown) -> None:
    page.reply = lambda path, body: (200, {"Content-Type": f"text/plain; charset={told}"}, sent)
    assert documents(page)[1].content == codecs.BOM_UTF8 + shown.encode()


def test_a_page_in_another_charset_than_is_sent_is_left_to_its_reader(page) -> None:
    page.reply = lambda path, body: (200, {"Content-Type": "text/html; charset=utf-8"}, b"<meta charset=koi8-r>\xc1")
    assert documents(page)[1].content == b"<meta charset=koi8-r>\xc1"


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (404, "text/html", "status 404, expected 200"),
        (200, "image/png", "of type 'image/png', expected one of text/html"),
        (200, "", "of type ''"),
    ],
)
def test_what_is_no_page_is_skipped_with_the_reason(page, status, kind, reason) -> None:
    page.reply = lambda path, body: (status, {"Content-Type": kind}, PAGE)
    with pytest.raises(Unreadable, match=reason):
        documents(page)


def test_a_page_too_large_or_at_a_private_host_is_skipped(page) -> None:
    with pytest.raises(Unreadable, match="sends more than 10 bytes"):
        documents(page, limits=Limits(bytes=10))
    with pytest.raises(Unreadable, match=r"was not fetched: .* not of the public network"):
        list(WebPage("http://localhost/").documents(Keeping()))


def test_a_name_server_that_is_silent_costs_no_more_than_the_limit(monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    started = time.monotonic()
    with pytest.raises(Unreadable, match=r"did not answer to the end within 0.1 s"):
        list(WebPage("http://host.example/", limits=Limits(seconds=0.1)).documents(Keeping()))
    assert time.monotonic() - started < 1.5


def test_addresses_are_refused_unless_they_are_allowed() -> None:
    with pytest.raises(InvalidRequest, match="is a web address; allow those with --allow-web"):
        split_pages(["docs/", "https://example.com/a"], allowed=False)
    assert split_pages(["docs/", "a:b.md"], allowed=False) == ([], ["docs/", "a:b.md"])
    pages, others = split_pages(["docs/", "https://example.com/a", "https://example.com/a"], allowed=True)
    assert ([page.source for page in pages], others) == (["https://example.com/a"], ["docs/"])
    for address in ("file:///etc/passwd", "http://127.0.0.1/", "http://a:b@example.com/"):
        with pytest.raises(InvalidRequest, match="cannot be fetched"):
            split_pages([address], allowed=True)


def test_the_command_takes_addresses_only_when_they_are_allowed(tmp_path) -> None:
    refused = CliRunner().invoke(group, ["prepare-index", "https://example.com/a"])
    assert isinstance(refused.exception, InvalidRequest)
    assert "allow those with --allow-web" in str(refused.exception)
    private = CliRunner().invoke(group, ["prepare-index", "--allow-web", "http://127.0.0.1/a"])
    assert "not of the public network" in str(private.exception)


def test_a_page_is_read_by_the_reader_of_files(page) -> None:
    with Reader() as reader:
        (document,) = WebPage(page.address + "/a", Guard(private={page.netloc})).documents(reader)
    assert (document.source, document.title) == (page.address + "/a", "Leases")
    assert "fifteen seconds" in document.text
