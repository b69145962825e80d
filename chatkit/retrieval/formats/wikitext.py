"""MediaWiki exports (`.xml`, `.xml.bz2`): a document an article, read as a stream. Redirects are left out."""

import bz2
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from chatkit.retrieval.document import Document, Unreadable
from chatkit.retrieval.formats.paper import Paper
from chatkit.retrieval.parsing import Begun, LeftOut, title_from

# Pages without an article between two signs of life.
_SILENT = 200
# A longer article is a list that a bot wrote. Characters; the parser takes about a second for a million.
_LONGEST = 2_000_000
_ARTICLES = "0"
_HEADING = re.compile(r"^(={2,6})[ \t]*(.+?)[ \t]*\1[ \t]*$", re.MULTILINE)
# What begins and ends stretches that are no text. One expression for both would try every beginning with every end.
_STRETCHES = [(re.compile("<!--"), re.compile("-->"))] + [
    (re.compile(rf"<{tag}\b[^<>]*>", re.IGNORECASE), re.compile(rf"</{tag}\s*>", re.IGNORECASE))
    for tag in ("ref", "gallery", "timeline", "score", "imagemap", "syntaxhighlight", "math")
]
# Pictures and categories, in the languages of the largest wikis.
_FILE = re.compile(
    r"\s*(?:File|Image|Datei|Bild|Fichier|Archivo|Файл|ファイル|文件|Category|Kategorie|Catégorie)\s*:", re.IGNORECASE
)
# Bold and italics. Left to the parser, unpaired ones take it time that grows with their number squared.
_STYLE = re.compile("'{2,5}")
_SWITCH = re.compile(r"__[A-Z]+__")
_LISTED = re.compile(r"^[*#][*#:;]*[ \t]*(?!REDIRECT)", re.MULTILINE)
_INDENTED = re.compile(r"^[:;]+[ \t]*", re.MULTILINE)
_EMPTY_BRACKETS = re.compile(r"[ \t]*\((?:[\s,;]|&nbsp;)*\)")
_MANY_LINES = re.compile(r"\n{3,}")
# Sections that list what is elsewhere.
_LEFT_OUT = frozenset(
    {"references", "external links", "see also", "notes", "further reading", "bibliography", "sources"}
)


def documents(path: Path, source: str, passed: int = 0) -> Iterator[Document | LeftOut | Begun | None]:
    """Yield an article each, named `FILE#PAGE_ID`, and before it that it is begun.

    Args:
        path: the dump.
        source: its name.
        passed: articles from the first that are passed over.

    Raises:
        Unreadable: no MediaWiki export, or broken XML. Articles that came before it are whole.
    """
    found = articles = pages = 0
    left_out: Counter[str] = Counter()
    with _opened(path) as file:
        for page in _pages(file):
            pages += 1
            if reason := _no_article(page):
                left_out[reason] += 1
            elif (articles := articles + 1) > passed:
                yield Begun()
                document = _article(page, source)
                if document is not None:
                    found += 1
                    yield document
            if pages % _SILENT == 0:
                yield None
    if not found and not passed:
        raise Unreadable(f"holds no article on its {pages} pages")
    yield from (LeftOut(f"left out of it: {reason}, {count}") for reason, count in left_out.items())


def _no_article(page: dict[str, str]) -> str:
    """Return what kind of page is left out; empty for an article."""
    if page["ns"] != _ARTICLES:
        return "pages that are no articles"
    if page["redirect"]:
        return "redirects"
    return "endless articles" if len(page["text"]) > _LONGEST else ""


def _opened(path: Path) -> IO[bytes]:
    return bz2.open(path) if path.suffix.lower() == ".bz2" else path.open("rb")


def _pages(file: IO[bytes]) -> Iterator[dict[str, str]]:
    """Yield what is needed of each page, dropping it from memory."""
    from lxml import etree

    root: Any = None
    try:
        parsing = etree.iterparse(file, events=("start", "end"), resolve_entities=False, no_network=True)
        for event, element in parsing:
            if root is None:
                root = element
                if not str(root.tag).endswith("mediawiki"):
                    raise Unreadable("is XML, but no export of a MediaWiki; other XML is not read")
            elif event == "end" and str(element.tag).endswith("}page"):
                yield {
                    "id": element.findtext("{*}id") or "",
                    "ns": element.findtext("{*}ns") or _ARTICLES,
                    "title": element.findtext("{*}title") or "",
                    "redirect": "yes" if element.find("{*}redirect") is not None else "",
                    "text": _latest(element),
                }
                root.clear(keep_tail=False)
    except (etree.XMLSyntaxError, EOFError) as error:
        raise Unreadable(f"breaks off or is broken ({' '.join(str(error).split())})") from error
    except OSError as error:
        raise Unreadable(f"is no bzip2 file, or a damaged one ({error})") from error


def _latest(page: Any) -> str:
    """Return the text of the last revision: exports with the whole history begin with the first."""
    texts = page.findall("{*}revision/{*}text")
    return texts[-1].text or "" if texts else ""


def _article(page: dict[str, str], source: str) -> Document | None:
    paper = Paper()
    at = skipped = 0
    wikitext = page["text"]
    for begins, ends in _STRETCHES:
        wikitext = _without(wikitext, begins, ends)
    for heading in [*_HEADING.finditer(wikitext), None]:
        if not skipped:
            for paragraph in _plain(wikitext[at : heading.start() if heading else None]).split("\n\n"):
                paper.paragraph(paragraph)
        if heading is None:
            break
        level, words = len(heading[1]), _plain(heading[2])
        if not skipped or level <= skipped:
            skipped = level if words.strip().lower() in _LEFT_OUT else 0
            if not skipped:
                paper.heading(level, words)
        at = heading.end()
    read = paper.finish()
    if not read.sections:
        return None
    name = f"{source}#{page['id'] or quote(page['title'])}"
    return Document(name, page["title"] or title_from(Path(source)), read.text, read.sections)


def _without(text: str, begins: "re.Pattern[str]", ends: "re.Pattern[str]") -> str:
    """Return a text without its stretches from one mark to the other; a mark that stands alone goes by itself."""
    kept = []
    at = 0
    for opening in begins.finditer(text):
        if opening.start() < at:
            continue
        kept.append(text[at : opening.start()])
        at = opening.end()
        if opening[0].endswith("/>"):
            continue
        closing = ends.search(text, at)
        if closing is None:  # nor will there be one for the next
            return "".join(kept) + begins.sub("", text[at:])
        at = closing.end()
    return "".join(kept) + text[at:]


def _plain(wikitext: str) -> str:
    """Return the words that a reader of the page sees; templates and tables are left out."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Tag, Wikilink

    listed = _INDENTED.sub("", _LISTED.sub("- ", wikitext))  # the parser drops the marks of lists
    code = mwparserfromhell.parse(_STYLE.sub("", listed), skip_style_tags=True)
    for node in code.filter(recursive=False):
        if (
            (isinstance(node, Tag) and str(node.tag) == "table")
            or (isinstance(node, Wikilink) and ":" in str(node.title).strip(": ") and node.text is None)
            or (isinstance(node, Wikilink) and _FILE.match(str(node.title)))
        ):
            code.remove(node)
    text = code.strip_code(normalize=True, collapse=True, keep_template_params=False)
    text = _SWITCH.sub("", str(text))
    return _MANY_LINES.sub("\n\n", _EMPTY_BRACKETS.sub("", text)).strip()
