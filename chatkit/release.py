"""The release gate: output leaves in moderated windows. Knows no model, no store and no protocol of the wire.

A window is a sentence, or a piece of one where sentences are long. Cutting depends on the text alone, never on how it
was split into chunks, so the windows of a stream are the windows of the whole text.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from chatkit.protocols import Moderator
from chatkit.types import Chunk, Direction, FinishReason, ModerationResult, Usage

log = logging.getLogger(__name__)

GateMode = Literal["check_first", "stream_first", "final_only"]

# A sentence shorter than this waits for the next: "1." and "Dr." are no windows. Characters.
MIN_WINDOW = 24
# A window is cut here at the latest, at a space where there is one in its second half. Characters.
MAX_WINDOW = 240
# A window is judged with this much of what stands before it, so that nothing hides across a cut. Characters.
OVERLAP = 60
# A check that takes longer did not run. Seconds; a window costs the embedded head milliseconds, a guard model more.
CHECK_TIMEOUT = 20.0

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


async def checked(
    moderator: Moderator,
    text: str,
    *,
    direction: Direction,
    before: str = "",
    history: tuple[str, ...] = (),
    timeout: float = CHECK_TIMEOUT,
) -> ModerationResult:
    """Return the moderator's verdict; a check that fails or takes too long is `unavailable`, never safe."""
    try:
        async with asyncio.timeout(timeout):
            return await moderator.check(text, direction=direction, before=before, history=history)
    except TimeoutError:
        log.error("moderation of %s took more than %.0f s", direction, timeout)
    except Exception:  # whatever an adapter raises, the text was not checked
        log.exception("moderation of %s failed", direction)
    return ModerationResult(flagged=False, action="allow", label=None, unavailable=True)


class ReleaseGate:
    """Lets text out window by window, each after its check, and judges the whole once at the end.

    Checks run while the model goes on: one task reads and cuts, the iterator waits for verdicts in order.

    Attributes (after iteration):
        result: the verdict that decided; the whole text's when nothing was flagged.
        blocked: the text was flagged or could not be checked.
        text: what was let out.
        finish_reason, usage: as the model reported them.
        first_window_at: event loop time at which the first window was complete, before its check; None without one.
    """

    def __init__(self, chunks: AsyncIterator[Chunk], moderator: Moderator, mode: GateMode) -> None:
        self._chunks = chunks
        self._moderator = moderator
        self._mode = mode
        self._windows: asyncio.Queue[_Window | None] = asyncio.Queue()
        self.result = ModerationResult(flagged=False)
        self.blocked = False
        self.text = ""
        self.finish_reason: FinishReason = "aborted"
        self.usage = Usage()
        self.first_token_at: float | None = None
        self.first_window_at: float | None = None

    async def released(self) -> AsyncIterator[str]:
        """Yield the text that may leave; ends at the first hit, or when the generation was aborted.

        Raises:
            EngineFailed: from the chunks.
        """
        reader = asyncio.create_task(self._read())
        try:
            while (window := await self._windows.get()) is not None:
                if self._mode == "stream_first":
                    self.text += window.text
                    yield window.text
                if window.check and self._refuses(await window.check):
                    return
                if self._mode == "check_first":
                    self.text += window.text
                    yield window.text
            await reader
            if self.finish_reason != "aborted" and await self._whole_is_fine() and self._mode == "final_only":
                yield self.text
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._drop_checks()

    async def _read(self) -> None:
        """Cut the chunks into windows and start their checks at once."""
        cutter = WindowCutter()
        said = ""
        tokens = 0
        loop = asyncio.get_running_loop()
        try:
            async for chunk in self._chunks:
                tokens += chunk.tokens
                if tokens and self.first_token_at is None:
                    self.first_token_at = loop.time()
                windows = cutter.feed(chunk.text)
                if chunk.finish_reason is not None:
                    self.finish_reason = chunk.finish_reason
                    self.usage = Usage(chunk.prompt_tokens, tokens)
                    if chunk.finish_reason != "aborted":
                        windows.append(cutter.flush())
                for window in windows:
                    if window and self.first_window_at is None:
                        self.first_window_at = loop.time()
                    self._hand_over(window, said)
                    said += window
        finally:
            self._windows.put_nowait(None)

    def _hand_over(self, window: str, said: str) -> None:
        if not window:
            return
        if self._mode == "final_only":
            self.text += window
            return
        check = None
        if window.strip():
            check = asyncio.create_task(checked(self._moderator, window, direction="output", before=said))
        self._windows.put_nowait(_Window(window, check))

    async def _whole_is_fine(self) -> bool:
        """Judge the whole text; window by window it may be harmless."""
        if not self.text.strip():
            return True
        verdict = await checked(self._moderator, self.text, direction="output")
        if self._refuses(verdict):
            return False
        self.result = verdict
        return True

    def _refuses(self, verdict: ModerationResult) -> bool:
        if verdict.flagged or verdict.unavailable:
            self.result = verdict
            self.blocked = True
        return self.blocked

    def _drop_checks(self) -> None:
        while not self._windows.empty():
            window = self._windows.get_nowait()
            if window and window.check:
                window.check.cancel()


@dataclass(slots=True)
class _Window:
    text: str
    check: "asyncio.Task[ModerationResult] | None"
