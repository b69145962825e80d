"""PDF to text with pages: lines run together to paragraphs, larger type taken for headings."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from chatkit.retrieval.document import Outline, Page, Unreadable
from chatkit.retrieval.parsing import Limits

# Type at least so much larger than most of the text is a heading, if the line is short. Characters.
_HEADING_RATIO = 1.15
_LONGEST_HEADING = 120
_DEEPEST_HEADING = 4
# A line at least this share of the page's long lines goes on in the next one.
_FULL_LINE = 0.75
# Lines at the edge of at least so many pages, and so large a share of all, are running heads. They stand apart from the
# text by so many times the size of their type; lines of a text that is set widely have 1.5.
_RUNNING_PAGES = 4
_RUNNING_SHARE = 0.5
_APART = 1.55
_NUMBER = re.compile(r"\d+")
_MOST_NUMBERS = 4
_MOST_DIGITS = 6
# So many lines and curves may be words that were drawn.
_MANY_STROKES = 100
_END_MARK_WITHIN = 2048
# pdfium's sign for a hyphen at a line's end that is not part of the word, and its sign for a letter without a meaning.
_HYPHEN = "\x02"
_CONTROLS = re.compile(r"[\0\x01\x03-\x08\x0b\x0e-\x1f\ufffe\uffff]")
_ITEM = re.compile(r"(?:[•▪◦‣·○●\-–—*]|\(?\w{1,3}[.)])\s")
# The letters of one Arabic sign, the wrong way round where they stand at one place.
_ALEF_LAM = re.compile("[\u0622\u0623\u0625\u0627]\u0644")
_NO_TITLE = re.compile(
    r"untitled|\(anonymous\)$|microsoft (?:word|powerpoint) - |.*\.(?:docx?|pptx?|xlsx?|tex|dvi|indd|pdf)$",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Line:
    """One line of a page.

    Attributes:
        text: without blanks at its ends.
        size: of its type, in points.
        height: of its base line over the lower edge of the page, in points.
    """

    text: str
    size: float
    height: float


def read(path: Path, *, limits: Limits, leave_out: Callable[[str], None]) -> Page:
    """Return the text of a PDF; a section stands on one page.

    Raises:
        Unreadable: locked, damaged, or with no text on any page.
    """
    import pypdfium2

    with contextlib.closing(_open(path, limits.passwords)) as document:
        pages: list[list[_Line]] = []
        empty: list[int] = []
        broken: list[int] = []
        size = 0
        for number in range(len(document)):
            try:
                lines, has_picture = _lines(document, number)
            except pypdfium2.PdfiumError:
                lines, has_picture = [], False
                broken.append(number + 1)
            pages.append(lines)
            size += sum(len(line.text) for line in lines)
            if size > limits.text:
                raise Unreadable(f"holds more than {limits.text} characters of text; split it")
            if not lines and has_picture:
                empty.append(number + 1)
        title = _title(document)
    if broken:
        leave_out(f"pages that cannot be read: {_ranges(broken)}; get a whole copy of it")
    if not any(pages):
        scanned = ", looks scanned; recognise its text first (OCR)" if empty else ""
        raise Unreadable(f"holds no text on its {len(pages)} pages{scanned}")
    if empty:
        leave_out(f"pages without text, look scanned: {_ranges(empty)}")
    if not _ends_whole(path):
        leave_out("ends early, so it is damaged or truncated; what could be found in it was read")
    _drop_running_heads(pages)
    return _Writer(pages, title).page()


def _open(path: Path, passwords: Iterable[str]) -> Any:
    import pypdfium2
    from pypdfium2 import raw

    for password in (None, *passwords):
        try:
            return pypdfium2.PdfDocument(path, password=password)
        except pypdfium2.PdfiumError as error:
            if getattr(error, "err_code", None) != raw.FPDF_ERR_PASSWORD:
                raise Unreadable(f"is damaged or truncated ({error}); get a whole copy of it") from error
    raise Unreadable("is encrypted; save it without a password")


def _lines(document: Any, number: int) -> tuple[list[_Line], bool]:
    """Return the lines of one page, and whether it shows a picture, or much that is drawn, where it has none."""
    from pypdfium2 import raw

    with contextlib.closing(document[number]) as page, contextlib.closing(page.get_textpage()) as words:
        lines = []
        at = 0
        for line in _ligatures_in_order(words).split("\n"):
            text = " ".join(_CONTROLS.sub(" ", line).split())
            if text:
                # In the middle: signs without a code shift positions a little.
                middle = at + len(line) // 2
                size = raw.FPDFText_GetFontSize(words.raw, middle)
                lines.append(_Line(text, round(size * 2) / 2, _origin(words, middle)[1]))
            at += len(line) + 1
        return lines, not lines and _shows_something(page)


def _shows_something(page: Any) -> bool:
    from pypdfium2 import raw

    shown = page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_PATH])
    kinds = [one.type for one in islice(shown, _MANY_STROKES)]
    return len(kinds) == _MANY_STROKES or raw.FPDF_PAGEOBJ_IMAGE in kinds


def _origin(words: Any, at: int) -> tuple[float, float]:
    """Return where on the page a character stands, from the left and from below."""
    from ctypes import byref, c_double

    from pypdfium2 import raw

    x, y = c_double(), c_double()
    raw.FPDFText_GetCharOrigin(words.raw, at, byref(x), byref(y))
    return x.value, y.value


def _ligatures_in_order(words: Any) -> str:
    """Return a page's text. pdfium turns lines that run from the right, and with them the letters of one sign."""
    from pypdfium2 import raw

    text: str = words.get_text_range()
    swapped = [
        pair.start()
        for pair in _ALEF_LAM.finditer(text)
        if raw.FPDFText_GetUnicode(words.raw, pair.start()) == ord(pair[0][0])
        and _origin(words, pair.start()) == _origin(words, pair.start() + 1)
    ]
    signs = list(text)
    for at in swapped:
        signs[at], signs[at + 1] = signs[at + 1], signs[at]
    return "".join(signs)


def _title(document: Any) -> str:
    title = " ".join(_CONTROLS.sub(" ", document.get_metadata_dict().get("Title", "")).split())
    return "" if _NO_TITLE.match(title) else title


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_MARK_WITHIN))
        return b"%%EOF" in file.read()


def _ranges(numbers: list[int]) -> str:
    """Return `1-3, 7` for 1, 2, 3, 7."""
    told: list[list[int]] = []
    for number in numbers:
        if told and told[-1][1] == number - 1:
            told[-1][1] = number
        else:
            told.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in told)


def _drop_running_heads(pages: list[list[_Line]]) -> None:
    """Drop the first and last lines that most pages have at one place, the same but for the number of the page.

    Headings and lines of the text stay: a running head is in the type of the text or smaller, and stands apart from it.
    """
    filled = [(number, lines) for number, lines in enumerate(pages) if len(lines) > 2]
    levels = _levels(pages)
    for edge, following in ((0, 1), (-1, -2)):
        told = [
            _running(lines[edge], number) if _is_apart(lines[edge], lines[following], levels) else frozenset()
            for number, lines in filled
        ]
        seen = Counter(key for keys in told for key in keys)
        for (_, lines), keys in zip(filled, told, strict=True):
            times = max((seen[key] for key in keys), default=0)
            if times >= _RUNNING_PAGES and times > _RUNNING_SHARE * len(filled):
                lines.pop(edge)


def _is_apart(line: _Line, following: _Line, levels: dict[float, int]) -> bool:
    return line.size not in levels and abs(line.height - following.height) > _APART * max(line.size, following.size)


def _running(line: _Line, page: int) -> frozenset[tuple[str, int]]:
    """Return what a line is as a running head of its page: itself, or one of its numbers less that of the page."""
    place = round(line.height)
    found = {(line.text, place)}
    for number in list(_NUMBER.finditer(line.text))[:_MOST_NUMBERS]:
        first = int(number[0][:_MOST_DIGITS]) - page
        found.add((f"{line.text[: number.start()]}\0{first}\0{line.text[number.end() :]}", place))
    return frozenset(found)


class _Writer:
    """Puts the lines of all pages into one text."""

    def __init__(self, pages: list[list[_Line]], title: str) -> None:
        self._pages = pages
        self._title = title
        self._levels = _levels(pages)
        self._outline = Outline()
        self._parts: list[str] = []
        self._length = 0

    def page(self) -> Page:
        """Return the text with its sections."""
        for number, lines in enumerate(self._pages, start=1):
            self._gap("\n\n" if lines else "")
            self._outline.page(number, self._length)
            for level, text, gap in _blocks(lines, self._levels):
                start = self._length
                self._put(text)
                if level:
                    self._at_heading(level, text, start, number)
                self._gap(gap)
        text = "".join(self._parts)
        return Page(self._title, text, self._outline.sections(text))

    def _at_heading(self, level: int, words: str, start: int, number: int) -> None:
        is_title = number == 1 and level == 1 and (not self._title or words.casefold() == self._title.casefold())
        if is_title:
            self._title = words
        self._outline.heading(level, words, start, self._length, is_title=is_title)

    def _put(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def _gap(self, gap: str) -> None:
        if self._parts and not self._parts[-1].endswith("\n\n"):
            self._put(gap)


def _levels(pages: list[list[_Line]]) -> dict[float, int]:
    """Return the sizes of type that are headings, the largest first as level 1."""
    written: Counter[float] = Counter()
    for page in pages:
        for line in page:
            written[line.size] += len(line.text)
    if not written:
        return {}
    body = written.most_common(1)[0][0]
    larger = sorted((size for size in written if size > body * _HEADING_RATIO), reverse=True)
    return {size: min(rank, _DEEPEST_HEADING) for rank, size in enumerate(larger, start=1)}


def _blocks(lines: list[_Line], levels: dict[float, int]) -> Iterator[tuple[int, str, str]]:
    """Yield headings (with their level) and paragraphs (level 0), and what stands between each and the next."""
    lengths = sorted(len(line.text) for line in lines)
    long = lengths[int(len(lengths) * 0.8)] if lengths else 0
    at = 0
    while at < len(lines):
        level = _level_of(lines[at], levels)
        first, text = at, lines[at].text
        at += 1
        while at < len(lines) and _goes_on(lines[at - 1], lines[at], long, levels):
            text = _joined(text, lines[at].text)
            at += 1
        if level and len(text) <= _LONGEST_HEADING:
            yield level, text.replace(_HYPHEN, "-"), "\n\n"
        else:
            yield 0, text.replace(_HYPHEN, "-"), "\n\n" if at - first > 1 else "\n"


def _level_of(line: _Line, levels: dict[float, int]) -> int:
    has_letters = any(sign.isalpha() for sign in line.text)
    return levels.get(line.size, 0) if has_letters and len(line.text) <= _LONGEST_HEADING else 0


def _goes_on(line: _Line, following: _Line, long: int, levels: dict[float, int]) -> bool:
    if line.size != following.size:
        return False
    if _level_of(line, levels):
        return bool(_level_of(following, levels))  # a heading of two lines
    if line.text.endswith(_HYPHEN):
        return True
    return len(line.text) >= _FULL_LINE * long > 20 and not _ITEM.match(following.text)


def _joined(text: str, following: str) -> str:
    return text[: -len(_HYPHEN)] + following if text.endswith(_HYPHEN) else f"{text} {following}"
