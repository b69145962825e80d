"""Lists of phrases, found in time linear in the text whatever it says and however long the list is. Pure.

Phrases are compared word by word in folded text, so that they match whole words only, in any case and spacing. A letter
of a script that is written without spaces counts as a word.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from chatkit.squeeze import INVISIBLE, marks, squeezed, unstacked

# Han, kana, Thai, Lao, Khmer and Myanmar: one letter is a token there.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)


@cache
def _token() -> re.Pattern[str]:
    """Return what finds a word: letters and digits with the marks on them, such as the vowels of Indic scripts."""
    return re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}](?:[^\W_{_SPACELESS}]|[{marks()}])*")


def folded(text: str) -> str:
    """Return `text` squeezed, in NFKC and lower case, without invisible format characters."""
    composed = unicodedata.normalize("NFKC", squeezed(text))
    if not composed.isascii():
        composed = "".join(c for c in composed if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", composed.casefold())


def words_of(text: str) -> list[str]:
    """Return the words of `text`, folded."""
    return [match.group() for match in _token().finditer(folded(text))]


def is_plain(text: str) -> bool:
    """Whether `text` has nothing but words, blanks and punctuation: no character that `words_of` leaves unread.

    Emoji, letters in boxes, tags and Braille are no words, yet models read them. Invisible characters can spell a text,
    too, some of them as marks on a letter.
    """
    if re.search(f"[{INVISIBLE}]", text):
        return False
    rest = _token().sub("", unicodedata.normalize("NFKC", unstacked(text)))
    return all(character.isspace() or unicodedata.category(character)[0] == "P" for character in rest)


@dataclass(slots=True)
class _Node:
    """A state of the machine: the words that go on from it, where to fall back to, and the longest phrase that ends."""

    next: dict[str, int]
    back: int = 0
    found: int = 0


class Phrases:
    """A set of phrases that finds itself in a sequence of words (Aho and Corasick, 1975, with words for letters).

    Attributes:
        longest: words of the longest phrase.
        clipped: phrases of which one or two letters are all that is compared, such as "c++".
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self._nodes = [_Node({})]
        self.phrases = tuple(phrases)
        self.longest = 0
        clipped = []
        for phrase in self.phrases:
            words = words_of(phrase)
            self._add(words)
            letters = "".join(words)
            if len(letters) <= 2 and "".join(folded(phrase).split()) != letters:
                clipped.append(phrase)
        self.clipped = tuple(clipped)
        self._link()

    def _add(self, words: Sequence[str]) -> None:
        at = 0
        for word in words:
            if word not in self._nodes[at].next:
                self._nodes[at].next[word] = len(self._nodes)
                self._nodes.append(_Node({}))
            at = self._nodes[at].next[word]
        self._nodes[at].found = len(words)
        self.longest = max(self.longest, len(words))

    def _link(self) -> None:
        """Let each state fall back to the longest end of its words that begins a phrase, breadth first."""
        order = list(self._nodes[0].next.values())
        for at in order:
            for word, child in self._nodes[at].next.items():
                back = self._step(self._nodes[at].back, word)
                self._nodes[child].back = back
                self._nodes[child].found = self._nodes[child].found or self._nodes[back].found
                order.append(child)

    def _step(self, at: int, word: str) -> int:
        while at and word not in self._nodes[at].next:
            at = self._nodes[at].back
        return self._nodes[at].next.get(word, 0)

    def spans(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """Return first and last word but one of every match, the longest that ends at each word."""
        found = []
        at = 0
        for place, word in enumerate(words):
            at = self._step(at, word)
            if length := self._nodes[at].found:
                found.append((place + 1 - length, place + 1))
        return found


def uncovered(spans: Sequence[tuple[int, int]], by: Sequence[tuple[int, int]]) -> bool:
    """Whether one of `spans` lies inside none of `by`; both as `Phrases.spans` gives them, in order of their ends."""
    covers = sorted(by)
    reach = -1
    place = 0
    for start, end in sorted(spans):
        while place < len(covers) and covers[place][0] <= start:
            reach = max(reach, covers[place][1])
            place += 1
        if reach < end:
            return True
    return False


def is_covered(count: int, by: Sequence[tuple[int, int]]) -> bool:
    """Whether every one of `count` words lies in one of `by`."""
    reach = 0
    for start, end in sorted(by):
        if start > reach:
            return False
        reach = max(reach, end)
    return 0 < count <= reach
