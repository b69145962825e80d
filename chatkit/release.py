"""The release gate: output leaves in moderated windows. Knows no model, no store and no protocol of the wire."""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Literal

from chatkit.observers import Observer
from chatkit.protocols import JudgesScores, Moderator
from chatkit.types import (
    ACTIONS,
    LABELS,
    REFUSALS,
    Chunk,
    Direction,
    FinishReason,
    ModerationResult,
    Scores,
    Usage,
)
from chatkit.windows import MAX_WINDOW as MAX_WINDOW
from chatkit.windows import MIN_WINDOW as MIN_WINDOW
from chatkit.windows import OVERLAP as OVERLAP
from chatkit.windows import WindowCutter as WindowCutter
from chatkit.windows import overlapping_windows as overlapping_windows
from chatkit.windows import sentence_windows as sentence_windows
from chatkit.windows import tail as tail

log = logging.getLogger(__name__)

GateMode = Literal["check_first", "stream_first", "final_only"]

# Checks of one answer that run at once; further windows wait for one of them.
_CHECKS_AT_ONCE = 4
# A check that takes longer did not run. Seconds; a window costs the embedded head milliseconds, a guard model more.
CHECK_TIMEOUT = 20.0
# What stands for a check that did not run.
_UNCHECKED = ModerationResult(flagged=False, label=None, unavailable=True)


async def checked(
    moderator: Moderator,
    text: str,
    *,
    direction: Direction,
    before: str = "",
    history: tuple[str, ...] = (),
    timeout: float = CHECK_TIMEOUT,
    observer: Observer | None = None,
) -> ModerationResult:
    """Return the moderator's verdict; a check that fails or takes too long is `unavailable`, never safe.

    Args:
        observer: is told of it, unless the caller stopped waiting.
    """
    started = time.perf_counter()
    verdict = await _verdict(moderator, text, direction, before, history, timeout)
    if observer is not None:
        observer.checked(direction, verdict.done, verdict.model, time.perf_counter() - started)
    return verdict


async def _verdict(
    moderator: Moderator, text: str, direction: Direction, before: str, history: tuple[str, ...], timeout: float
) -> ModerationResult:
    """Ask the moderator, and log why where a check could not run; never the text."""
    try:
        async with asyncio.timeout(timeout):
            verdict = await moderator.check(text, direction=direction, before=before, history=history)
    except TimeoutError:
        log.error("moderation of %s took more than %.0f s", direction, timeout)
        return _UNCHECKED
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # nobody waits for this check any more
            raise
        return _failed(error, direction)  # the moderator was cut off from within, by a task of its own perhaps
    except Exception as error:  # whatever an adapter raises, the text was not checked
        return _failed(error, direction)
    return sound(verdict, direction)


def judged(moderator: JudgesScores, found: Scores, text: str, *, direction: Direction) -> ModerationResult:
    """Return the moderator's verdict on known scores; `unavailable` as `checked` has it."""
    try:
        verdict = moderator.judge(found, text, direction=direction)
    except Exception as error:
        return _failed(error, direction)
    return sound(verdict, direction)


def _failed(error: BaseException, direction: Direction) -> ModerationResult:
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    place = f"{frame.f_code.co_filename}:{line}"  # not the message: it may hold the text
    log.error("moderation of %s failed with %s at %s", direction, type(error).__name__, place)
    return _UNCHECKED


def sound(verdict: object, direction: Direction) -> ModerationResult:
    """Return what a moderator answered, where it is a verdict; `unavailable` where it is none or contradicts itself.

    A verdict that flags a text refuses it, whatever milder action it names.
    """
    if not isinstance(verdict, ModerationResult) or not _is_verdict(verdict):
        log.error("moderation of %s answered what is no verdict: a %s", direction, type(verdict).__name__)
        return _UNCHECKED
    if verdict.unavailable:
        log.error("moderation of %s could not be told by its model %s", direction, verdict.model or "-")
        return verdict
    if verdict.flagged == (verdict.action in REFUSALS):
        return verdict
    if verdict.flagged:
        return replace(verdict, action="refuse")
    log.error("moderation of %s contradicts itself: action %s, not flagged", direction, verdict.action)
    return _UNCHECKED


def _is_verdict(verdict: ModerationResult) -> bool:
    """Whether the values are of their kinds, model and version being text, as replies, tokens and metrics take them."""
    named: tuple[object, ...] = (verdict.model, verdict.version)
    if not all(isinstance(name, str) for name in named):
        return False
    known = verdict.label in LABELS and verdict.action in ACTIONS and isinstance(verdict.flagged, bool)
    return known or verdict.unavailable


class ReleaseGate:
    """Lets text out window by window, each after its check, and judges the whole once at the end.

    Checks run while the model goes on: one task reads and cuts, the iterator waits for verdicts in order.

    Args:
        history: what was said before, the message that is answered last; see `Scorer.score`.
        timeout: of each check, seconds.
        observer: is told of each check.

    Attributes (after iteration):
        result: the verdict that decided; the gravest when nothing was flagged, the whole text's among equals.
        notices: what the policy wants said after a text that it lets out softened, each once.
        blocked: the text was flagged or could not be checked.
        text: what was let out.
        finish_reason, usage: as the model reported them.
        first_window_at: event loop time at which the first window was complete, before its check; None without one.
    """

    def __init__(
        self,
        chunks: AsyncIterator[Chunk],
        moderator: Moderator,
        mode: GateMode,
        *,
        history: tuple[str, ...] = (),
        timeout: float = CHECK_TIMEOUT,
        observer: Observer | None = None,
    ) -> None:
        self._chunks = chunks
        self._moderator = moderator
        self._mode = mode
        self._history = history
        self._timeout = timeout
        self._observer = observer
        self._turn = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self.notices: list[str] = []
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
            check = asyncio.create_task(self._checked(window, said))
        self._windows.put_nowait(_Window(window, check))

    async def _checked(self, text: str, before: str = "") -> ModerationResult:
        async with self._turn:
            return await checked(
                self._moderator,
                text,
                direction="output",
                before=before,
                history=self._history,
                timeout=self._timeout,
                observer=self._observer,
            )

    async def _whole_is_fine(self) -> bool:
        """Judge the whole text; window by window it may be harmless."""
        return not self.text.strip() or not self._refuses(await self._checked(self.text))

    def _refuses(self, verdict: ModerationResult) -> bool:
        """Take a verdict into account, and return whether nothing more may leave."""
        self.blocked = verdict.flagged or verdict.unavailable
        if self.blocked or ACTIONS.index(verdict.action) >= ACTIONS.index(self.result.action):
            self.result = verdict
        if verdict.action == "soften" and verdict.notice and verdict.notice not in self.notices:
            self.notices.append(verdict.notice)
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
