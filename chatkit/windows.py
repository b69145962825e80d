"""Windows: what moderation judges at once, and the pieces in which an answer leaves. Pure.

A window is a sentence, a few lines of code, or a piece of either where they are long. Cutting depends on the text
alone, never on how it was split into chunks, so the windows of a stream are the windows of the whole text.
"""

import re
import unicodedata
from collections.abc import Iterator

from chatkit.squeeze import (
    ACCENTS,
    BLANK_LETTERS,
    INVISIBLE,
    LEFT,
    MOST_BLANKS,
    MOST_SAME,
    goes_on_overridden,
    squeezed,
    squeezed_end,
)

# A sentence of less waits for the next: "1." and "Dr." are no windows.
MIN_WINDOW = 24
# A window is cut here at the latest, where there is a gap in its second half.
MAX_WINDOW = 240
# A window is judged with this much of what stands before it, so that nothing hides across a cut.
OVERLAP = 60
# A sentence of less says too little by itself.
_TELLING = 40
# All four count a Latin letter as 1, and of other scripts each as 2: it says more, and encoders read it as a token.
# What shows nothing counts as nothing, so that a window has as many words as without it.
_NARROW = "\u024f"
# So many characters end a window all the same: what is held back of an answer is bounded.
MOST_HELD = 8192
# As many characters that are squeezed have an overlap in them, with the marks on its letters.
_SAID = 5 * (OVERLAP + 1)
# Of the beginning of a line so many characters tell whether it is a fence.
_LINE = 200

_SENTENCE_END = re.compile(r"[.!?…؟।॥۔][\"')\]»”’*_]*\s|\n|[。！？｡．]+[」』”’）\"')\]]*")
# What ends with a full stop and no sentence: the number of a list's item, an initial, a few short words.
_NO_END = re.compile(
    r"(?:(?:^|\n)\s*\d{1,3}|(?:^|[\s(\"'])(?:[^\W\d_]|[A-Z][a-z]|Mrs|Prof|vs|cf|e\.g|i\.e|z\.B|bzw))\.$"
)
# Where a long sentence is cut, the better first.
_GAPS = (re.compile(rf"[\s{BLANK_LETTERS}]"), re.compile(r"[,;:、，；：]"))
_FENCE = re.compile(r"^[ \t>]*(?:```|~~~)", re.MULTILINE)
# In a block of code a window ends with a line, once it has this much: one line says little.
_CODE_WINDOW = 120
_UNSEEN = re.compile(f"[{INVISIBLE}]")
_ACCENT = re.compile(f"[{ACCENTS}]")
# Most of what `_weighed` counts as nothing, and what an ASCII text has of it.
_PADDING = re.compile(rf"[{INVISIBLE}{ACCENTS}]+|(?<=[^\S\n]{{{MOST_BLANKS}}})[^\S\n]+")
_ASCII_PADDING = re.compile(
    rf"[\x00-\x08\x0e-\x1b\x7f]|[^\S\n]{{{MOST_BLANKS + 1}}}|\n[^\S\n]*\n[^\S\n]*\n|(\S)\1{{{MOST_SAME}}}"
)


class WindowCutter:
    """Cuts a stream of text into windows; joined again they are the text, character by character.

    Args:
        before: what stands before the text; tells whether that begins inside a block of code.
    """

    def __init__(self, before: str = "") -> None:
        self._held = ""
        # What stands before the held text on its line, the beginning of that.
        self._line = before[before.rfind("\n") + 1 :][:_LINE]
        self._code = len(_FENCE.findall(before)) % 2 == 1

    def feed(self, text: str) -> list[str]:
        """Take more text and return the windows that are now complete."""
        self._held += text
        windows = []
        while cut := _first_cut(self._held, self._code, self._line):
            windows.append(self._held[:cut])
            self._held = self._held[cut:]
            self._pass(windows[-1])
        return windows

    def flush(self) -> str:
        """Return what is left; the text has ended."""
        rest, self._held = self._held, ""
        return rest

    def _pass(self, window: str) -> None:
        """Note which fences of code a window opens and closes; one may begin before it."""
        seen = self._line + window
        known = len(_FENCE.findall(self._line))
        if (len(_FENCE.findall(seen)) - known) % 2:
            self._code = not self._code
        self._line = seen[seen.rfind("\n") + 1 :][:_LINE]


def _first_cut(text: str, code: bool, line: str) -> int:
    """Return where the first window of `text` ends, 0 while that is open.

    Args:
        code: it begins inside a block of code.
        line: what stands before it on its line.
    """
    shortest = _length(text, MIN_WINDOW)
    if not shortest:
        return 0
    longest = _length(text, MAX_WINDOW)
    # Weighing takes time at each chunk of a text full of what shows nothing, so it is done where there may be code.
    fenced = code or any(fence in line + text for fence in ("```", "~~~"))
    lines = _length(text[: longest or None], _CODE_WINDOW) if fenced else 0
    for match in _SENTENCE_END.finditer(text, 0, longest or len(text)):
        end = match.end()
        fence = _is_fence(text, end, line)
        # Code ends with the block, or with a line once there is enough of it.
        over = fence or (text[end - 1] == "\n" and 0 < lines <= end) if code else not _is_no_end(text, match)
        if over and shortest <= end:
            return end if match.group()[-1].isspace() or end < len(text) else 0  # a quote may follow a full-width stop
        code = code != fence
    return _gap(text, longest) if longest else 0


def _is_fence(text: str, end: int, line: str) -> bool:
    """Whether a line ends here that opens or closes a block of code."""
    if text[end - 1] != "\n":
        return False
    start = text.rfind("\n", 0, end - 1) + 1
    return _FENCE.match((text if start else line + text)[start : end + (0 if start else len(line))]) is not None


def _is_no_end(text: str, match: re.Match[str]) -> bool:
    stop = match.start() + 1
    return text[match.start()] == "." and _NO_END.search(text, max(0, stop - 8), stop) is not None


def _length(text: str, weight: int) -> int:
    """Return how many characters of `text` come to `weight`, at most MOST_HELD; 0 where all of them are less."""
    if len(text) < weight and (text.isascii() or 2 * len(text) < weight):
        return 0
    first = text[:weight]
    if first.isascii() and not _ASCII_PADDING.search(first):
        return weight
    if len(text) < MOST_HELD and 2 * len(_PADDING.sub("", text)) < weight:
        return 0  # the same as below, sooner
    for count, total in enumerate(_weighed(text[:MOST_HELD]), 1):
        if total >= weight:
            return count
    return MOST_HELD if len(text) >= MOST_HELD else 0


def _weighed(text: str) -> Iterator[int]:
    """Yield after each character what `text` weighs so far, as what is left of it once it is squeezed.

    Invisible characters and blanks past some weigh nothing. Where a character is repeated too often, or a third line
    ends with nothing on it, the weight falls back to that of what is left.
    """
    total = blanks = lines = same = before = 0
    last = base = ""
    for character in text:
        if character == "\n":
            before, lines = (total, 1) if not lines else (before, lines + 1)
            total = before + 2 if lines > 2 else total + 1
            blanks = same = 0
            last = base = ""
        elif character.isspace() or character in BLANK_LETTERS:
            blanks += 1
            total += 0 if blanks > MOST_BLANKS else _weight(character)
            same, last = 0, ""
        elif not _UNSEEN.match(character):
            blanks = lines = 0
            same, last = (same + 1 if character == last else 1), character
            if not _is_mark(character, base):
                base = character
                total += _of_repeats(same) * _weight(character)
        yield total


def _of_repeats(same: int) -> int:
    """Return how many more repeats of a character count once there is the last of `same`."""
    if same <= MOST_SAME:
        return 1
    return LEFT - MOST_SAME if same == MOST_SAME + 1 else 0


def _weight(character: str) -> int:
    return 1 if character <= _NARROW or character in BLANK_LETTERS else 2


def _is_mark(character: str, base: str) -> bool:
    """Whether a character is an accent, or a mark of another script on a Latin letter or a digit; neither is read."""
    if character <= _NARROW:
        return False
    return _ACCENT.match(character) is not None or ("" < base <= _NARROW and unicodedata.category(character)[0] == "M")


def _gap(text: str, longest: int) -> int:
    """Return where to cut a sentence that is too long: after the last gap in its second half, or between letters.

    Where that hangs on a letter that is not here yet it is 0.
    """
    for gap in _GAPS:
        for place in range(longest, longest // 2, -1):
            if gap.match(text[place - 1]):
                return place
    if len(text) == longest:
        return 0
    whole = (place for place in range(longest, longest // 2, -1) if not _goes_on(text[place], text[place - 1]))
    return next(whole, longest)


def _goes_on(character: str, before: str) -> bool:
    """Whether a character belongs to the letter before it: an accent, a variation, something that is joined."""
    return "\u200d" in (character, before) or unicodedata.category(character).startswith("M")


def overlapping_windows(text: str, before: str = "") -> list[str]:
    """Return the windows of `text`, squeezed, each with up to OVERLAP of what stands before it.

    These are what a moderator judges: the units of a whole text are the units of its stream, so results can be cached.
    """
    cutter = WindowCutter(before)
    if goes_on_overridden(before):
        text = "\u202e" + text
    units = []
    said = squeezed_end(before, _SAID)
    for window in [*cutter.feed(squeezed(text)), cutter.flush()]:
        if window.strip():
            units.append(_last_words(said) + window)
        said = (said + window)[-_SAID:]
    return units


def sentence_windows(text: str) -> list[str]:
    """Return the windows of `text`, squeezed, each by itself.

    A short one, or one that begins inside a sentence that was cut, has up to OVERLAP of what stands before it. So is
    judged what is read whole, such as a passage: there a calm sentence must not hide the one behind it.
    """
    cutter = WindowCutter()
    units = []
    said, ended = "", True
    for window in [*cutter.feed(squeezed(text)), cutter.flush()]:
        if window.strip():
            units.append(window if ended and _length(window, _TELLING) else _last_words(said) + window)
        said = (said + window)[-_SAID:]
        ended = any(match.end() == len(window) for match in _SENTENCE_END.finditer(window))
    return units


def tail(text: str) -> str:
    """Return the last words of `text`, squeezed, at most OVERLAP of them."""
    return _last_words(squeezed_end(text, _SAID))


def _last_words(said: str) -> str:
    """Return the last words of what is squeezed already."""
    last = said[-_SAID:]
    length = _length(last[::-1], OVERLAP + 1)
    if not length:
        return last
    piece = last[len(last) - length + 1 :]
    space = piece.find(" ")
    return piece[space + 1 :] if 0 <= space < len(piece) - 1 else piece
