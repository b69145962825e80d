"""Records of named values, each a document: the lines of a JSONL file; and how any record becomes a document."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chatkit.retrieval.charset import encoding_of
from chatkit.retrieval.document import Document, Section, Unreadable
from chatkit.retrieval.parsing import LeftOut

# Names of the fields that say what a record is, the first that is there counts.
ID = ("id", "_id", "docid", "doc_id", "pid")
TITLE = ("title", "name", "heading", "headline", "subject")
TEXT = ("text", "body", "content", "contents", "passage", "abstract", "article", "document")
URL = ("url", "source", "link")
# A line is held in memory whole. Characters.
_LONGEST_LINE = 16 * 2**20
_LONGEST_ID = 120
# Lines without a document between two signs of life.
_SILENT = 10_000
_MOST_NESTED = 8


def documents(path: Path, source: str) -> Iterator[Document | LeftOut | None]:
    """Yield a document a line, named `FILE#ID` by its id, else `FILE#LINE` from 1; wrong lines are counted.

    Raises:
        Unreadable: not in UTF-8, or not one line is a JSON object with words.
    """
    found = number = wrong = first_wrong = 0
    try:
        for number, line in _lines(path):
            record = _object(line)
            document = None if record is None else of_record(record, source, str(number), path.stem)
            if document is not None:
                found += 1
                yield document
            elif line.strip():
                wrong, first_wrong = wrong + 1, first_wrong or number
            if number % _SILENT == 0:
                yield None
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8 after line {number} ({error.reason}); convert it to UTF-8") from error
    if not found:
        raise Unreadable("has no line that is a JSON object with words")
    if wrong:
        yield LeftOut(f"lines that are no JSON objects with words: {wrong}, the first is line {first_wrong}")


def of_record(record: Mapping[str, Any], source: str, number: str, stem: str) -> Document | None:
    """Return the document that a record is; None for one without words.

    It is the field that holds a text, or else all fields, a line each.

    Args:
        record: values by name.
        source: what its file or data set is called.
        number: names the record where it has no id.
        stem: what its title begins with where it has none.
    """
    named = {key.lower().strip(): key for key in record}
    text_field, title_field = _first(named, record, TEXT), _first(named, record, TITLE)
    text = str(record[text_field]) if text_field else "\n".join(_told(record))
    if not text.strip():
        return None
    id_field = _first(named, record, ID)
    identity = _short(str(record[id_field])) if id_field else number
    title = " ".join(str(record[title_field]).split()) if title_field else f"{stem} {identity}"
    return Document(f"{source}#{identity}", title, text, (Section("", 0, len(text)),))


def _short(identity: str) -> str:
    """Return an id that names a document: a long one is cut, and told from others that begin alike by its hash."""
    if len(identity) <= _LONGEST_ID:
        return identity
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{identity[: _LONGEST_ID - 17]}-{digest}"


def text_field_of(names: list[str]) -> str | None:
    """Return the first of `names` that is what a text is called."""
    named = {name.lower().strip(): name for name in names}
    return next((named[field] for field in TEXT if field in named), None)


def _first(named: Mapping[str, str], record: Mapping[str, Any], fields: tuple[str, ...]) -> str | None:
    """Return the record's own name of the first of `fields` that holds a text or a number."""
    for field in fields:
        name = named.get(field)
        value = record[name] if name is not None else None
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return name
    return None


def _told(value: Any, name: str = "", depth: int = 0) -> Iterator[str]:
    """Yield `name: value` for all that a record holds, names of what is inside joined by dots."""
    if isinstance(value, Mapping) and depth < _MOST_NESTED:
        for key, inner in value.items():
            yield from _told(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list) and depth < _MOST_NESTED:
        if all(isinstance(inner, str | int | float) for inner in value):
            if value:
                yield f"{name}: {', '.join(map(str, value))}"
        else:
            for inner in value:
                yield from _told(inner, name, depth + 1)
    elif value is not None and str(value).strip():
        yield f"{name}: {value}"


def _object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers; of one that is too long, the beginning."""
    with path.open("rb") as content:
        encoding = encoding_of(content.read(4))
    with path.open(encoding=encoding, newline="\n") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            yield number, line
            while line and not line.endswith("\n") and len(line) == _LONGEST_LINE:
                line = file.readline(_LONGEST_LINE)
