"""Documents to chunks: whole sentences under one heading, as many as fit the token budget."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from chatkit.errors import ConfigError
from chatkit.retrieval.document import Document

# Changes with every change of how texts are cut or what is embedded, so that an index says how it was made.
CHUNKER = "headings-4"

# A last piece below this share of the budget is a crumb: it takes over sentences of the piece before it.
_CRUMB = 0.25
# Most that `max_tokens` may be: enough for one chunk a document, whatever its length.
_MOST_TOKENS = 1_000_000
# Characters of title and section that stand before a chunk when it is embedded.
_MAX_PREFIX = 160
_BLOCK = re.compile(r"\S.*?(?=\n[ \t]*\r?\n|\Z)", re.DOTALL)
# Sentences of scripts without spaces end in a sign of their own.
_SENTENCE = re.compile(r"\S.*?(?:[.!?…]['\")\]]*(?=\s)|[。！？]['\"」』）]*|(?=\n)|\Z)", re.DOTALL)
_WORD = re.compile(r"\w")

# Where a paragraph or sentence begins and ends, and its tokens.
_Unit = tuple[int, int, int]
CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut.

    Attributes:
        max_tokens: most tokens of a chunk as the encoder counts them, title and section not included. On dense
            technical prose 120 puts the answer among three passages more often than 160 or 220, in a shorter prompt.
            A number larger than any section gives one chunk a section.
        drop_duplicates: leave out a chunk with the title, section and text of one before it.
        drop_near_duplicates: leave out one that differs from it in case, punctuation, markup or articles only.
    """

    max_tokens: int = 120
    drop_duplicates: bool = True
    drop_near_duplicates: bool = True

    def __post_init__(self) -> None:
        """Check the types and the bound."""
        for name in ("drop_duplicates", "drop_near_duplicates"):
            if getattr(self, name) not in (False, True):
                raise ConfigError(f"chunking.{name} is {getattr(self, name)!r}, expected true or false")
        if not isinstance(self.max_tokens, int) or not 16 <= self.max_tokens <= _MOST_TOKENS:
            raise ConfigError(
                f"chunking.max_tokens is {self.max_tokens!r}, expected a whole number from 16 to {_MOST_TOKENS}"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, int] | None) -> "Chunking":
        """Return the chunking that a recipe asks for.

        Raises:
            ConfigError: for an unknown option or a value out of range.
        """
        known = [spec.name for spec in fields(cls)]
        for name in options or {}:
            if name not in known:
                raise ConfigError(f"chunking has {name!r}, expected only {', '.join(map(repr, known))}")
        given: dict[str, Any] = dict(options or {})
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: its `text[start:end]`, cut at sentences, never across a heading or a page.

    Attributes:
        source: the file, or what else the document was found in.
        document: the document's id: the source, or one of several in it as `source#row`.
        page: from 1; 0 where the format has none.
    """

    source: str
    document: str
    title: str
    section: str
    page: int
    start: int
    end: int
    text: str

    @property
    def id(self) -> str:
        """Name document and text: stable across rebuilds, and when text elsewhere in the document changes.

        A text that stands twice in a document has one name; where duplicates are kept, two passages then share it.
        """
        return hashlib.sha256(f"{self.document}\0{self.text}".encode()).hexdigest()[:20]

    @property
    def embedded(self) -> str:
        """What the encoder reads: where the chunk stands, then the chunk."""
        return self.embedded_of(self.title, self.section, self.text)

    @staticmethod
    def embedded_of(title: str, section: str, text: str) -> str:
        """Return `embedded` of a chunk of which no more is known."""
        place = " > ".join(part for part in (title, section) if part)
        return f"{place[:_MAX_PREFIX]}\n{text}"

    @property
    def sameness(self) -> bytes:
        """Equal for chunks with equal words under the same title and section, whatever space is between the words.

        Title and section count, for they say what the words are about: opening hours of two offices may be the same.
        """
        joined = "\0".join((self.title, self.section, " ".join(self.text.split())))
        return hashlib.sha256(joined.encode()).digest()


def cut(document: Document, chunking: Chunking, count: CountTokens, *, source: str = "") -> Iterator[Chunk]:
    """Yield the chunks of `document` in order; pieces without any letter or digit are left out.

    Args:
        document: of one file, or one of several in it.
        chunking: how long a chunk may be.
        count: tokens of texts as the encoder counts them, special tokens included.
        source: what the document was found in; the document itself unless told.
    """
    name = document.source
    for section in document.sections:
        for start, end in _spans(document.text, section.start, section.end, chunking.max_tokens, count):
            text = document.text[start:end]
            if _WORD.search(text):
                yield Chunk(source or name, name, document.title, section.heading, section.page, start, end, text)


def _spans(text: str, start: int, end: int, budget: int, count: CountTokens) -> list[tuple[int, int]]:
    """Return spans of at most `budget` tokens, filled with whole paragraphs, else with whole sentences."""
    units = _sized([match.span() for match in _BLOCK.finditer(text, start, end)], text, count)
    fitting: list[_Unit] = []
    for first, last, tokens in units:
        if tokens <= budget:
            fitting.append((first, last, tokens))
        else:
            fitting += _sentences(text, first, last, budget, count)
    groups: list[list[_Unit]] = []
    room = 0
    for unit in fitting:
        if groups and unit[2] <= room:
            groups[-1].append(unit)
            room -= unit[2]
        else:
            groups.append([unit])
            room = budget - unit[2]
    _level(groups, text, budget)
    return [(group[0][0], group[-1][1]) for group in groups]


def _level(groups: list[list[_Unit]], text: str, budget: int) -> None:
    """Move to the piece after it what belongs there: a line that leads in a list, and words for a last crumb."""
    for group, following in pairwise(groups):
        leads_in = text[group[-1][1] - 1] == ":"
        if leads_in and len(group) > 1 and _tokens(following) + group[-1][2] <= budget:
            following.insert(0, group.pop())
    if len(groups) < 2:
        return
    before, last = groups[-2:]
    while len(before) > 1 and _tokens(last) < budget * _CRUMB and _tokens(last) + before[-1][2] < _tokens(before):
        last.insert(0, before.pop())


def _tokens(units: list[_Unit]) -> int:
    return sum(tokens for _, _, tokens in units)


def _sentences(text: str, start: int, end: int, budget: int, count: CountTokens) -> list[_Unit]:
    """Return the sentences and lines of one long paragraph, those that are too long in halves."""
    pending = _sized([match.span() for match in _SENTENCE.finditer(text, start, end)], text, count)[::-1]
    fitting = []
    while pending:
        first, last, tokens = pending.pop()
        if tokens <= budget or last - first < 2:
            fitting.append((first, last, tokens))
        else:
            pending += _sized(_halves(text, first, last), text, count)[::-1]
    return fitting


def _halves(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut at the space nearest before the middle, or in the middle of one endless word."""
    middle = (start + end) // 2
    space = text.rfind(" ", start + 1, middle + 1)
    if space < 0:
        return [(start, middle), (middle, end)]
    return [(start, space), (space + 1, end)]


def _sized(spans: list[tuple[int, int]], text: str, count: CountTokens) -> list[_Unit]:
    """Strip each span and add its token count; special tokens do not count, empty spans go."""
    stripped = [_strip(text, first, last) for first, last in spans]
    stripped = [(first, last) for first, last in stripped if first < last]
    specials = count([""])[0]
    counts = count([text[first:last] for first, last in stripped]) if stripped else []
    return [(first, last, tokens - specials) for (first, last), tokens in zip(stripped, counts, strict=True)]


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
