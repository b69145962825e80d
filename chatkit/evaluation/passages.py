"""Passages to measure an encoder with: a BEIR corpus, or the paragraphs of text files."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatkit.errors import InvalidRequest, NotFound

# Paragraphs are put together up to about this many characters, as an index would do.
_PASSAGE = 1000
# The project's own documentation, where this is a checkout.
_DOCS = Path(__file__).parents[2] / "docs"


def read_passages(source: Path | None, limit: int) -> list[str]:
    """Return at most `limit` passages, spread evenly over all there are.

    Args:
        source: `corpus.jsonl`, also gzipped, or a folder with one: title and text of each line; or a text file or a
            folder of such files; the project's documentation unless told.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: it holds no passages, or `limit` is less than one.
    """
    source = source or _DOCS
    if limit < 1:
        raise InvalidRequest(f"--limit is {limit}, expected at least 1")
    if not source.exists():
        raise NotFound(f"there are no passages at {str(source)!r}; name a corpus.jsonl or a folder with --passages")
    corpora = [source / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (source / name).is_file()]
    file = corpora[0] if corpora else source
    found = list(_of_corpus(file) if ".jsonl" in file.suffixes else _of_texts(file))
    if not found:
        raise InvalidRequest(f"{str(source)!r} holds no passages, expected corpus.jsonl, .md or .txt files with text")
    step = max(1.0, len(found) / limit)
    return [found[int(place * step)] for place in range(min(limit, len(found)))]


def _of_corpus(file: Path) -> Iterator[str]:
    opened: Any = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                text = f"{row.get('title') or ''} {row['text']}".strip()
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InvalidRequest(f"line {number} of {str(file)!r} is no passage, expected {{'text': …}}") from None
            if text:
                yield text


def _of_texts(source: Path) -> Iterator[str]:
    files = [source] if source.is_file() else sorted([*source.rglob("*.md"), *source.rglob("*.txt")])
    for file in files:
        passage = ""
        for paragraph in file.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            if passage and len(passage) + len(paragraph) > _PASSAGE:
                yield passage
                passage = ""
            passage = f"{passage}\n\n{paragraph}".strip()
        if passage:
            yield passage
