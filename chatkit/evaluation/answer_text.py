"""How an answer is compared with the accepted ones and with the passages: SQuAD's normalisation, word by word. Pure."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

# Scripts that are written without spaces are compared character by character, as the Chinese sets of SQuAD's form are.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_TOKEN = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def tokens(text: str) -> list[str]:
    """Return the words of a text in lower case without punctuation and articles; CJK characters one by one."""
    kept = "".join(character for character in text.lower() if not _is_punctuation(character))
    return _TOKEN.findall(_ARTICLES.sub(" ", kept))


def _is_punctuation(character: str) -> bool:
    """Whether SQuAD's script drops it: ASCII's, and the marks of other scripts."""
    return character in _PUNCTUATION or (ord(character) > 127 and unicodedata.category(character)[0] == "P")


def contains(reply: str, answers: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in the reply, word by word."""
    said = f" {' '.join(tokens(reply))} "
    return any(own and f" {' '.join(own)} " in said for own in map(tokens, answers))


def exact(reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply is one of the accepted answers."""
    said = tokens(reply)
    return any(said == own for own in map(tokens, answers))


def f1(reply: str, answers: Sequence[str]) -> float:
    """Return the best F1 of words in common with one of the accepted answers, 0..1."""
    return max((_f1(tokens(reply), tokens(answer)) for answer in answers), default=0.0)


def _f1(said: list[str], own: list[str]) -> float:
    if not said or not own:
        return float(said == own)
    common = sum((Counter(said) & Counter(own)).values())
    return 2 * common / (len(said) + len(own))


def copied(reply: str, passage: str) -> float:
    """Return the share of a passage that a reply says again, 0..1.

    That is the longest common subsequence of their words over the words of the passage: words in the passage's order,
    with or without others between them, so that a copy with small changes counts as one.
    """
    said, words = tokens(reply), tokens(passage)
    if not words:
        return 0.0
    row = [0] * (len(said) + 1)
    for word in words:
        before = 0
        for at, own in enumerate(said, 1):
            before, row[at] = row[at], before + 1 if word == own else max(row[at], row[at - 1])
    return row[-1] / len(words)


def quoted(reply: str, passage: str) -> float:
    """Return the share of a reply that stands in a passage in one piece, 0..1: its longest run of words there."""
    said, words = tokens(reply), tokens(passage)
    longest = 0
    row = [0] * (len(said) + 1)
    for word in words:
        row = [0, *(row[at] + 1 if word == own else 0 for at, own in enumerate(said))]
        longest = max(longest, *row)
    return longest / len(said) if said else 0.0


def length(reply: str) -> int:
    """Return how many words a reply has, as white space separates them; CJK characters one by one."""
    return len(_TOKEN.findall(reply))
