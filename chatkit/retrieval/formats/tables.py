"""CSV and TSV: rows with a column of text are a document each, other rows lines that say the heads of their columns."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

from chatkit.retrieval.charset import encoding_of
from chatkit.retrieval.document import Document, Section, Unreadable
from chatkit.retrieval.formats import records, rows
from chatkit.retrieval.parsing import LeftOut, title_from

# Rows of one document of a table. Its name says which: `FILE` where that is all, else `FILE#FIRST-LAST`, from 1.
ROWS = 1000
_LONGEST_CELL = 16 * 2**20
_SNIFFED = 64 * 1024
_NO_ROWS = "has no row with words below its heads"
_DELIMITERS = ",;\t|"


def documents(path: Path, source: str) -> Iterator[Document | LeftOut | None]:
    """Yield the documents of a table.

    Raises:
        Unreadable: not in UTF-8, no table, or without words.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with path.open("rb") as content:
        encoding = encoding_of(content.read(4))
    with path.open(encoding=encoding, newline="") as file:
        try:
            # Binary files have zeros; the module that reads tables lets them pass.
            head = file.read(_SNIFFED)
            if "\0" in head:
                raise Unreadable("holds NUL characters, so it is no text")
            file.seek(0)
            table = csv.reader(file, delimiter=_delimiter(head, path))
            first = next((row for row in table if any(cell.strip() for cell in row)), None)
            if first is None:
                raise Unreadable("is empty")
            # A column alone has no row of heads to be told by, but for the name that texts have.
            is_text = len(first) == 1 and records.text_field_of(first) is not None
            heads = [" ".join(cell.split()) for cell in first] if is_text or rows.are_heads(first) else []
            rest = table if heads else itertools.chain([first], table)
            if heads and records.text_field_of(heads):
                yield from _records(rest, heads, path, source, table.dialect.delimiter)
            else:
                yield from _blocks(rest, heads, path, source)
        except UnicodeDecodeError as error:
            raise Unreadable(f"is not UTF-8 ({error.reason}); convert it to UTF-8") from error
        except csv.Error as error:
            raise Unreadable(f"is no table that can be read ({error})") from error


def _delimiter(head: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    try:
        return csv.Sniffer().sniff(head[: head.rfind("\n") + 1] or head, _DELIMITERS).delimiter
    except csv.Error:
        return ","


def _records(
    table: Iterator[list[str]], heads: list[str], path: Path, source: str, delimiter: str
) -> Iterator[Document | LeftOut | None]:
    found = longer = first = 0
    for number, row in enumerate(table, start=1):
        if any(row[len(heads) :]):
            longer, first = longer + 1, first or number
            row = [*row[: len(heads) - 1], delimiter.join(row[len(heads) - 1 :])]
        document = records.of_record(dict(zip(heads, row, strict=False)), source, str(number), path.stem)
        if document is not None:
            found += 1
            yield document
    if not found:
        raise Unreadable(_NO_ROWS)
    if longer and heads[-1] != records.text_field_of(heads):
        yield LeftOut(
            f"rows with more cells than there are heads: {longer}, the first is row {first}; their rest was put to "
            f"{heads[-1]!r}; quote cells that hold {delimiter!r}"
        )


def _blocks(
    table: Iterator[list[str]], heads: list[str], path: Path, source: str
) -> Iterator[Document | LeftOut | None]:
    first = 1
    block = list(itertools.islice(table, ROWS))
    while block:
        following = list(itertools.islice(table, ROWS))
        last = first + len(block) - 1
        name = source if first == 1 and not following else f"{source}#{first}-{last}"
        text = "\n".join(filter(None, (_line(heads, row) for row in block)))
        if text:
            yield Document(name, title_from(path), text, (Section("", 0, len(text)),))
        elif first == 1 and not following:
            raise Unreadable(_NO_ROWS if heads else "is empty")
        first, block = last + 1, following


def _line(heads: list[str], row: list[str]) -> str:
    cells = [" ".join(cell.split()) for cell in row]
    return rows.with_heads(heads, cells) if heads else " | ".join(cell for cell in cells if cell)
