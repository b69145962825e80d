"""Files to documents, by suffix: Markdown and plain text as they are, HTML as what the page shows."""

from collections.abc import Callable
from pathlib import Path

from chatkit.retrieval import html, markdown
from chatkit.retrieval.document import Document, Section, Unreadable, utf8

TEXT = frozenset({".txt", ".text"})
SUFFIXES = markdown.SUFFIXES | html.SUFFIXES | TEXT

# A larger text file is more likely a dump than a document. Bytes.
MAX_FILE_BYTES = 64 * 2**20


def parse(path: Path, source: str, content: bytes, *, read_html: Callable[[bytes], html.Page] = html.read) -> Document:
    """Return the document in `content`, by the suffix of `path`.

    Args:
        path: only its name is looked at.
        source: the name that its passages carry.
        content: the file.
        read_html: what reads a page; a build hands in one that a hostile page cannot stall.

    Raises:
        Unreadable: in an unknown encoding, binary, empty, or of a kind that is not read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise Unreadable(
            f"is neither Markdown nor HTML nor text (suffix {path.suffix!r}, expected {', '.join(sorted(SUFFIXES))})"
        )
    if suffix in html.SUFFIXES:
        page = read_html(content)
        return Document(source, page.title or _title_from(path), page.text, page.sections)
    text = _decode(content)
    if suffix in markdown.SUFFIXES:
        title, sections = markdown.read(text)
        return Document(source, title or _title_from(path), text, sections)
    return Document(source, _title_from(path), text, (Section("", 0, len(text)),))


def _decode(content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 (byte {error.start}); convert it to UTF-8") from error
    if "\0" in text:
        raise Unreadable("holds NUL characters, so it is no text")
    if not text.strip():
        raise Unreadable("is empty")
    return text


def _title_from(path: Path) -> str:
    return utf8(path.stem).replace("_", " ").replace("-", " ")
