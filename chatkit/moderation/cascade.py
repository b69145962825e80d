"""A cheap scorer first, and an expensive one only where the cheap one is not sure."""

import logging
from dataclasses import dataclass, replace

from chatkit.protocols import Scorer
from chatkit.types import HARM, Direction, Scores

log = logging.getLogger(__name__)

# How often it is logged how many checks went on.
_SAID_EVERY = 1000


@dataclass(slots=True)
class Counts:
    """Checks so far.

    Attributes:
        checks: all of them.
        sent_on: those that the expensive scorer was asked about.
        unavailable: those that one of both could not say.
    """

    checks: int = 0
    sent_on: int = 0
    unavailable: int = 0

    @property
    def share(self) -> float:
        """The part of the checks that went on, 0..1."""
        return self.sent_on / self.checks if self.checks else 0.0


class CascadeScorer:
    """Asks `expensive` where `cheap` gives HARM a score in the band; elsewhere what `cheap` says stands.

    Inside the band the expensive scores stand, with those kinds of the cheap scorer that the expensive one does not
    know. What cannot be said by the one that has to is unavailable: a cheap guess is no stand-in for a check.

    Args:
        low, high: the band, both ends in it; 0 and 1 ask the expensive one of everything.

    Attributes:
        counts: how many checks there were and went on.
    """

    def __init__(self, cheap: Scorer, expensive: Scorer, *, low: float, high: float) -> None:
        self._cheap = cheap
        self._expensive = expensive
        self._low, self._high = low, high
        self.counts = Counts()

    async def score(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> Scores:
        """Score `text`; whatever a scorer raises comes through."""
        self._count()
        try:
            found = await self._cheap.score(text, direction=direction, before=before, history=history)
            if not found.unavailable and self._low <= found.scores.get(HARM, 1.0) <= self._high:
                self.counts.sent_on += 1
                more = await self._expensive.score(text, direction=direction, before=before, history=history)
                found = more if more.unavailable else replace(more, scores={**_kinds(found), **more.scores})
        except BaseException:
            self.counts.unavailable += 1
            raise
        self.counts.unavailable += found.unavailable
        return found

    def _count(self) -> None:
        self.counts.checks += 1
        if self.counts.checks % _SAID_EVERY == 0:
            made = self.counts
            log.info("%d checks, %.1f %% of them by the second model too", made.checks, 100 * made.share)


def _kinds(found: Scores) -> dict[str, float]:
    """Return scores that mean the same whoever gives them: a trick on the bot, personal data, a swear word."""
    return {name: found.scores[name] for name in ("injection", "personal_data", "profanity") if name in found.scores}
