"""The one place where scores become a verdict: a scorer under a policy."""

import asyncio
from dataclasses import replace

from chatkit.errors import ConfigError
from chatkit.moderation.domain import Domain
from chatkit.moderation.normalise import normalised
from chatkit.moderation.phrases import is_covered, is_plain, uncovered, words_of
from chatkit.moderation.policy import BLOCK_LIST, DOMAIN, Policy, Verdict, gravest
from chatkit.protocols import Encoder, Scorer
from chatkit.squeeze import goes_on_overridden, squeezed, squeezed_end
from chatkit.types import ACTIONS, LABELS, REFUSALS, Action, Direction, ModerationResult, Scores

# Characters of what stands before a text that the lists read with it, so that no phrase hides across a cut.
_LISTS_READ = 1000
# A longer text is compared with the lists in a thread: the event loop has other streams to serve. Characters.
_SHORT = 4000
# What scores a text that a list alone has decided.
_LISTS = "lists"


class PolicyModerator:
    """Judges text by what a scorer says of it and what a policy makes of that.

    Args:
        encoder: makes the vectors of the policy's domain rule; only needed where it has one.

    Raises:
        ConfigError: the policy has a domain rule and there is no encoder.
    """

    def __init__(self, scorer: Scorer, policy: Policy, *, encoder: Encoder | None = None) -> None:
        if policy.domain is not None and encoder is None:
            raise ConfigError(f"the policy {policy.name!r} has a domain rule, and there is no encoder to tell it by")
        self._scorer = scorer
        self._policy = policy
        self._domain = Domain(policy.domain, encoder) if policy.domain is not None and encoder is not None else None

    async def check(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> ModerationResult:
        """Judge `text`; whatever the scorer raises comes through.

        The lists go first: what they refuse, or what consists of allowed phrases alone, is not scored.
        """
        listed, allowed = (
            self._listed(text, before, direction)
            if len(text) <= _SHORT
            else await asyncio.to_thread(self._listed, text, before, direction)
        )
        spoken = history[-1] if direction == "output" and history else text
        if listed in REFUSALS:
            return self._result(Scores(model=_LISTS), Verdict(LABELS[-1], listed, BLOCK_LIST), spoken)
        if allowed:
            return ModerationResult(flagged=False, model=_LISTS)
        found, outside = await asyncio.gather(
            self._scorer.score(text, direction=direction, before=before, history=history),
            self._is_outside(text, direction, history),
        )
        return self._judged(found, direction, listed, outside, spoken)

    def judge(self, found: Scores, text: str, *, direction: Direction) -> ModerationResult:
        """Judge `text` by scores that were made before; lists count as well, the domain does not."""
        listed, allowed = self._listed(text, "", direction)
        if allowed:
            return ModerationResult(flagged=False, model=_LISTS)
        return self._judged(found, direction, listed, False, text)

    def _judged(
        self, found: Scores, direction: Direction, listed: Action, outside: bool, spoken: str
    ) -> ModerationResult:
        if found.unavailable or not _sane(found):
            return ModerationResult(
                flagged=False, label=None, unavailable=True, model=found.model, version=found.version
            )
        verdict = self._policy.of(found.model).decide(found.scores, found.levels, direction)
        verdict = _at_least(verdict, listed, BLOCK_LIST)
        if outside and self._policy.domain is not None:
            verdict = _at_least(verdict, self._policy.domain.action, DOMAIN)
        return self._result(found, verdict, spoken)

    def _listed(self, text: str, before: str, direction: Direction) -> tuple[Action, bool]:
        """Return the gravest action of the block lists, and whether `text` is made of allowed phrases alone."""
        block = [rule for rule in self._policy.block if direction in rule.directions]
        allow = [rule for rule in self._policy.allow if direction in rule.directions]
        if not block and not allow:
            return "allow", False
        read = _together(before, text)
        hits: list[Action] = []
        # As it is written, and as a reader sees it: a phrase may hold what looks like a trick, such as "4chan".
        for words in (words_of(read), words_of(normalised(read))):
            fine = [span for rule in allow for span in rule.phrases.spans(words)]
            hits += [rule.action for rule in block if uncovered(rule.phrases.spans(words), fine)]
        own = words_of(text) if allow and is_plain(text) else []
        spans = [span for rule in allow for span in rule.phrases.spans(own)]
        return gravest(hits), not hits and is_covered(len(own), spans)

    async def _is_outside(self, text: str, direction: Direction, history: tuple[str, ...]) -> bool:
        if self._domain is None:
            return False
        return await self._domain.is_outside(text, direction=direction, history=history)

    def _result(self, found: Scores, verdict: Verdict, spoken: str) -> ModerationResult:
        return ModerationResult(
            flagged=verdict.action in REFUSALS,
            action=verdict.action,
            label=verdict.label,
            category=verdict.category,
            scores=found.scores,
            levels=found.levels,
            model=found.model,
            version=found.version,
            notice=self._policy.texts.notice(verdict.action, verdict.category, spoken),
        )


def _together(before: str, text: str) -> str:
    """Return `text` after the end of what stands before it, in the order in which they are seen."""
    if not goes_on_overridden(before):
        return squeezed_end(before, _LISTS_READ)[-_LISTS_READ:] + squeezed(text)
    start = before.rfind("\u202e")
    # What is turned round stands to the left of what it follows.
    return squeezed_end(before[:start], _LISTS_READ)[-_LISTS_READ:] + squeezed(
        "\u202e" + squeezed_end(before[start + 1 :], _LISTS_READ)[-_LISTS_READ:] + text
    )


def _sane(found: Scores) -> bool:
    """Whether every score is a probability: one that is not, such as NaN, says nothing."""
    return all(0 <= value <= 1 for value in (*found.scores.values(), *found.levels.values()))


def _at_least(verdict: Verdict, action: Action, category: str) -> Verdict:
    """Return `verdict`, or what `action` makes of it where that is graver."""
    if ACTIONS.index(action) <= ACTIONS.index(verdict.action):
        return verdict
    least = LABELS[-1] if action in REFUSALS else "needs caution"
    return replace(verdict, action=action, category=category, label=max(verdict.label, least, key=LABELS.index))
