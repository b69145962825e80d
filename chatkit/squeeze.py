"""Text without what takes room and shows nothing: padding, stacked marks, invisible characters. Pure.

Models read so many characters or tokens at once; without this a few hundred blanks between two words part them for
whoever judges them, and for no reader. Ordinary text stays as it is.
"""

import re
import unicodedata
from functools import cache

# Of blanks in a row so many count, as many as ordinary indentation has; of line ends two, one empty line.
MOST_BLANKS = 4
# Marks on one letter; no script needs more.
MOST_MARKS = 4
# A character that is repeated more often than `MOST_SAME` times is padding, and so many of it are left.
MOST_SAME, LEFT = 16, 4

# Characters that show nothing: controls, format characters, selectors of variations.
# Tags (U+E0020 to U+E007E) are not among them: they are invisible, but models read them as letters.
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u17b4\u17b5\u180b-\u180d\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e001f\U000e007f-\U000e0fff"
)
# Letters and signs that are drawn as a blank.
BLANK_LETTERS = "\u115f\u1160\u180e\u2800\u3164\uffa0"
# Marks that Latin, Greek and Cyrillic letters take; readers of them see the letter.
ACCENTS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
# One character for a word or a phrase, five to eighteen letters once it is decomposed.
_PHRASES = (
    "\u3307\u3315\u3316\u3317\u3319\u331a\u3320\u332b\u332e\u3332\u3334\u3336\u3347\u334a\u3356\u33ae\u33af\ufdfa\ufdfb"
)
_OVERRIDE, _POP = "\u202e", "\u202c"

_DROPPED = re.compile(f"[{INVISIBLE}]+")
# Letters with one of those between each two of them are a word that was broken up.
_LONE = rf"(?<![^\W{BLANK_LETTERS}])[^\W\d_{BLANK_LETTERS}](?![^\W{BLANK_LETTERS}])"
_BROKEN = re.compile(rf"{_LONE}(?:[{BLANK_LETTERS}]{_LONE})+")
_TO_BLANKS = dict.fromkeys(map(ord, BLANK_LETTERS), " ")
# Words with nothing between them but what is invisible, in scripts that part words with blanks: those before Thai.
_SEEN = "!-~\u00a1-\u00ac\u00ae-\u02ff\u0370-\u0481\u048a-\u061b\u061d-\u0dff\u2010-\u2027\u2030-\u205e"
_RUN_TOGETHER = re.compile(rf"(?<![{_SEEN}])[{_SEEN}]++(?:[{INVISIBLE}]++[{_SEEN}]++)+")
# No ordinary word has more letters than this; where words have more than that on the average, few blanks are left.
_LONG_WORD, _LONG_WORDS = 20, 6.5
# Pieces of fewer letters on the average are those of words that were broken up.
_WORDLIKE = 2.5
_OVERRIDDEN = re.compile(f"{_OVERRIDE}([^{_POP}{_OVERRIDE}\n]*)(?:{_POP}|$)", re.MULTILINE)
_BLANKS = re.compile(rf"[^\S\n]{{{MOST_BLANKS + 1},}}")
_LINES = re.compile(r"\n[^\S\n]*\n(?:[^\S\n]*\n)+")
_REPEATED = re.compile(rf"(\S)\1{{{MOST_SAME},}}")
# What an ASCII text has to have to be changed.
_ASCII_CHANGES = re.compile(
    rf"[\x00-\x08\x0e-\x1b\x7f]|[^\S\n]{{{MOST_BLANKS + 1}}}|\n[^\S\n]*\n[^\S\n]*\n|(\S)\1{{{MOST_SAME}}}"
)


def squeezed(text: str) -> str:
    """Return `text` without what shows nothing, in time linear in it; ordinary text comes back as it is.

    What a bidi override turns round is in the order in which it is seen, and what stands in the place of blanks is a
    blank. Squeezing again changes nothing.
    """
    if text.isascii():
        return _unpadded(_parted(text)) if _ASCII_CHANGES.search(text) else text
    if _OVERRIDE in text:
        text = _OVERRIDDEN.sub(lambda match: match.group(1)[::-1], text)
    text = _parted(text)
    if not _TO_BLANKS.keys().isdisjoint(map(ord, text)):
        text = _BROKEN.sub(lambda match: match.group()[::2], text).translate(_TO_BLANKS)
    text = unstacked(_DROPPED.sub("", text))
    return _unpadded(text.translate(dict.fromkeys(map(ord, _PHRASES), " ")))


def _parted(text: str) -> str:
    """Return `text` with blanks for invisible characters that stand alone between words, as far as can be told.

    Models read words that are parted so, and those who see "Explainindetail" in their place do not. Inside words, where
    they break them up, such characters stay; they are dropped later.
    """
    if not _DROPPED.search(text):
        return text
    shown = _DROPPED.sub("", text.translate(_TO_BLANKS)).split()
    crowded = sum(map(len, shown)) > max(_LONG_WORD, _LONG_WORDS * len(shown))

    def replaced(match: re.Match[str]) -> str:
        pieces = _DROPPED.split(match.group())
        letters = sum(map(len, pieces))
        # Soft hyphens are ordinary inside the long words of some languages.
        alone = letters > _LONG_WORD or (crowded and "\u00ad" not in match.group())
        if letters < _WORDLIKE * len(pieces) or not alone:
            return match.group()
        return " ".join(pieces)

    return _RUN_TOGETHER.sub(replaced, text)


def _unpadded(text: str) -> str:
    text = _DROPPED.sub("", text)
    text = _BLANKS.sub(" " * MOST_BLANKS, text)
    text = _LINES.sub("\n\n", text)
    return _REPEATED.sub(lambda match: match.group(1) * LEFT, text)


def unstacked(text: str) -> str:
    """Return `text` with at most MOST_MARKS marks in a row.

    To bring marks into their order, which NFC and NFKC do, takes time that is quadratic in how many stand together.
    """
    return text if text.isascii() else _stacks().sub(lambda match: match.group()[:MOST_MARKS], text)


def squeezed_end(text: str, size: int) -> str:
    """Return at least the last `size` characters of `text` squeezed, or all of them, however much padding there is."""
    reach = 2 * size
    last = squeezed(text[-reach:])
    while len(last) < size and reach < len(text):
        reach *= 8
        last = squeezed(text[-reach:])
    return last


def goes_on_overridden(text: str) -> bool:
    """Whether a bidi override that began in `text` goes on after it."""
    line = text[text.rfind("\n") + 1 :] if _OVERRIDE in text else ""
    return line.rfind(_OVERRIDE) > line.rfind(_POP)


@cache
def marks() -> str:
    """Return all combining marks of the Unicode database, as what stands in brackets in a regular expression."""
    found = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code in found if unicodedata.category(chr(code - 1))[0] != "M"]
    ends = [code for code in found if unicodedata.category(chr(code + 1))[0] != "M"]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


@cache
def _stacks() -> re.Pattern[str]:
    return re.compile(f"[{marks()}]{{{MOST_MARKS + 1},}}")
