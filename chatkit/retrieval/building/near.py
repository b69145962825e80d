"""Near duplicates: chunks that say the same in the same words, in another spelling or markup.

Only what cannot change a statement may differ: case, punctuation in prose, markup, articles and words that only stress
or join. How many words two chunks share says nothing of that: one "not", one name or one number in a hundred words is
another statement, so every other word has to be the same and in the same place.
"""

import re
from collections.abc import Sequence

from chatkit.retrieval.building.keys import Seen, text_keys
from chatkit.retrieval.chunking import Chunk

_FILLERS = ("the", "an", "that", "which", "also", "just", "indeed", "really", "quite", "very")
# Not "A": it may be a name, as in "plan A".
_SKIPPED = frozenset(("a", *_FILLERS, *(word.capitalize() for word in _FILLERS)))
# Signs that begin a heading or an item of a list, and those around words that are stressed or code.
_LEADING = re.compile(r"^[ \t]*(?:#{1,6}|[-*+])[ \t]+", re.MULTILINE)
_AROUND = re.compile(r"(?<!\w)(\*{1,3}|`+)(?=\S)(.+?)(?<=\S)\1(?!\w)")
_QUOTES = "\"'\u2018\u2019\u201c\u201d\u00ab\u00bb()"
# Not "!", which may be a factorial, and no sign before a word but quotes: ".5" and "-5" are other numbers than "5".
_BEFORE = _QUOTES
_AFTER = _QUOTES + ".,;:\u2026"


class NearDuplicates:
    """Remembers the chunks that were kept; 33 to 67 bytes each, whatever their length."""

    def __init__(self) -> None:
        self._seen = Seen()

    def add(self, chunks: Sequence[Chunk]) -> list[bool]:
        """Return for each chunk in order whether it is nearly one before it; those that are not are remembered."""
        return [not new for new in self._seen.add(text_keys([_told(chunk) for chunk in chunks]))]


def _told(chunk: Chunk) -> str:
    """Return what near duplicates have in common: where they stand, and the words that count."""
    return "\0".join((chunk.title, chunk.section, " ".join(_words(chunk.text))))


def _words(text: str) -> list[str]:
    plain = _AROUND.sub(r"\2", _LEADING.sub("", text))
    bare = (word.lstrip(_BEFORE).rstrip(_AFTER) for word in plain.split())
    return [word.casefold() for word in bare if word and word not in _SKIPPED]
