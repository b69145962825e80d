"""DOCX to text: paragraphs, lists, tables, text boxes, formulas, notes and comments, headings as sections."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chatkit.retrieval.document import Page, Unreadable
from chatkit.retrieval.formats.archive import Archive
from chatkit.retrieval.formats.paper import Paper
from chatkit.retrieval.parsing import Limits

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_BOX = f"{_W}txbxContent"
_PARAGRAPH, _TABLE, _ROW, _CELL = f"{_W}p", f"{_W}tbl", f"{_W}tr", f"{_W}tc"
_SAID = {
    f"{_W}t": None,
    f"{_M}t": None,
    f"{_W}tab": "\t",
    f"{_W}br": "\n",
    f"{_W}cr": "\n",
    f"{_W}noBreakHyphen": "-",
}
# Not part of what a document says: the older drawing of what was just drawn, deleted and moved words, settings.
_LEFT_OUT = frozenset({f"{_MC}Fallback", f"{_W}del", f"{_W}moveFrom", f"{_W}pPr", f"{_W}rPr", f"{_W}instrText"})
_HEADING = re.compile(r"heading (\d)$", re.IGNORECASE)
# Parts beside the text whose paragraphs are read after it.
_NOTES = ("footnotes", "endnotes", "comments")


def read(path: Path, *, limits: Limits, leave_out: Callable[[str], None]) -> Page:
    """Return the text of a DOCX file. Headers and footers repeat what the text says, and are left out.

    Raises:
        Unreadable: damaged, locked, or unfolding to more than is read.
    """
    import docx

    with Archive(path) as archive:
        try:
            document = docx.Document(archive.without_media())
        except (KeyError, ValueError) as error:
            raise Unreadable(f"is damaged ({error}); save it anew") from error
    reading = _Reading(document)
    reading.blocks(document.element.body)
    for part in _notes(document):
        reading.blocks(part)
    return reading.paper.finish(document.core_properties.title or "")


def _notes(document: Any) -> Iterator[Any]:
    """Yield the roots of the parts with notes."""
    from lxml import etree

    for relation in document.part.rels.values():
        if not relation.is_external and relation.reltype.rsplit("/", 1)[-1] in _NOTES:
            yield etree.fromstring(relation.target_part.blob, etree.XMLParser(resolve_entities=False))


class _Reading:
    """One document on its way to text."""

    def __init__(self, document: Any) -> None:
        self.paper = Paper()
        self._styles = {style.style_id: (style.name or "").lower() for style in document.styles}

    def blocks(self, parent: Any) -> None:
        """Put the paragraphs and tables in `parent`, in order, through whatever wraps them."""
        for child in parent:
            if child.tag == _PARAGRAPH:
                self._paragraph(child)
            elif child.tag == _TABLE:
                self._table(child)
            elif child.tag not in _LEFT_OUT:
                self.blocks(child)

    def _paragraph(self, paragraph: Any) -> None:
        text = "".join(_words(paragraph)).strip()
        style = self._style(paragraph)
        heading = _HEADING.match(style)
        if heading is not None:
            self.paper.heading(int(heading[1]) + 1, text)
        elif style == "title" and not self.paper.title:
            self.paper.heading(1, text, is_title=True)
        elif _is_item(paragraph) or style.startswith("list"):
            self.paper.line(f"- {text}" if text else "")
        else:
            self.paper.paragraph(text)
        for box in _boxes(paragraph):
            self.blocks(box)

    def _style(self, paragraph: Any) -> str:
        style = paragraph.find(f"{_W}pPr/{_W}pStyle")
        return "" if style is None else self._styles.get(style.get(f"{_W}val"), "")

    def _table(self, table: Any) -> None:
        rows = list(table.iter(_ROW)) if not _is_nested(table) else []
        if len(rows) == 1 and len(list(rows[0].iterchildren(_CELL))) == 1:
            self.blocks(next(rows[0].iterchildren(_CELL)))  # a frame around text
            return
        self.paper.rows([_cell(cell) for cell in row.iter(_CELL) if _row_of(cell) is row] for row in rows)


def _row_of(cell: Any) -> Any:
    return next(cell.iterancestors(_ROW), None)


def _is_nested(table: Any) -> bool:
    return next(table.iterancestors(_TABLE), None) is not None


def _cell(cell: Any) -> str:
    """Return the words of a cell; those of tables in it stand in rows of their own."""
    paragraphs = (one for one in cell.iter(_PARAGRAPH) if next(one.iterancestors(_CELL)) is cell)
    return " ".join("".join(_words(one, with_boxes=True)) for one in paragraphs if not _in_box(one, cell))


def _in_box(paragraph: Any, cell: Any) -> bool:
    return any(above.tag == _BOX for above in paragraph.iterancestors() if cell in above.iterancestors())


def _is_item(paragraph: Any) -> bool:
    return paragraph.find(f"{_W}pPr/{_W}numPr") is not None


def _words(element: Any, *, with_boxes: bool = False) -> Iterator[str]:
    for child in element:
        if child.tag in _LEFT_OUT or (child.tag == _BOX and not with_boxes):
            continue
        if child.tag in _SAID:
            yield _SAID[child.tag] or child.text or ""
        elif child.tag == _PARAGRAPH:
            yield " "
            yield from _words(child, with_boxes=with_boxes)
        else:
            yield from _words(child, with_boxes=with_boxes)


def _boxes(element: Any) -> Iterator[Any]:
    """Yield the text boxes anchored in a paragraph; those in boxes come with them."""
    for child in element:
        if child.tag == _BOX:
            yield child
        elif child.tag not in _LEFT_OUT:
            yield from _boxes(child)
