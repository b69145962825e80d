"""What several commands print alike: text made safe for a terminal, and sources."""

import json
import re
from collections.abc import Mapping
from typing import Any

from chatkit.types import Passage

# What a terminal obeys rather than shows: C0 but tab and newline, DEL, C1, the marks that turn the writing direction
# (Unicode TR9), and halves of characters, which no output stream takes.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Return text that a terminal only shows: control characters become their pictures, carriage returns go."""
    return _UNSAFE.sub(_picture, text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found[0] == "\r":
        return ""
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str) -> str:
    """Return text as one line that a terminal only shows."""
    return plain(" ".join(text.split()))


def as_json(table: Mapping[str, Any]) -> str:
    """Return one line of JSON in which everything a terminal would obey is written as an escape."""
    text = json.dumps(table, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def source_line(number: int, passage: Passage) -> str:
    """Return a source as one line: number, score, file and heading."""
    heading = " - ".join(part for part in (passage.title, passage.section) if part)
    return one_line(f"[{number}] {passage.score:.2f} {passage.source} {heading}")
