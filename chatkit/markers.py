"""Role markers in text that nobody vouches for: found in every spelling a tokenizer may read as the marker, and broken.

Covered, on top of the marker itself: any case; full-width, mathematical and other compatibility characters (NFKC, as
SentencePiece's nmt_nfkc folds them before it looks for user-defined symbols); accents and combining marks (stripped by
BERT's normaliser); control, soft-hyphen and zero-width characters inside the marker (dropped by both). Byte-level
tokenizers normalise to NFC at most, which this contains. Not covered: look-alikes of other scripts, Cyrillic "а" for
Latin "a": no tokenizer folds those, so they are other tokens.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

# Removed when text is folded: combining marks, format characters, control characters other than white space.
_DROPPED = ("Mn", "Me", "Cf", "Cc")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


class Markers:
    """A set of markers; `broken` puts a space into every one that it finds.

    The space stands before the last character, or after the first where the marker ends with a letter: `<human>`
    becomes `<human >`, `[Round` becomes `[ Round`. One that a single character stands for is removed.

    Args:
        markers: the markers themselves.
        looks: a regular expression of what else has the look of one, found in the text as it is folded; the space
            stands after the first character.
    """

    def __init__(self, markers: Iterable[str], looks: str = "") -> None:
        folded = {"".join(map(_folded_character, marker.strip())) for marker in markers}
        longest_first = sorted(folded - {""}, key=lambda marker: (-len(marker), marker))
        parts = [*([f"(?P<look>{looks})"] if looks else []), *map(re.escape, longest_first)]
        self._pattern = re.compile("|".join(parts)) if parts else None

    def broken(self, text: str) -> str:
        """Return `text` without any of the markers; breaking it again changes nothing more."""
        while self._pattern:
            folded, places = _folded(text)
            found = list(self._pattern.finditer(folded))
            if not found:
                break
            for match in reversed(found):
                first, last = places[match.start()], places[match.end() - 1]
                look = match.lastgroup == "look"
                if first == last:
                    text = text[:first] + text[first + 1 :]
                else:
                    at = first + 1 if look or match[0][-1].isalnum() else last
                    text = f"{text[:at]} {text[at:]}"
        return text


def _folded(text: str) -> tuple[str, Sequence[int]]:
    """Return `text` as it is compared, and for each of those characters the place it comes from."""
    if text.isascii() and not _CONTROLS.search(text):
        return text.lower(), range(len(text))
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        folded = _folded_character(character)
        characters.append(folded)
        places += [place] * len(folded)
    return "".join(characters), places


@lru_cache(maxsize=4096)
def _folded_character(character: str) -> str:
    parts = unicodedata.normalize("NFKD", character).casefold()
    return "".join(part for part in parts if part.isspace() or unicodedata.category(part) not in _DROPPED)
