"""Windows: what moderation judges at once, and the pieces in which an answer leaves. Pure.

A window is a sentence, a few lines of code, or a piece of either where they are long. Cutting depends on the text
alone, never on how it was split into chunks, so the windows of a stream are the windows of the whole text.
"""

import re
import unicodedata

# A sentence of less waits for the next: "1." and "Dr." are no windows.
MIN_WINDOW = 24
# A window is cut here at the latest, where there is a gap in its second half.
MAX_WINDOW = 240
# A window is judged with this much of what stands before it, so that nothing hides across a cut.
OVERLAP = 60
# All three count a Latin letter as 1, and of other scripts each as 2: it says more, and encoders read it as a token.
_NARROW = "\u024f"

_SENTENCE_END = re.compile(r"[.!?…؟।॥۔][\"')\]»”’*_]*\s|\n|[。！？｡．]+[」』”’）\"')\]]*")
# What ends with a full stop and no sentence: the number of a list's item, an initial, a few short words.
_NO_END = re.compile(
    r"(?:(?:^|\n)\s*\d{1,3}|(?:^|[\s(\"'])(?:[^\W\d_]|[A-Z][a-z]|Mrs|Prof|vs|cf|e\.g|i\.e|z\.B|bzw))\.$"
)
# Where a long sentence is cut, the better first.
_GAPS = (re.compile(r"\s"), re.compile(r"[,;:、，；：]"))
_FENCE = re.compile(r"^[ \t>]*(?:```|~~~)", re.MULTILINE)
# In a block of code a window ends with a line, once it has this much: one line says little.
_CODE_WINDOW = 120


class WindowCutter:
    """Cuts a stream of text into windows; joined again they are the text, character by character.

    Args:
        before: what stands before the text; tells whether that begins inside a block of code.
    """

    def __init__(self, before: str = "") -> None:
        self._held = ""
        self._line = before[before.rfind("\n") + 1 :]  # what stands before the held text on its line
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
        self._line = seen[seen.rfind("\n") + 1 :]


def _first_cut(text: str, code: bool, line: str) -> int:
    """Return where the first window of `text` ends, 0 while that is open.

    Args:
        code: it begins inside a block of code.
        line: what stands before it on its line.
    """
    longest = _length(text, MAX_WINDOW)
    for match in _SENTENCE_END.finditer(text, 0, longest or len(text)):
        end = match.end()
        fence = _is_fence(text, end, line)
        if code:  # ends with the block, or with a line once there is enough of it
            over = fence or (text[end - 1] == "\n" and _reaches(text, end, _CODE_WINDOW))
        else:
            over = not _is_no_end(text, match)
        if over and _reaches(text, end, MIN_WINDOW):
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
    """Return how many characters of `text` come to `weight`, 0 where all of them are less."""
    if len(text) < weight and (text.isascii() or 2 * len(text) < weight):
        return 0
    if text[:weight].isascii():
        return weight
    total = 0
    for count, character in enumerate(text, 1):
        total += 1 if character <= _NARROW else 2
        if total >= weight:
            return count
    return 0


def _reaches(text: str, end: int, weight: int) -> bool:
    length = _length(text[:end], weight)
    return 0 < length <= end


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
    """Return the windows of `text`, each with up to OVERLAP of what stands before it.

    These are what a moderator judges: the units of a whole text are the units of its stream, so results can be cached.
    """
    cutter = WindowCutter(before)
    units = []
    said = before[-2 * OVERLAP :]
    for window in [*cutter.feed(text), cutter.flush()]:
        if window.strip():
            units.append(tail(said) + window)
        said = (said + window)[-2 * OVERLAP :]
    return units


def tail(text: str) -> str:
    """Return the last words of `text`, at most OVERLAP of them."""
    last = text[-OVERLAP - 1 :]
    length = _length(last[::-1], OVERLAP + 1)
    if not length:
        return text
    piece = last[len(last) - length + 1 :]
    space = piece.find(" ")
    return piece[space + 1 :] if 0 <= space < len(piece) - 1 else piece
