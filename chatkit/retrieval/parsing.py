"""Files to documents: Markdown and plain text, read as they are so that offsets point into the file."""

import re
from dataclasses import dataclass
from pathlib import Path

MARKDOWN = frozenset({".md", ".markdown"})
TEXT = frozenset({".txt", ".text"})
SUFFIXES = MARKDOWN | TEXT

# A larger text file is more likely a dump than a document. Bytes.
MAX_FILE_BYTES = 64 * 2**20

_HEADING = re.compile(r"(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


class Unreadable(Exception):
    """One file cannot be indexed; the message is the reason. Skips the file, never ends a build."""


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document under one heading, the heading line itself not included.

    Attributes:
        heading: headings from the outermost to the own one, joined by " > "; the document's title is left out.
        start, end: character offsets in the document.
    """

    heading: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """One file's text with its sections in order."""

    source: str
    title: str
    text: str
    sections: tuple[Section, ...]


def parse(path: Path, source: str, content: bytes) -> Document:
    """Return the document in `content`, by the suffix of `path`.

    Raises:
        Unreadable: not UTF-8, binary, empty, or of a kind that is not read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise Unreadable(
            f"is neither Markdown nor text (suffix {path.suffix!r}, expected {', '.join(sorted(SUFFIXES))})"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 (byte {error.start}); convert it to UTF-8") from error
    if "\0" in text:
        raise Unreadable("holds NUL characters, so it is no text")
    if not text.strip():
        raise Unreadable("is empty")
    if path.suffix.lower() in MARKDOWN:
        return _markdown(path, source, text)
    return Document(source, _title_from(path), text, (Section("", 0, len(text)),))


def _markdown(path: Path, source: str, text: str) -> Document:
    """Cut at ATX headings that stand outside fenced code; the first level-one heading is the title."""
    title = ""
    trail: list[tuple[int, str]] = []
    sections: list[Section] = []
    start = body = _after_front_matter(text)
    fence = ""
    for line_start, line in _lines(text, body):
        fence = _fence_after(line, fence)
        heading = None if fence else _HEADING.match(line)
        if heading is None:
            continue
        sections.append(Section(_joined(trail), start, line_start))
        start = min(line_start + len(line) + 1, len(text))
        level, words = len(heading[1]), _plain(heading[2])
        trail = [entry for entry in trail if entry[0] < level]
        if level == 1 and not title:
            title = words
        else:
            trail.append((level, words))
    sections.append(Section(_joined(trail), start, len(text)))
    kept = tuple(section for section in sections if text[section.start : section.end].strip())
    return Document(source, title or _title_from(path), text, kept)


def _lines(text: str, start: int) -> list[tuple[int, str]]:
    lines = []
    for line in text[start:].split("\n"):
        lines.append((start, line))
        start += len(line) + 1
    return lines


def _fence_after(line: str, fence: str) -> str:
    """Return the fence that is open after `line`, empty for none. A fence is closed by one of its kind, as long."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return match[1]
    closes = match[1].startswith(fence) and not line.strip().strip(fence[0])
    return "" if closes else fence


def _after_front_matter(text: str) -> int:
    """Return where the body starts: a leading block between two lines of `---` is settings, not prose."""
    match = re.match(r"---[ \t]*\r?\n.*?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    return match.end() if match else 0


def _plain(heading: str) -> str:
    """Return a heading without links, code marks and emphasis."""
    words = _LINK.sub(r"\1", heading)
    return " ".join(re.sub(r"[`*]", "", words).split())


def _joined(trail: list[tuple[int, str]]) -> str:
    return " > ".join(words for _, words in trail if words)


def _title_from(path: Path) -> str:
    return path.stem.replace("_", " ").replace("-", " ")
