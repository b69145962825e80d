"""Sentences and words of a text, in whatever language, without a model. Pure."""

import re

_END = re.compile(r"[.!?…]+[\"')\]»”’*_`]*(?=\s)|[。！？]+[」』”’)]*|\n+")
_ABBREVIATED = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|[Dd]r|[Mm]rs?|[Mm]s|[Pp]rof|[Ss]t|vs|etc|e\.g|i\.e|approx|[Nn]o|[Ff]ig|cf|al|[Jj]r|[Ss]r"
    r"|(?:[A-Za-z]\.)+[A-Za-z])\.$"
)
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+(?:['’.,][^\W_{_CJK}]+)*")
# Words that say nothing of what a sentence is about.
COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can could did do does for from had has have he her his how i if in into is "
        "it its may more most no not of on or our she so such than that the their them then there these they this "
        "those to was we were what when where which while who whom whose why will with would yes you your also",
    )
)
_ENDINGS = ("ations", "ation", "ingly", "ings", "edly", "ing", "ies", "ied", "ers", "est", "ed", "es", "er", "ly", "s")


def sentence_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Return start and end of each sentence of `text`, white space around it left out.

    What ends a line ends a sentence. A piece without a word of its own, such as "1." or "- ", belongs to the next one.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        piece = text[start : match.end()]
        if match[0][0] == "." and (_ABBREVIATED.search(piece) or text[match.end() :].lstrip()[:1].islower()):
            continue
        if not _is_wordless(piece):
            spans.append((start, match.end()))
            start = match.end()
    if not _is_wordless(text[start:]):
        spans.append((start, len(text)))
    return tuple(_stripped(text, *span) for span in spans)


def words_of(text: str) -> list[str]:
    """Return the words of a text; scripts without spaces in pairs of characters."""
    words: list[str] = []
    for found in _WORD.findall(text):
        if re.match(rf"[{_CJK}]", found) and len(found) > 2:
            words += [found[at : at + 2] for at in range(len(found) - 1)]
        else:
            words.append(found)
    return words


def stem(word: str) -> str:
    """Return what forms of a word have in common, in small letters: English endings are cut off."""
    word = word.casefold().removesuffix("'s").removesuffix("’s").replace(",", "")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _is_wordless(piece: str) -> bool:
    return not any(len(word) > 1 or not word.isdigit() for word in words_of(piece)) and not _number_alone(piece)


def _number_alone(piece: str) -> bool:
    """Whether a piece is an answer such as "7", and not the number of a list's entry, "7."."""
    return bool(re.fullmatch(r"\s*\d+\s*", piece))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
