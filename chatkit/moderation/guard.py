"""Guard models as scorers: a judge is asked what its family was trained on, and its answer becomes scores.

Where the model's numbers can be read, in this machine's memory or as a server's log-probabilities, scores are the
probabilities of its verdicts. Where a server gives text alone they are 0, or 1. What cannot be read is unavailable.
"""

import asyncio
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatkit.judging import Judge, LikelihoodJudge, Question, Reply, ReplyJudge, Token
from chatkit.moderation.guard_templates import Ask, Template
from chatkit.moderation.pieces import highest
from chatkit.release import OVERLAP, tail
from chatkit.squeeze import squeezed
from chatkit.types import CATEGORIES, HARM, LABELS, Direction, Scores

# All verdicts together less likely than this: the model would say something else. Of a server's reply, whose list of
# other tokens is short, more is asked.
LEAST_CHANCE, _LEAST_LISTED = 1e-2, 0.5
# What is asked of beside harm: neither a trick on the bot nor a swear word hurts anybody by itself.
_NO_HARM = ("injection", "profanity")
# Harm from which the questions are asked that say what kind it is.
_DOUBT = 0.1
# What ends a model's thoughts, of which none is its verdict.
_THOUGHT = "</think>"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one question brought.

    Attributes:
        verdicts: word → probability, adding up to 1.
        kinds: category → probability of the verdicts that name it.
    """

    verdicts: dict[str, float]
    kinds: dict[str, float]


class GuardScorer(ABC):
    """Scores text with a guard model.

    Args:
        judge: the model.
        template: its family.
    """

    def __init__(self, judge: Judge, template: Template) -> None:
        self._judged_by = judge
        self.template = template

    async def score(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> Scores:
        """Score `text`; an answer that cannot be read is unavailable.

        Raises:
            Unavailable: the model does not answer (EngineFailed), or has no room (Overloaded).
        """
        if not squeezed(text).strip():
            return self._scores({}, {LABELS[0]: 1.0})

        async def score_part(part: str, with_history: bool) -> Scores:
            # Without: no more than the beginning of the message that was answered.
            said = history if with_history else tuple(squeezed(turn)[:OVERLAP] for turn in history[-1:])
            return await self._score_part(part, direction, said)

        return await highest(score_part, tail(before) + squeezed(text))

    async def _score_part(self, text: str, direction: Direction, history: Sequence[str]) -> Scores:
        asks = [ask for ask in self.template.asks if direction in ask.directions]
        first = [ask for ask in asks if ask.always]
        judged = await self._ask_all(first, text, direction, history)
        if judged is None:
            return self._unavailable()
        later = [ask for ask in asks if not ask.always]
        if later and max(map(self._harm, judged)) >= _DOUBT:
            more = await self._ask_all(later, text, direction, history)
            if more is None:
                return self._unavailable()
            first, judged = first + later, judged + more
        return self._read(first, judged)

    async def _ask_all(
        self, asks: Sequence[Ask], text: str, direction: Direction, history: Sequence[str]
    ) -> list[Judgement] | None:
        """Return what each question brought; None where any answer cannot be read."""
        found = await self.judgements(self.template.questions(asks, text, direction, history))
        whole = [judgement for judgement in found if judgement is not None]
        return whole if len(whole) == len(asks) else None

    @abstractmethod
    async def judgements(self, questions: Sequence[Question]) -> list[Judgement | None]:
        """Return what each question brought; None for an answer that cannot be read."""

    def _harm(self, judged: Judgement) -> float:
        return sum(verdict.harm * judged.verdicts.get(verdict.word, 0.0) for verdict in self.template.verdicts)

    def _read(self, asks: Sequence[Ask], judged: Sequence[Judgement]) -> Scores:
        """Return scores and levels: those of the one question, or of several the gravest."""
        scores = {HARM: 0.0}
        gravest, most = judged[0], -1.0
        for ask, one in zip(asks, judged, strict=True):
            harm = self._harm(one)
            for category, chance in {**one.kinds, ask.category: harm}.items():
                scores[category] = max(scores.get(category, 0.0), chance)
            if ask.category not in _NO_HARM and harm > most:
                gravest, most = one, harm
        scores[HARM] = max(scores[HARM], most)
        levels = {v.level: gravest.verdicts.get(v.word, 0.0) for v in self.template.verdicts}
        return self._scores(scores, levels)

    def _scores(self, scores: dict[str, float], levels: dict[str, float]) -> Scores:
        ordered = {name: scores[name] for name in (HARM, *CATEGORIES) if name in scores}
        whole = {label: levels.get(label, 0.0) for label in LABELS}
        return Scores(ordered, whole, model=self._model, version=self._judged_by.version)

    @property
    def _model(self) -> str:
        """Family and name: a policy has thresholds by how a model's name begins."""
        return f"{self.template.name}/{self._judged_by.name}"

    def _unavailable(self) -> Scores:
        return Scores(unavailable=True, model=self._model, version=self._judged_by.version)

    def _kinds_of(self, names: Iterable[str], chance: float) -> dict[str, float]:
        found = (self.template.kinds.get(name) for name in names)
        return dict.fromkeys((category for category in found if category), chance)


class LikelihoodGuard(GuardScorer):
    """A guard model whose logits are read: every verdict with every kind of harm is scored in one forward pass.

    Args:
        least_chance: how likely the verdicts have to be together.
    """

    def __init__(self, judge: LikelihoodJudge, template: Template, *, least_chance: float = LEAST_CHANCE) -> None:
        super().__init__(judge, template)
        self._judge = judge
        self._least = least_chance
        # Where each verdict's and each kind's likelihoods are in the row of answers.
        self._answers: list[str] = []
        self._verdict_at: dict[str, list[int]] = {}
        self._kind_at: dict[tuple[str, str], list[int]] = {}
        for verdict in template.verdicts:
            for spelling in verdict.spellings:
                self._verdict_at.setdefault(verdict.word, []).append(self._add(spelling))
                for kind in template.kinds if verdict.harm else ():
                    at = self._add(spelling + template.kind_lead + kind)
                    self._kind_at.setdefault((verdict.word, kind), []).append(at)

    def _add(self, answer: str) -> int:
        self._answers.append(answer)
        return len(self._answers) - 1

    async def judgements(self, questions: Sequence[Question]) -> list[Judgement | None]:
        """Return verdicts and kinds by their probabilities, in one pass for all the questions."""
        rows = await self._judge.likelihoods(questions, self._answers)
        return [self._judgement([math.exp(value) for value in row]) for row in rows]

    def _judgement(self, chances: Sequence[float]) -> Judgement | None:
        verdicts = {word: sum(chances[at] for at in places) for word, places in self._verdict_at.items()}
        total = sum(verdicts.values())
        if not total >= self._least:  # false for what is not a number, too
            return None
        verdicts = {word: chance / total for word, chance in verdicts.items()}
        kinds: dict[str, float] = {}
        for verdict in self.template.verdicts:
            named = {
                k: sum(chances[at] for at in self._kind_at.get((verdict.word, k), ())) for k in self.template.kinds
            }
            all_named = sum(named.values())
            for kind, chance in named.items():
                category = self.template.kinds[kind]
                if category and all_named > 0:
                    share = verdict.harm * verdicts[verdict.word] * chance / all_named
                    kinds[category] = kinds.get(category, 0.0) + share
        return Judgement(verdicts, kinds)


class ReplyGuard(GuardScorer):
    """A guard model behind a server: its reply is read, with the probabilities of the token that is the verdict."""

    def __init__(self, judge: ReplyJudge, template: Template) -> None:
        super().__init__(judge, template)
        self._judge = judge

    async def judgements(self, questions: Sequence[Question]) -> list[Judgement | None]:
        """Ask all the questions at once and read the replies."""
        most = self.template.most_tokens
        tasks = [asyncio.create_task(self._judge.reply(one, most_tokens=most)) for one in questions]
        try:
            return [self._judgement(reply) for reply in await asyncio.gather(*tasks)]
        finally:
            for task in tasks:  # one that failed has failed the check, and the others need not be waited for
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _judgement(self, reply: Reply) -> Judgement | None:
        text = reply.text.rpartition(_THOUGHT)[2]
        said = list(self.template.said.finditer(text))
        words = {match[1].lower() for match in said}
        if len(words) != 1:  # none, or several that contradict each other
            return None
        word = words.pop()
        verdicts = self._listed(reply.tokens) or {word: 1.0}
        if 2 * verdicts.get(word, 0.0) < max(verdicts.values()):  # the text says something else than its probabilities
            return None
        listed = self._named(text[said[0].end() :]) if self._harm(Judgement({word: 1.0}, {})) else []
        return Judgement(verdicts, self._kinds_of(listed, self._harm(Judgement(verdicts, {}))))

    def _named(self, rest: str) -> list[str]:
        """Return the kinds that are named after the verdict."""
        part = self.template.kind_said.search(rest) if self.template.kind_said else None
        longest_first = sorted(self.template.kinds, key=len, reverse=True)
        pattern = "|".join(rf"(?<!\w){re.escape(kind)}(?!\w)" for kind in longest_first)
        return re.findall(pattern, part[1]) if part and pattern else []

    def _listed(self, tokens: Sequence[Token]) -> dict[str, float]:
        """Return the verdicts' probabilities at the token where the verdict begins; nothing where they are not told."""
        whole = "".join(token.text for token in tokens)
        text = whole.rpartition(_THOUGHT)[2]
        said = self.template.said.search(text)
        if said is None:
            return {}
        start = len(whole) - len(text) + said.start(1)
        for token in tokens:
            if start < len(token.text):
                break
            start -= len(token.text)
        lead = token.text[:start]
        chances = dict.fromkeys((verdict.word for verdict in self.template.verdicts), 0.0)
        for text, value in token.top.items():
            meant = _meant(text[len(lead) :], chances) if text.startswith(lead) else ""
            if meant and value <= 0:
                chances[meant] += math.exp(value)
        total = sum(chances.values())
        return {word: chance / total for word, chance in chances.items()} if total >= _LEAST_LISTED else {}


def _meant(text: str, words: Iterable[str]) -> str:
    """Return the word that a token is the beginning of, "" where that is none or not one alone."""
    begun = text.strip().lower()
    found = [word for word in words if begun and (word.startswith(begun) or begun == word)]
    return found[0] if len(found) == 1 else ""
