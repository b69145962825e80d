"""Documents to chunks: whole sentences under one heading, as many as fit the token budget."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from chatkit.errors import ConfigError
from chatkit.retrieval.document import Document

# Changes with every change of how texts are cut or what is embedded, so that an index says how it was made.
CHUNKER = "headings-2"

# Characters of title and section that stand before a chunk when it is embedded.
_MAX_PREFIX = 160
_BLOCK = re.compile(r"\S.*?(?=\n[ \t]*\r?\n|\Z)", re.DOTALL)
_SENTENCE = re.compile(r"\S.*?(?:[.!?…]['\")\]]*(?=\s)|(?=\n)|\Z)", re.DOTALL)
_WORD = re.compile(r"\w")

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents are cut.

    Attributes:
        max_tokens: most tokens of a chunk as the encoder counts them, title and section not included. On dense
            technical prose 120 puts the answer among three passages more often than 160 or 220, in a shorter prompt.
    """

    max_tokens: int = 120

    def __post_init__(self) -> None:
        """Check the bound."""
        if not isinstance(self.max_tokens, int) or not 16 <= self.max_tokens <= 4096:
            raise ConfigError(f"chunking.max_tokens is {self.max_tokens!r}, expected a whole number from 16 to 4096")

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
        return cls(**(options or {}))


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: `document.text[start:end]`, cut at sentences and never across a heading."""

    source: str
    title: str
    section: str
    start: int
    end: int
    text: str
    document: str = ""
    page: int = 0

    @property
    def id(self) -> str:
        """Name source and text: stable across rebuilds, and when text elsewhere in the document changes."""
        return hashlib.sha256(f"{self.source}\0{self.text}".encode()).hexdigest()[:20]

    @property
    def embedded(self) -> str:
        """What the encoder reads: where the chunk stands, then the chunk."""
        place = " > ".join(part for part in (self.title, self.section) if part)
        return f"{place[:_MAX_PREFIX]}\n{self.text}"

    @property
    def sameness(self) -> bytes:
        """Equal for chunks whose words are equal, wherever they stand."""
        return hashlib.sha256(" ".join(self.text.split()).encode()).digest()


def cut(document: Document, chunking: Chunking, count: CountTokens) -> Iterator[Chunk]:
    """Yield the chunks of `document` in order; pieces without any letter or digit are left out."""
    for section in document.sections:
        for start, end in _spans(document.text, section.start, section.end, chunking.max_tokens, count):
            text = document.text[start:end]
            if _WORD.search(text):
                yield Chunk(document.source, document.title, section.heading, start, end, text, document.source)


def _spans(text: str, start: int, end: int, budget: int, count: CountTokens) -> list[tuple[int, int]]:
    """Return spans of at most `budget` tokens, filled with whole paragraphs, else with whole sentences."""
    units = _sized([match.span() for match in _BLOCK.finditer(text, start, end)], text, count)
    fitting: list[tuple[int, int, int]] = []
    for first, last, tokens in units:
        if tokens <= budget:
            fitting.append((first, last, tokens))
        else:
            fitting += _sentences(text, first, last, budget, count)
    spans: list[tuple[int, int]] = []
    room = 0
    for first, last, tokens in fitting:
        if spans and tokens <= room:
            spans[-1] = (spans[-1][0], last)
            room -= tokens
        else:
            spans.append((first, last))
            room = budget - tokens
    return spans


def _sentences(text: str, start: int, end: int, budget: int, count: CountTokens) -> list[tuple[int, int, int]]:
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


def _sized(spans: list[tuple[int, int]], text: str, count: CountTokens) -> list[tuple[int, int, int]]:
    """Strip each span and add its token count; special tokens do not count, empty spans go."""
    stripped = [_strip(text, first, last) for first, last in spans]
    stripped = [(first, last) for first, last in stripped if first < last]
    specials = count([""])[0]
    counts = count([text[first:last] for first, last in stripped]) if stripped else []
    return [(first, last, tokens - specials) for (first, last), tokens in zip(stripped, counts, strict=True)]


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
