"""Rows of a table as lines that can be understood, and found, without the rows around them."""

import re
from collections.abc import Iterator, Sequence

_LONGEST_HEAD = 60
_NUMBER = re.compile(r"[-+]?[\d.,:/%\s-]*\d[\d.,:/%\s-]*")


def said(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line a row: `head: value | head: value` below a row of heads, else `value | value`.

    Columns before the first value of all rows, and empty values, are left out. A row of one value before the heads is
    a caption.
    """
    indent = min((next((at for at, cell in enumerate(row) if cell), 0) for row in rows), default=0)
    rows = [row[indent:] for row in rows]
    heads: Sequence[str] = ()
    for at, row in enumerate(rows):
        if heads:
            yield with_heads(heads, row)
        else:
            yield " | ".join(cell for cell in row if cell)
            if at + 1 < len(rows) and are_heads(row) and len(rows[at + 1]) > 1:
                heads = row


def are_heads(row: Sequence[str]) -> bool:
    """Whether a row can be the heads of columns: several short words, all different, no numbers."""
    words = [cell for cell in row if cell]
    return (
        len(words) > 1
        and len(words) >= len(row) - 1  # the corner above row heads may be empty
        and len(set(words)) == len(words)
        and all(len(word) <= _LONGEST_HEAD and not _NUMBER.fullmatch(word) for word in words)
    )


def with_heads(heads: Sequence[str], row: Sequence[str]) -> str:
    """Return one row with the head before each value; empty values are left out."""
    cells = []
    for at, cell in enumerate(row):
        if cell:
            head = heads[at] if at < len(heads) else ""
            cells.append(f"{head}: {cell}" if head else cell)
    return " | ".join(cells)
