"""Files to documents: the kind by name and content, then the reader of that kind. `apart.Reader` runs this apart."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatkit.retrieval.charset import decode_text, wrong_characters
from chatkit.retrieval.document import Document, Page, Section, Unreadable, utf8
from chatkit.retrieval.formats import html, kinds, markdown

# A larger text file is more likely a dump than a document. Bytes.
MAX_FILE_BYTES = 64 * 2**20
# Most characters of one document, of any kind.
MAX_TEXT = 64 * 2**20
# Read whole, by the functions below; the other kinds have a module each.
_WHOLE = frozenset({"markdown", "html", "text"})
_PAGED = {"pdf": "pdf", "docx": "docx", "pptx": "pptx", "xlsx": "xlsx", "epub": "epub"}
_RECORDS = {"csv": "tables", "jsonl": "records", "wikitext": "wikitext"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of one file is read, and with which passwords.

    Attributes:
        passed: records from the first that are passed over, of files that say when a record is begun.
    """

    file_bytes: int = MAX_FILE_BYTES
    text: int = MAX_TEXT
    passwords: Sequence[str] = ()
    passed: int = 0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Part of a file that is no document; the reason names the part."""

    reason: str


@dataclass(frozen=True, slots=True)
class Begun:
    """The next record is begun: where one may cost too much, it is known which it was."""


def parse_file(path: Path, source: str, limits: Limits | None = None) -> Iterator[Document | LeftOut | Begun | None]:
    """Yield the documents in a file, what is left out of it, and None as a sign of life between far-off documents.

    Args:
        path: the file.
        source: the name that its passages carry.
        limits: how much is read.

    Raises:
        Unreadable: of another kind, locked, damaged, too large, or without text.
        OSError: the file cannot be read.
    """
    limits = limits or Limits()
    kind = kinds.kind_of(path)
    if kind in _WHOLE:
        size = path.stat().st_size
        if size > limits.file_bytes:
            raise Unreadable(
                f"has {size} bytes, at most {limits.file_bytes} are read as one document; "
                "split it, or make its parts records of a .jsonl file"
            )
        document = parse(path, source, path.read_bytes())
        yield document
        if kind == "html" and (wrong := wrong_characters(document.text)):
            yield LeftOut(f"characters that are not in its encoding: {wrong}")
    elif kind in _PAGED:
        module = importlib.import_module(f"chatkit.retrieval.formats.{_PAGED[kind]}")
        left_out: list[str] = []
        page: Page = module.read(path, limits=limits, leave_out=left_out.append)
        if not page.text.strip():
            raise Unreadable("holds no text")
        yield _checked(Document(source, page.title or title_from(path), page.text, page.sections), limits)
        yield from map(LeftOut, left_out)
    else:
        module = importlib.import_module(f"chatkit.retrieval.formats.{_RECORDS[kind]}")
        found_in = (
            module.documents(path, source, limits.passed) if kind == "wikitext" else module.documents(path, source)
        )
        for found in found_in:
            yield _checked(found, limits) if isinstance(found, Document) else found


def parse(path: Path, source: str, content: bytes) -> Document:
    """Return the document in the content of a Markdown, HTML or text file, by the suffix of `path`.

    Args:
        path: only its name is looked at.
        source: the name that its passages carry.
        content: the file.

    Raises:
        Unreadable: in an unknown encoding, binary, empty, or of another kind.
    """
    suffix = path.suffix.lower()
    kind = kinds.READ_BY.get(suffix, "")
    if kind not in _WHOLE:
        raise Unreadable(f"is neither Markdown nor HTML nor text (suffix {path.suffix!r})")
    if kind == "html":
        page = html.read(content)
        return Document(source, page.title or title_from(path), page.text, page.sections)
    text = decode_text(content)
    if kind == "markdown":
        title, sections = markdown.read(text)
        return Document(source, title or title_from(path), text, sections)
    return Document(source, title_from(path), text, (Section("", 0, len(text)),))


def title_from(path: Path) -> str:
    """Return a title made of a file's name."""
    return utf8(path.stem).replace("_", " ").replace("-", " ")


def _checked(document: Document, limits: Limits) -> Document:
    if len(document.text) > limits.text:
        raise Unreadable(f"holds {len(document.text)} characters of text, at most {limits.text} are read; split it")
    return document
