"""PPTX to text: a page a slide, with tables, charts, diagrams, what pictures are said to show, notes and comments."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chatkit.retrieval.document import Page, Unreadable
from chatkit.retrieval.formats.archive import Archive
from chatkit.retrieval.formats.paper import Paper
from chatkit.retrieval.parsing import Limits

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_TEXT = f"{_A}t"
_ALTERNATIVES = "{http://schemas.openxmlformats.org/markup-compatibility/2006}AlternateContent"
# Parts of a slide that the library has no name for: what they are called in a slide's list of parts.
_DIAGRAM, _COMMENTS = "diagramData", "comments"
# What PowerPoint writes where nobody gave a title.
_NO_TITLES = frozenset({"PowerPoint Presentation", "Slide 1"})
_COMMENT_WORDS = frozenset({"text", "t"})


def read(path: Path, *, limits: Limits, leave_out: Callable[[str], None]) -> Page:
    """Return the text of a PPTX file; a section is a slide.

    Raises:
        Unreadable: damaged, locked, or unfolding to more than is read.
    """
    import pptx

    with Archive(path) as archive:
        try:
            deck = pptx.Presentation(archive.without_media())
        except (KeyError, ValueError) as error:
            raise Unreadable(f"is damaged ({error}); save it anew") from error
    paper = Paper()
    for number, slide in enumerate(deck.slides, start=1):
        paper.page(number)
        _slide(slide, number, paper)
    title = deck.core_properties.title or ""
    return paper.finish("" if title in _NO_TITLES else title)


def _slide(slide: Any, number: int, paper: Paper) -> None:
    _choose(slide._element)
    head = slide.shapes.title
    words = head.text_frame.text.strip() if head is not None and head.has_text_frame else ""
    # A slide without a title must not stand under that of the one before; many slides say nothing but their title.
    paper.heading(2, words or f"Slide {number}", is_said=True)
    paper.title = paper.title or words
    for shape in slide.shapes:
        if head is None or shape._element is not head._element:
            _shape(shape, paper)
    for kind, root in _parts(slide):
        paper.gap()
        wanted = (_TEXT,) if kind == _DIAGRAM else tuple(_COMMENT_WORDS)
        for line in _texts(root, wanted):
            paper.line(line if kind == _DIAGRAM else f"Comment: {line}")
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        paper.paragraph(slide.notes_slide.notes_text_frame.text)


def _choose(root: Any) -> None:
    """Put what newer versions draw in the place of the alternatives, which the library passes over with their words."""
    for alternatives in list(root.iter(_ALTERNATIVES)):
        chosen = alternatives.find("{*}Choice")
        for element in list(chosen if chosen is not None else ()):
            alternatives.addprevious(element)
        alternatives.getparent().remove(alternatives)


def _shape(shape: Any, paper: Paper) -> None:
    if hasattr(shape, "shapes"):
        for inner in shape.shapes:
            _shape(inner, paper)
    elif getattr(shape, "has_table", False):
        paper.rows([cell.text for cell in row.cells if not cell.is_spanned] for row in shape.table.rows)
    elif getattr(shape, "has_chart", False):
        _chart(shape.chart, paper)
    elif shape.has_text_frame:
        paper.gap()
        for paragraph in shape.text_frame.paragraphs:
            paper.line(f"{'  ' * paragraph.level}{paragraph.text}")
        paper.gap()
    else:
        properties = shape._element.find(".//{*}cNvPr")
        paper.paragraph(properties.get("descr") or "" if properties is not None else "")


def _chart(chart: Any, paper: Paper) -> None:
    if chart.has_title and chart.chart_title.has_text_frame:
        paper.paragraph(chart.chart_title.text_frame.text)
    try:
        plots = list(chart.plots)
        categories = [str(category) for category in plots[0].categories] if plots else []
        rows = [["", *categories]] if categories else []
        rows += [[one.name or "", *map(_number, one.values)] for plot in plots for one in plot.series]
    except (ValueError, AttributeError, NotImplementedError, KeyError):  # a kind of chart that the library cannot read
        return
    paper.rows(rows)


def _number(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _parts(slide: Any) -> Iterator[tuple[str, Any]]:
    """Yield kind and root of the diagrams and comments of a slide."""
    from lxml import etree

    for relation in slide.part.rels.values():
        kind = relation.reltype.rsplit("/", 1)[-1]
        if not relation.is_external and kind in (_DIAGRAM, _COMMENTS):
            root = etree.fromstring(relation.target_part.blob, etree.XMLParser(resolve_entities=False))
            yield kind, root


def _texts(root: Any, wanted: tuple[str, ...]) -> Iterator[str]:
    """Yield the words of the elements named so, with or without their namespace."""
    for element in root.iter():
        if isinstance(element.tag, str) and (element.tag in wanted or element.tag.rpartition("}")[2] in wanted):
            yield element.text or ""
