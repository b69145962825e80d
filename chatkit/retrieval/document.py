"""What a file of any format becomes: a text, its title and its sections."""

import os
from dataclasses import dataclass


class Unreadable(Exception):
    """One file cannot be indexed; the message is the reason. Skips the file, never ends a build."""


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a document under one heading, the heading line itself not included.

    Attributes:
        heading: headings from the outermost to the own one, joined by " > "; the document's title is left out.
        start, end: character offsets in the document.
        page: page or slide, from 1; 0 in formats that have none. In the others a section never spans two pages.
    """

    heading: str
    start: int
    end: int
    page: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its sections in order: a file, or a record, row or article of one.

    Attributes:
        source: the file's name; of a record in a file `FILE#RECORD`, the same in every build.
        text: of Markdown and plain text the file as it is, else what a reader of the file is shown.
    """

    source: str
    title: str
    text: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What one file says; `title` is empty where it has none."""

    title: str
    text: str
    sections: tuple[Section, ...]


class Outline:
    """Collects the sections of one text while its headings are met in order."""

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._page = 0
        self._trail: list[tuple[int, str]] = []
        self._sections: list[Section] = []

    def heading(self, level: int, words: str, start: int, end: int, *, is_title: bool = False) -> None:
        """Begin a section after the heading that stands from `start` to `end`; a title names no section."""
        self._close(start)
        self._start = end
        self._trail = [entry for entry in self._trail if entry[0] < level]
        if not is_title:
            self._trail.append((level, words))

    def page(self, number: int, start: int) -> None:
        """Begin page `number` at `start`, under the headings that stand."""
        self._close(start)
        self._start, self._page = start, number

    def sections(self, text: str) -> tuple[Section, ...]:
        """Return the sections of the whole text, those without a word left out."""
        self._close(len(text))
        return tuple(section for section in self._sections if text[section.start : section.end].strip())

    def _close(self, end: int) -> None:
        heading = " > ".join(words for _, words in self._trail if words)
        self._sections.append(Section(heading, self._start, end, self._page))


def utf8(name: str) -> str:
    """Return a file's name with the bytes of it that are not UTF-8 written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
