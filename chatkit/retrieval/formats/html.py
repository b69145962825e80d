"""HTML to the text that a page shows, with its headings as sections. Nothing that a page names is fetched."""

import re
from collections.abc import Iterator
from typing import Any

from chatkit.retrieval.charset import decode
from chatkit.retrieval.document import Outline, Page, Unreadable

# The reason for a page without a visible word.
SHOWS_NOTHING = "shows no text"


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Not part of what a page says: code, navigation, controls, drawings and other documents.
_LEFT_OUT = _tags(
    "head script style template noscript iframe object embed svg canvas audio video select datalist textarea button"
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_PARAGRAPHS = _tags(
    "p blockquote table ul ol dl figure section article header footer aside main hr address details form"
)
_LINES = _tags("div li dt dd tr caption figcaption summary legend center body")
_LISTS = frozenset({"ul", "ol"})
_CELLS = frozenset({"td", "th"})
# A cell that holds one of these lays out the page rather than a row of a table.
_LAYOUT = frozenset({*_HEADINGS, "table", "pre"})

# Navigation is left out unless its links are as long as titles: then it lists pages rather than the parts of a site.
_WORDS_OF_A_TITLE = 4

_BLANKS = re.compile(r"[ \t\n\f\r\xa0]+")
_UNSEEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
# `<script src="x"/>` is closed in XHTML only; read as HTML it would swallow the page.
_SELF_CLOSED = re.compile(r"<([A-Za-z][A-Za-z0-9]*)(\s[^<>]*)?/>")
_VOID = _tags("area base br col embed hr img input link meta param source track wbr")
# A longer heading is one that was never closed: its words are text. Characters.
_LONGEST_HEADING = 300
_DEEPEST_INDENT = 8


def read(content: bytes) -> Page:
    """Return the text of a page: a paragraph a block, a line a list entry or table row, code as it is.

    Broken markup is read as browsers do. A hostile page can take minutes and gigabytes: see `apart`.

    Raises:
        Unreadable: not in the encoding it names, or without a visible word.
    """
    from selectolax.lexbor import LexborHTMLParser

    text = decode(content).replace("\r\n", "\n").replace("\r", "\n")
    if text.lstrip().startswith("<?xml"):
        text = _SELF_CLOSED.sub(_opened_and_closed, text)
    tree = LexborHTMLParser(text)
    extraction = _Extraction(_title(tree), _layout_cells(tree.root))
    for node, entered in _walk(tree.root):
        extraction.see(node, entered)
    page = extraction.page()
    if not page.text.strip():
        raise Unreadable(SHOWS_NOTHING)
    return page


def _opened_and_closed(tag: "re.Match[str]") -> str:
    return tag[0] if tag[1].lower() in _VOID else f"<{tag[1]}{tag[2] or ''}></{tag[1]}>"


def _title(tree: Any) -> str:
    node = tree.head.first_child if tree.head is not None else None
    while node is not None:
        if node.tag == "title" and node.first_child is not None:
            return " ".join((node.first_child.text_content or "").split())[:_LONGEST_HEADING]
        node = node.next
    return ""


def _walk(root: Any) -> Iterator[tuple[Any, bool]]:
    """Yield what is visible in document order, elements once when entered and once when left.

    It steps from node to node: pages are nested deeper than a recursion could go.
    """
    if root is None or _is_hidden(root):
        return
    depth, node = 0, root
    while True:
        visible = node.is_text_node or (node.is_element_node and not _is_hidden(node))
        if visible:
            yield node, True
        child = node.first_child if visible else None
        if child is not None:
            depth, node = depth + 1, child
            continue
        if visible:
            yield node, False
        while depth and node.next is None:
            depth, node = depth - 1, node.parent
            yield node, False
        if not depth:
            return
        node = node.next


def _is_hidden(node: Any) -> bool:
    if node.tag in _LEFT_OUT or (node.tag == "nav" and not _lists_titles(node)):
        return True
    attributes = node.attributes
    if not attributes:
        return bool(node.tag == "dialog")
    return (
        "hidden" in attributes
        or (attributes.get("aria-hidden") or "").lower() == "true"
        or (node.tag == "dialog" and "open" not in attributes)
        or _UNSEEN.search(attributes.get("style") or "") is not None
    )


def _lists_titles(navigation: Any) -> bool:
    links = [link.text() for link in navigation.css("a")]
    return bool(links) and sum(len(link.split()) for link in links) >= _WORDS_OF_A_TITLE * len(links)


def _layout_cells(root: Any) -> frozenset[int]:
    """Return the memory ids of the cells that hold headings, code or tables of their own."""
    cells: list[int] = []
    found = set()
    for node, entered in _walk(root):
        if node.tag in _CELLS:
            if entered:
                cells.append(node.mem_id)
            elif cells.pop() in found and cells:  # a cell in a cell, as in MathML
                found.add(cells[-1])
        elif entered and cells and node.tag in _LAYOUT:
            found.add(cells[-1])
    return frozenset(found)


class _Extraction:
    """One page on its way to text."""

    def __init__(self, title: str, layout: frozenset[int]) -> None:
        self._title = title
        self._layout = layout
        self._out = _Flow()
        self._outline = Outline()
        self._titled = False
        self._heading: tuple[int, int, int] | None = None
        self._lists: list[int | None] = []
        self._row: list[str] = []
        # Cells and code may hold more of their kind: the outermost counts, so what is open is a depth.
        self._cell: list[str] = []
        self._cells_open = 0
        self._code: list[str] = []
        self._code_open = 0

    def page(self) -> Page:
        """Return what was seen."""
        self._end_row()
        text = self._out.text()
        return Page(self._title, text, self._outline.sections(text))

    def see(self, node: Any, entered: bool) -> None:
        """Take the next step of the walk."""
        if node.is_text_node:
            if entered:
                self._say(node.text_content or "")
        elif self._code_open:
            self._in_code(node.tag, entered)
        elif self._cells_open:
            self._in_cell(node, entered)
        elif node.tag in _HEADINGS:
            self._at_heading(_HEADINGS[node.tag], entered)
        elif node.tag in _CELLS:
            self._at_cell(node, entered)
        else:
            self._at_block(node, entered)

    def _say(self, text: str) -> None:
        if self._code_open:
            self._code.append(text)
        elif self._cells_open:
            self._cell.append(text)
        else:
            if self._row and text.strip():  # cells that were in no row, as in MathML
                self._end_row()
            self._out.say(text)

    def _in_code(self, tag: str, entered: bool) -> None:
        if tag == "br" and entered:
            self._say("\n")
        elif tag == "pre":
            self._code_open += 1 if entered else -1
            if not self._code_open:
                self._end_row()
                self._out.put_code("".join(self._code))

    def _in_cell(self, node: Any, entered: bool) -> None:
        """Cells are lines without breaks; one that breaks lines or paragraphs has spaces there."""
        if node.tag in _CELLS:
            self._cells_open += 1 if entered else -1
            if not self._cells_open:
                self._row.append(" ".join("".join(self._cell).split()))
        if node.tag == "br" or node.tag in _PARAGRAPHS or node.tag in _LINES or node.tag in _CELLS:
            self._say(" ")

    def _at_heading(self, level: int, entered: bool) -> None:
        self._end_row()
        self._out.gap(2)
        if entered:
            self._heading = self._heading or (level, self._out.length, self._out.pieces)
        elif self._heading is not None and self._heading[0] == level:
            _, start, piece = self._heading
            self._heading = None
            words = self._out.words_since(piece)
            if words and len(words) <= _LONGEST_HEADING:
                self._outline.heading(level, words, start, self._out.length, is_title=self._is_title(level, words))

    def _is_title(self, level: int, words: str) -> bool:
        """The first h1 is the title, or repeats it: `<title>Ports - Handbook</title>` … `<h1>Ports</h1>`."""
        if level > 1 or self._titled:
            return False
        self._titled = True
        self._title = self._title or words
        return words.casefold() in self._title.casefold()

    def _at_cell(self, node: Any, entered: bool) -> None:
        if node.mem_id in self._layout:
            self._end_row()
            self._out.gap(2)
        elif entered:
            self._cell, self._cells_open = [], 1

    def _end_row(self) -> None:
        if any(self._row):
            self._out.gap(1)
            self._out.say(" | ".join(self._row))
            self._out.gap(1)
        self._row = []

    def _at_block(self, node: Any, entered: bool) -> None:
        tag = node.tag
        if tag == "pre":
            self._out.gap(2)
            self._code, self._code_open = [], 1
        elif tag == "br":
            if entered:
                self._out.break_line()
        elif tag in _LISTS and not entered:
            self._lists.pop()
        if tag in _PARAGRAPHS:
            self._out.gap(1 if self._lists else 2)
        elif tag in _LINES:
            self._out.gap(1)
        if tag == "tr":
            self._end_row()
        elif tag in _LISTS and entered:
            self._begin_list(node)
        elif tag == "li":
            self._out.prefix(self._bullet() if entered else "")

    def _begin_list(self, node: Any) -> None:
        start = node.attributes.get("start") or "1"
        numbered = int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 1
        self._lists.append(numbered if node.tag == "ol" else None)

    def _bullet(self) -> str:
        indent = "  " * min(len(self._lists) - 1, _DEEPEST_INDENT)
        number = self._lists[-1] if self._lists else None
        if number is None:
            return f"{indent}- "
        self._lists[-1] = number + 1
        return f"{indent}{number}. "


class _Flow:
    """Text that grows at its end: blanks are run together, breaks wait until a word follows."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._newlines = 0
        self._blank = False
        self._prefix = ""
        self.length = 0

    @property
    def pieces(self) -> int:
        """How many pieces there are, for `words_since`."""
        return len(self._parts)

    def text(self) -> str:
        """Return all of it."""
        return "".join(self._parts)

    def words_since(self, piece: int) -> str:
        """Return the words put since there were so many pieces, on one line."""
        return " ".join("".join(self._parts[piece:]).split())

    def gap(self, newlines: int) -> None:
        """Let the next word stand at least so many line ends further on."""
        self._newlines = max(self._newlines, newlines)

    def break_line(self) -> None:
        """End the line; a second time in a row, the paragraph."""
        self._newlines = min(self._newlines + 1, 2)

    def prefix(self, text: str) -> None:
        """Put `text` before the next word, in place of a prefix that still waits."""
        self._prefix = text

    def say(self, text: str) -> None:
        """Add words of running text."""
        words = _BLANKS.sub(" ", text.replace("\xad", ""))
        if words.startswith(" "):
            self._blank = True
        if bare := words.strip(" "):
            self._put(bare)
            self._blank = words.endswith(" ")

    def put_code(self, code: str) -> None:
        """Add a block of lines as they are."""
        if code.strip():
            self._put(code.strip("\n").rstrip())
        self.gap(2)

    def _put(self, text: str) -> None:
        lead = ""
        if self.length:
            lead = "\n" * self._newlines or (" " if self._blank else "")
        piece = lead + self._prefix + text
        self._newlines, self._blank, self._prefix = 0, False, ""
        self._parts.append(piece)
        self.length += len(piece)
