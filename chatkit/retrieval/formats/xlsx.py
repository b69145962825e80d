"""XLSX to text: a section a sheet; a row of a table says the heads of its columns, so that it can be found alone."""

import datetime
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from chatkit.retrieval.document import Page, Unreadable
from chatkit.retrieval.formats.archive import Archive
from chatkit.retrieval.formats.paper import Paper
from chatkit.retrieval.formats.rows import said
from chatkit.retrieval.parsing import Limits

# Sheets are read as a stream, so a large one may unfold further than other parts.
_SHEET_BYTES = 512 * 2**20
_MOST_COLUMNS = 1000
_DRAWN = re.compile(r"xl/(?:charts/chart|drawings/drawing)\d*\.xml")
_COMMENTS = re.compile(r"xl/(?:comments/?comment\w*|comments|threadedComments/threadedComment)\d*\.xml")
# What Excel writes for versions of it that do not know threads; the thread itself has a part of its own.
_STAND_IN = "[Threaded comment]"
# A cell with a formula that no program computed.
_NOT_COMPUTED = re.compile(rb"(?:</f>|<f\b[^<>]*/>)\s*(?:<v\s*/>|<v></v>)?\s*</c>")
_TEXT = frozenset({"t", "text"})


def read(path: Path, *, limits: Limits, leave_out: Callable[[str], None]) -> Page:
    """Return the text of an XLSX file: the values as they were last computed, charts' titles and comments.

    Raises:
        Unreadable: damaged, locked, or unfolding to more than is read.
    """
    import openpyxl

    with Archive(path, part_bytes=_SHEET_BYTES, all_bytes=_SHEET_BYTES) as archive:
        package = archive.without_media()
        drawn = list(_outside_cells(archive, _DRAWN))
        comments = list(_outside_cells(archive, _COMMENTS))
    try:
        book = openpyxl.load_workbook(package, read_only=True, data_only=True, keep_links=False)
    except (KeyError, ValueError, TypeError) as error:
        raise Unreadable(f"is damaged ({error}); save it anew") from error
    if uncomputed := sum(1 for _ in _NOT_COMPUTED.finditer(package.getbuffer())):
        leave_out(f"formulas without a value: {uncomputed}; open and save it in a program for workbooks")
    paper = Paper()
    bare: list[str] = []  # sheets that hold drawings only, or nothing
    room = limits.text
    for sheet in book.worksheets:
        size = _sheet(sheet, paper, room, leave_out)
        if size > room:
            raise Unreadable(f"holds more than {limits.text} characters of text; split it")
        room -= size
        if not size:
            bare.append(sheet.title)
    drawn = [*bare, *(sheet.title for sheet in book.chartsheets), *drawn]
    for name, lines in (("Charts and drawings", drawn if len(drawn) > len(bare) else []), ("Comments", comments)):
        if lines:
            paper.heading(2, name)
        for line in lines:
            paper.line(line)
    return paper.finish(book.properties.title or "")


def _sheet(sheet: Any, paper: Paper, room: int, leave_out: Callable[[str], None]) -> int:
    """Put the rows of a sheet under its name; return the characters put, or as soon as there are more than `room`."""
    sheet.reset_dimensions()  # what a sheet says of its size is often wrong
    size = 0
    rows = sheet.iter_rows(values_only=True)
    for block in _blocks(_narrowed(rows, lambda: leave_out(f"columns of {sheet.title!r} after {_MOST_COLUMNS}"))):
        if not size:
            paper.heading(2, sheet.title)
        paper.gap()
        for line in said(block):
            size += len(line)
            if size > room:
                return size
            paper.line(line)
    return size


def _narrowed(rows: Iterable[tuple[Any, ...]], too_wide: Callable[[], None]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows as far as they are read; tell once where one goes on."""
    is_told = False
    for row in rows:
        if not is_told and any(value is not None for value in row[_MOST_COLUMNS:]):
            is_told = True
            too_wide()
        yield row[:_MOST_COLUMNS]


def _blocks(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[list[str]]]:
    """Yield the tables of a sheet: what stands between empty rows."""
    block: list[list[str]] = []
    for row in rows:
        cells = [_shown(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            block.append(cells)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return " ".join(str(value).split())


def _outside_cells(archive: Archive, parts: "re.Pattern[str]") -> Iterator[str]:
    """Yield the paragraphs in parts that are no sheets."""
    from lxml import etree

    for name in archive.names:
        if not parts.fullmatch(name):
            continue
        root = etree.fromstring(archive.read(name), etree.XMLParser(resolve_entities=False))
        for group in root.iter("{*}p", "{*}comment", "{*}threadedComment"):
            words = (part.text or "" for part in group.iter() if _is_text(part.tag))
            line = " ".join("".join(words).split())
            if line and not line.startswith(_STAND_IN):
                yield line


def _is_text(tag: Any) -> bool:
    return isinstance(tag, str) and tag.rpartition("}")[2] in _TEXT
