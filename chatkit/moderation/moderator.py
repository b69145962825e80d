"""The one place where scores become a verdict: a scorer under a policy."""

from chatkit.moderation.policy import Policy
from chatkit.protocols import Scorer
from chatkit.types import REFUSALS, Direction, ModerationResult


class PolicyModerator:
    """Judges text by what a scorer says of it and what a policy makes of that."""

    def __init__(self, scorer: Scorer, policy: Policy) -> None:
        self._scorer = scorer
        self._policy = policy

    async def check(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> ModerationResult:
        """Judge `text`; whatever the scorer raises comes through."""
        found = await self._scorer.score(text, direction=direction, before=before, history=history)
        if found.unavailable:
            return ModerationResult(
                flagged=False, label=None, unavailable=True, model=found.model, version=found.version
            )
        verdict = self._policy.decide(found.scores, found.levels, direction)
        return ModerationResult(
            flagged=verdict.action in REFUSALS,
            action=verdict.action,
            label=verdict.label,
            category=verdict.category,
            scores=found.scores,
            levels=found.levels,
            model=found.model,
            version=found.version,
        )
