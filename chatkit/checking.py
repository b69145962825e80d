"""What moderation does for a turn before its answer: the message in its conversation, and the passages for it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from chatkit import release
from chatkit.observers import Observer
from chatkit.protocols import JudgesScores, Moderator
from chatkit.types import (
    REFUSALS,
    ChatRequest,
    Direction,
    ModerationResult,
    Passage,
    Scores,
    Turn,
    Withheld,
)

log = logging.getLogger(__name__)

PassageCheck = Literal["all", "scanned", "off"]

# Texts of one request that are checked side by side: a long history must not fill the encoder for everybody else.
_CHECKS_AT_ONCE = 8
# What a message is judged with: so many turns before it, and of each text of them the last so many characters.
CONTEXT_TURNS = 4
CONTEXT_CHARS = 600


def context_of(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Return what was said last, oldest first, the user and the assistant in turn."""
    texts = (text for turn in turns[-CONTEXT_TURNS:] for text in (turn.user, turn.assistant))
    return tuple(text[-CONTEXT_CHARS:] for text in texts)


class Checks:
    """Asks the moderator, and counts what it said.

    Args:
        timeout: seconds after which a check counts as one that could not run.
        passages: which passages are checked: all, those whose scores the index has, or none.

    Attributes:
        counts: (direction, what was done) → how often; of a message or an answer what decided, of passages each.
        observer: is told of each check; None for nobody.
    """

    def __init__(self, moderator: Moderator, *, timeout: float, passages: PassageCheck = "all") -> None:
        self.moderator = moderator
        self.counts: Counter[tuple[Direction, str]] = Counter()
        self.observer: Observer | None = None
        self._timeout = timeout
        self._passages = passages

    async def message(self, request: ChatRequest, turns: Sequence[Turn]) -> ModerationResult:
        """Check everything that nobody has checked yet: the message, and what the caller says was before it.

        Args:
            turns: of the conversation before the message, oldest first.
        """
        kept = (request.instructions, *(message.content for message in request.history or ()))
        texts = [request.text, *(text for text in kept if text.strip())]
        verdicts: list[ModerationResult] = []
        for start in range(0, len(texts), _CHECKS_AT_ONCE):
            part = texts[start : start + _CHECKS_AT_ONCE]
            context = context_of(turns)
            checks = (
                release.checked(
                    self.moderator,
                    text,
                    direction="input",
                    history=context if start + place == 0 else (),
                    timeout=self._timeout,
                    observer=self.observer,
                )
                for place, text in enumerate(part)
            )
            verdicts += await asyncio.gather(*checks)
            if any(verdict.flagged for verdict in verdicts):
                break
        flagged = next((verdict for verdict in verdicts if verdict.flagged), None)
        return flagged or next((verdict for verdict in verdicts if verdict.unavailable), verdicts[0])

    async def passages(self, passages: Sequence[Passage]) -> tuple[tuple[Passage, ...], tuple[Withheld, ...]]:
        """Return the passages that the policy lets into a prompt, and what it says of the others and of quoted ones."""
        verdicts = await asyncio.gather(*(self._passage(passage) for passage in passages))
        kept, withheld = [], []
        for passage, verdict in zip(passages, verdicts, strict=True):
            if verdict is None:
                kept.append(passage)
                continue
            self.note("passage", verdict)
            dropped = verdict.flagged or verdict.unavailable
            if not dropped:
                kept.append(passage)
            if dropped or verdict.action == "soften":
                what: Literal["dropped", "quoted"] = "dropped" if dropped else "quoted"
                withheld.append(Withheld(passage.id, what, verdict.category, verdict.label, verdict.unavailable))
        return tuple(kept), tuple(withheld)

    async def _passage(self, passage: Passage) -> ModerationResult | None:
        if self._passages == "off" or not passage.text.strip():
            return None
        if passage.risks and isinstance(self.moderator, JudgesScores):
            known = Scores(dict(passage.risks), model="index")
            verdict = release.judged(self.moderator, known, passage.shown, direction="passage")
            if self.observer is not None:
                self.observer.checked("passage", verdict.done, verdict.model, None)
            return verdict
        if self._passages == "scanned":
            return None
        return await release.checked(
            self.moderator, passage.shown, direction="passage", timeout=self._timeout, observer=self.observer
        )

    def note(self, direction: Direction, verdict: ModerationResult, session: str = "") -> None:
        """Count a verdict, and log what was refused or could not be checked; never its text.

        Args:
            session: a hash that stands for the session.
        """
        done = verdict.done
        self.counts[direction, done] += 1
        if done in (*REFUSALS, "unavailable"):
            level = logging.INFO if done == "refuse" else logging.WARNING
            what = {"escalate": "refused, for a human to look at", "refuse": "refused"}.get(
                done, "could not be checked"
            )
            log.log(
                level,
                "moderation: %s %s status=%s category=%s label=%s model=%s session=%s",
                direction,
                what,
                done,
                verdict.category,
                verdict.label,
                verdict.model,
                session or "-",
            )
