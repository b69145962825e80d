"""Retrieval and question-answering sets in the BEIR layout: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, or .gz."""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from chatkit.errors import InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class Document:
    """One entry of the corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """One question.

    Attributes:
        metadata: as the file has it; `answers` holds the accepted ones where the set has answers.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> tuple[str, ...]:
        """Accepted answers; none where the set has none."""
        return tuple(map(str, self.metadata.get("answers") or ()))


@dataclass(frozen=True, slots=True)
class BeirSet:
    """A whole set in memory.

    Attributes:
        qrels: query id → document id → grade; grades of 0 and less are left out.
    """

    corpus: Mapping[str, Document]
    queries: tuple[Query, ...]
    qrels: Mapping[str, Mapping[str, int]]


def read_set(folder: Path, *, split: str = "test") -> BeirSet:
    """Read a folder.

    Raises:
        NotFound: a file of the layout is not there.
        InvalidRequest: a line is not what the layout says, with its file and number.
    """
    corpus = {}
    for where, row in _rows(folder, "corpus.jsonl"):
        one = Document(_id(row, where), str(row.get("title") or ""), str(row.get("text") or ""))
        corpus[one.id] = one
    queries = tuple(
        Query(_id(row, where), _text(row, "text", where), _metadata(row, where))
        for where, row in _rows(folder, "queries.jsonl")
    )
    qrels: dict[str, dict[str, int]] = {}
    for where, line in _lines(folder, f"qrels/{split}.tsv"):
        query, document, grade = _judgement(line, where)
        if grade is not None and grade > 0:
            qrels.setdefault(query, {})[document] = grade
    return BeirSet(corpus, queries, qrels)


def _rows(folder: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(folder, name):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InvalidRequest(f"{where} is {line[:60]!r}, expected one JSON object")
        yield where, row


def _lines(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield where a line stands and the line, those that are not blank."""
    file = folder / name
    packed = file.with_name(file.name + ".gz")
    if name.startswith("qrels/") and file.parent.is_dir() and not file.is_file() and not packed.is_file():
        there = sorted({each.name.removesuffix(".gz").removesuffix(".tsv") for each in file.parent.glob("*.tsv*")})
        raise NotFound(f"there is no {str(file)!r}; the splits there are: {', '.join(there) or 'none'}")
    if not file.is_file() and not packed.is_file():
        raise NotFound(f"there is no {str(file)!r} nor {packed.name!r}; expected a folder in the BEIR layout")
    with _open(file if file.is_file() else packed) as stream:
        try:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"line {number} of {str(file)!r}", line.rstrip("\n")
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise InvalidRequest(f"{str(file)!r} cannot be read: {error}") from error


def _open(file: Path) -> TextIO:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")


def _id(row: Mapping[str, Any], where: str) -> str:
    value = row.get("_id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InvalidRequest(f"{where} has '_id' {value!r:.40}, expected text or a number")
    return str(value)


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where} has {name!r} {value!r:.40}, expected text")
    return value


def _metadata(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    value = row.get("metadata") or {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} has 'metadata' {value!r:.40}, expected an object")
    return value


def _judgement(line: str, where: str) -> tuple[str, str, int | None]:
    """Return query, document and grade; no grade for the line of headings.

    The form of TREC, with a second column that says nothing, is read too.
    """
    parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
    if len(parts) == 4:
        del parts[1]
    if len(parts) != 3:
        raise InvalidRequest(f"{where} is {line[:60]!r}, expected query, document and grade with tabs between")
    try:
        return parts[0], parts[1], int(float(parts[2]))
    except ValueError:
        if where.startswith("line 1 of "):
            return parts[0], parts[1], None
        raise InvalidRequest(f"{where} has the grade {parts[2]!r:.40}, expected a number") from None
