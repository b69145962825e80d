"""EPUB to text: the chapters in reading order, read as the pages of HTML that they are."""

import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from chatkit.retrieval.document import Page, Section, Unreadable
from chatkit.retrieval.formats import html
from chatkit.retrieval.formats.archive import Archive
from chatkit.retrieval.parsing import Limits

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
# Fonts may be scrambled in a book that anybody may read.
_FONTS_ONLY = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_CHAPTERS = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml"})
_BETWEEN = "\n\n"


def read(path: Path, *, limits: Limits, leave_out: Callable[[str], None]) -> Page:
    """Return the text of an EPUB book. Chapters that cannot be read are told to `leave_out`.

    Raises:
        Unreadable: damaged, locked by a publisher, without text, or unfolding to more than is read.
    """
    with Archive(path) as archive:
        if _is_locked(archive):
            raise Unreadable("is encrypted by its publisher (DRM); get a copy without it")
        book = _xml(archive, _book_of(archive))
        folder = posixpath.dirname(_book_of(archive))
        texts: list[str] = []
        sections: list[Section] = []
        at = 0
        reason = ""
        for name in _spine(book, folder):
            try:
                chapter = html.read(archive.read(name))
            except Unreadable as error:
                if str(error) != html.SHOWS_NOTHING:
                    reason = f"chapter {name}: {error}"
                    leave_out(reason)
                continue
            sections += [
                Section(_placed(section, chapter), at + section.start, at + section.end) for section in chapter.sections
            ]
            texts += [chapter.text, _BETWEEN]
            at += len(chapter.text) + len(_BETWEEN)
            if at > limits.text:
                raise Unreadable(f"holds more than {limits.text} characters of text; split it")
    if reason and not texts:
        raise Unreadable(reason)
    title = book.findtext(".//{*}metadata/{*}title") or ""
    return Page(" ".join(title.split()), "".join(texts[:-1]), tuple(sections))


def _placed(section: Section, chapter: Page) -> str:
    """Return the section's headings, under the chapter's own title where the chapter begins with it."""
    title = chapter.title if chapter.text.startswith(chapter.title) else ""
    return " > ".join(filter(None, (title, section.heading)))


def _xml(archive: Archive, name: str) -> Any:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True, recover=True)
    root = etree.fromstring(archive.read(name), parser)
    if root is None:
        raise Unreadable(f"is damaged: its part {name!r} is no XML")
    return root


def _book_of(archive: Archive) -> str:
    """Return the name of the part that lists the chapters."""
    root = _xml(archive, _CONTAINER).find(".//{*}rootfile")
    if root is None or not root.get("full-path"):
        raise Unreadable("is damaged: it does not say where its list of chapters is")
    name: str = root.get("full-path")
    return name


def _spine(book: Any, folder: str) -> list[str]:
    """Return the names of the chapters in reading order."""
    named = {
        item.get("id"): posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or "")))
        for item in book.iterfind(".//{*}manifest/{*}item")
        if item.get("media-type") in _CHAPTERS
    }
    order = [item.get("idref") for item in book.iterfind(".//{*}spine/{*}itemref")]
    return list(dict.fromkeys(named[chapter] for chapter in order if chapter in named))


def _is_locked(archive: Archive) -> bool:
    if _ENCRYPTION not in archive.names:
        return False
    methods = [one.get("Algorithm") for one in _xml(archive, _ENCRYPTION).iter("{*}EncryptionMethod")]
    return any(method not in _FONTS_ONLY for method in methods)
