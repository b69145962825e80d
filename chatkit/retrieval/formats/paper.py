"""A text that grows block by block, with its headings and pages: what the readers of structured formats write on."""

import re
from collections.abc import Iterable

from chatkit.retrieval.document import Outline, Page

# A longer heading is a paragraph in a heading's style. Characters.
_LONGEST_HEADING = 300
_LINE_ENDS = re.compile(r"[\r\v\f\x1c-\x1e\x85\u2028\u2029]\n?")
_CONTROLS = re.compile(r"[\0-\x08\x0e-\x1b\x1f]")


class Paper:
    """Takes blocks in reading order."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._newlines = 0
        self._outline = Outline()
        self.title = ""

    def heading(self, level: int, words: str, *, is_title: bool = False, is_said: bool = False) -> None:
        """Put a heading; from here on text stands under it.

        Args:
            level: 1 is the outermost.
            words: the heading; a very long one is a paragraph.
            is_title: of the document, which names no section.
            is_said: it is part of the section as well.
        """
        words = " ".join(_clean(words).split())
        if not words or len(words) > _LONGEST_HEADING:
            self.paragraph(words)
            return
        self._newlines = 2
        start = self._length + (2 if self._parts else 0)
        self._put(words)
        self._newlines = 2
        if is_title:
            self.title = self.title or words
        end = start if is_said else self._length
        self._outline.heading(level, words, start, end, is_title=is_title)

    def paragraph(self, text: str) -> None:
        """Put a paragraph, an empty line before and after it."""
        self._newlines = 2
        self.line(text)
        self._newlines = 2

    def line(self, text: str) -> None:
        """Put a line: of a list, or a row."""
        if text := _clean(text).strip():
            self._put(text)
            self._newlines = 1

    def gap(self) -> None:
        """Let an empty line come before the next block."""
        self._newlines = 2

    def page(self, number: int) -> None:
        """Begin a page, under the headings that stand."""
        self._newlines = 2
        self._outline.page(number, self._length)

    def rows(self, rows: Iterable[Iterable[str]]) -> None:
        """Put a table, a line a row, the cells joined by a bar; rows without a word are left out."""
        self.gap()
        for row in rows:
            cells = [" ".join(_clean(cell).split()) for cell in row]
            if any(cells):
                self.line(" | ".join(cells))
        self.gap()

    def finish(self, title: str = "") -> Page:
        """Return all of it; `title` counts before one that was put."""
        text = "".join(self._parts)
        return Page(" ".join(_clean(title).split()) or self.title, text, self._outline.sections(text))

    def _put(self, text: str) -> None:
        if self._parts:
            text = "\n" * max(1, self._newlines) + text
        self._parts.append(text)
        self._length += len(text)


def _clean(text: str) -> str:
    return _CONTROLS.sub("", _LINE_ENDS.sub("\n", text)).replace("\xa0", " ")
