"""What several commands print alike: text made safe for a terminal, and sources."""

import json
import re
from collections.abc import Mapping
from typing import Any

from chatkit.types import Passage, Reply

# What a terminal obeys rather than shows: C0 but tab and newline, DEL, C1, the marks that turn the writing direction
# (Unicode TR9), and halves of characters, which no output stream takes.
_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
# The rest of category Cf that shows nothing: words can be hidden in it, and what is copied is not what was seen.
_UNSEEN = (
    "\u00ad\u180e\u200b-\u200d\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Joiners are letters' business where scripts join them, from Arabic to Mongolian and in the later Indic blocks, and
# make one picture of several.
_JOINED = "\u0600-\u109f\u1780-\u18af\ua800-\uabff\U00010a00-\U00011fff"
_PICTURE = "\u200d\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
_JOINER = rf"(?<=[{_JOINED}])[\u200c\u200d]|(?<=[{_PICTURE}])\u200d(?=[{_PICTURE[1:]}])"
_UNSAFE = re.compile(rf"(?P<joiner>{_JOINER})|[{_OBEYED}]|(?P<unseen>[{_UNSEEN}])")


def plain(text: str) -> str:
    """Return text that a terminal only shows: control characters become pictures, what nobody can see goes."""
    return _UNSAFE.sub(_picture, text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found["joiner"]:
        return found[0]
    if found["unseen"] or found[0] == "\r":
        return ""
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str) -> str:
    """Return text as one line that a terminal only shows."""
    return plain(" ".join(text.split()))


def as_json(table: Mapping[str, Any]) -> str:
    """Return one line of JSON in which everything a terminal would obey is written as an escape.

    Raises:
        ValueError: a number is not finite, which JSON has no word for.
    """
    return _UNSAFE.sub(_escape, json.dumps(table, ensure_ascii=False, allow_nan=False, default=str))


def _escape(found: re.Match[str]) -> str:
    return found[0] if found["joiner"] else "".join(f"\\u{unit:04x}" for unit in _units(found[0]))


def _units(character: str) -> list[int]:
    """Return a character's UTF-16 code units, which is what JSON's escapes are made of."""
    told = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(told[at : at + 2], "big") for at in range(0, len(told), 2)]


# Characters of a sentence that a note repeats.
_NOTED = 72


def support_notes(reply: Reply) -> list[str]:
    """Return what there is to say of the support of an answer: the sentences that none of its sources supports."""
    missing = [one for one in reply.citations if not one.supported]
    if not missing:
        return []
    if len(missing) == len(reply.citations):
        return ["[no source says this]"]
    texts = [one_line(reply.text[one.start : one.end]) for one in missing]
    return [f"[no source says: {text if len(text) <= _NOTED else text[: _NOTED - 1] + '…'}]" for text in texts]


def source_line(number: int, passage: Passage) -> str:
    """Return a source as one line: number, score, file and heading."""
    heading = " - ".join(part for part in (passage.title, passage.section) if part)
    return one_line(f"[{number}] {passage.score:.2f} {passage.source} {heading}")
