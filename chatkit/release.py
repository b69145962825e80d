"""The release gate: output leaves in moderated windows. Knows no model, no store and no protocol of the wire.

A window is a sentence, or a piece of one where sentences are long. Cutting depends on the text alone, never on how it
was split into chunks, so the windows of a stream are the windows of the whole text.
"""

import re

# A sentence shorter than this waits for the next: "1." and "Dr." are no windows. Characters.
MIN_WINDOW = 24
# A window is cut here at the latest, at a space where there is one in its second half. Characters.
MAX_WINDOW = 240
# A window is judged with this much of what stands before it, so that nothing hides across a cut. Characters.
OVERLAP = 60

_SENTENCE_END = re.compile(r"[.!?…][\"')\]»”’]*\s|\n|[。！？]")


class WindowCutter:
    """Cuts a stream of text into windows; joined again they are the text, character by character."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[str]:
        """Take more text and return the windows that are now complete."""
        self._held += text
        windows = []
        while cut := _first_cut(self._held):
            windows.append(self._held[:cut])
            self._held = self._held[cut:]
        return windows

    def flush(self) -> str:
        """Return what is left; the text has ended."""
        rest, self._held = self._held, ""
        return rest


def _first_cut(text: str) -> int:
    """Return where the first window of `text` ends, 0 while that is open."""
    for match in _SENTENCE_END.finditer(text, 0, MAX_WINDOW):
        if match.end() >= MIN_WINDOW:
            return match.end()
    if len(text) < MAX_WINDOW:
        return 0
    space = text.rfind(" ", MAX_WINDOW // 2, MAX_WINDOW)
    return space + 1 if space > 0 else MAX_WINDOW


def overlapping_windows(text: str, before: str = "") -> list[str]:
    """Return the windows of `text`, each with up to OVERLAP characters of what stands before it.

    These are what a moderator judges: the units of a whole text are the units of its stream, so results can be cached.
    """
    cutter = WindowCutter()
    units = []
    said = before
    for window in [*cutter.feed(text), cutter.flush()]:
        if window.strip():
            units.append(tail(said) + window)
        said = (said + window)[-2 * OVERLAP :]
    return units


def tail(text: str) -> str:
    """Return the last words of `text`, at most OVERLAP characters of them."""
    if len(text) <= OVERLAP:
        return text
    piece = text[-OVERLAP:]
    space = piece.find(" ")
    return piece[space + 1 :] if 0 <= space < OVERLAP - 1 else piece
