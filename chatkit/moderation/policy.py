"""What follows from scores: a policy turns category scores and label probabilities into a label and an action. Pure.

Where a policy comes from is in policy_files.py; docs/moderation.md describes the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from chatkit.moderation.domain import DomainRule
from chatkit.moderation.phrases import Phrases
from chatkit.moderation.texts import Texts
from chatkit.types import ACTIONS, HARM, LABELS, REFUSALS, Action, Direction

# Never reached: a score is a probability.
NEVER = 2.0
DIRECTIONS: tuple[Direction, ...] = ("input", "output", "passage")
# What decides in the place of a category.
BLOCK_LIST = "block_list"
DOMAIN = "domain"
# The actions that a threshold stands for, from mild to grave.
STEPS = ACTIONS[1:]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which score of one category each action is taken, the milder no later than the graver.

    Attributes:
        doubt: least score of "harm" that a refusal takes; None takes the policy's.
    """

    annotate: float = NEVER
    soften: float = NEVER
    refuse: float = NEVER
    escalate: float = NEVER
    doubt: float | None = None

    def action(self, score: float, *, certain: bool = True) -> Action:
        """Return the gravest action that `score` reaches; where it is not `certain`, a refusal is an annotation."""
        reached: Action = "allow"
        doubted = False
        for step in STEPS:
            if score < getattr(self, step):
                continue
            if certain or step not in REFUSALS:
                reached = step
            else:
                doubted = True
        return "annotate" if doubted and reached == "allow" else reached


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of one text; `category` is what decided it, None where the label alone did."""

    label: str
    action: Action
    category: str | None = None


@dataclass(frozen=True, slots=True)
class PhraseRule:
    """A list of phrases and where it holds."""

    phrases: Phrases
    directions: tuple[Direction, ...] = DIRECTIONS
    action: Action = "refuse"


Table = Mapping[Direction, Mapping[str, Thresholds]]


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds by direction and category, lists, a domain, and what to say.

    Attributes:
        table: direction → category, or HARM → thresholds.
        doubt: a kind of harm refuses only where "harm" itself is at least this: kinds alone name a subject, such as
            weapons, and harmless texts have subjects too. Means nothing where the model has no "harm".
        labels: label of LABELS → thresholds of its probability.
        models: beginning of a model's name → the policy for its scores, lists and texts left out.
    """

    name: str
    table: Table
    doubt: float = 0.0
    labels: Mapping[str, Thresholds] = field(default_factory=dict)
    block: tuple[PhraseRule, ...] = ()
    allow: tuple[PhraseRule, ...] = ()
    domain: DomainRule | None = None
    texts: Texts = field(default_factory=Texts)
    models: Mapping[str, "Policy"] = field(default_factory=dict)

    def of(self, model: str) -> "Policy":
        """Return the policy for the scores of `model`: the longest beginning of its name counts."""
        return self.models.get(self.beginning(model), self)

    def beginning(self, model: str) -> str:
        """Return the name in `models` that counts for `model`; "" where none does."""
        return max((name for name in self.models if model.startswith(name)), key=len, default="")

    def decide(self, scores: Mapping[str, float], levels: Mapping[str, float], direction: Direction) -> Verdict:
        """Return label and action.

        The gravest action that a category or a label reaches counts. A refusal means intervention, a category's
        annotation at least caution; otherwise the likeliest of the five labels stands, the graver one of equals, and
        whatever is not casual is annotated.

        Args:
            scores: category → 0..1; a category that is absent counts as 0.
            levels: label of LABELS → probability; empty where the model has none.
            direction: which column of the table applies.
        """
        reached: dict[str, Action] = {}
        for name, limits in self.table[direction].items():
            doubt = self.doubt if limits.doubt is None else limits.doubt
            certain = name == HARM or HARM not in scores or scores[HARM] >= doubt
            reached[name] = limits.action(scores.get(name, 0.0), certain=certain)
        voted = gravest([limits.action(levels.get(label, 0.0)) for label, limits in self.labels.items()])
        action = gravest([*reached.values(), voted])
        likeliest = _likeliest(levels)
        if action == "allow":
            return Verdict(likeliest, "allow" if likeliest == LABELS[0] else "annotate")
        over = [name for name, one in reached.items() if one == action]
        category = _kind(over, scores) if over else None
        if action in REFUSALS:
            return Verdict(LABELS[-1], action, category)
        return Verdict(max("needs caution", likeliest, key=LABELS.index), action, category)


def gravest(actions: list[Action]) -> Action:
    """Return the gravest of some actions, "allow" of none."""
    return max(actions, key=ACTIONS.index, default="allow")


def _likeliest(levels: Mapping[str, float]) -> str:
    if not levels:
        return LABELS[0]
    return max(LABELS, key=lambda label: (levels.get(label, 0.0), LABELS.index(label)))


def _kind(over: list[str], scores: Mapping[str, float]) -> str:
    """Return the highest of the categories that are over; a kind of harm says more than "harm"."""
    kinds = [name for name in over if name != HARM] or over
    return max(kinds, key=lambda name: scores.get(name, 0.0))
