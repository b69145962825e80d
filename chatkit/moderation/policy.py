"""What follows from scores: a policy turns category scores and label probabilities into a label and an action. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from chatkit.errors import ConfigError
from chatkit.types import LABELS, Action, Direction

# Never reached: a score is a probability.
NEVER = 2.0


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which score of one category a text is annotated and from which it is refused."""

    annotate: float
    refuse: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of one text; `category` is what decided it, None where the label alone did."""

    label: str
    action: Action
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds by direction and category.

    Attributes:
        doubt: a kind of harm refuses only where "harm" itself is at least this: kinds alone name a subject, such as
            weapons, and harmless texts have subjects too.
    """

    name: str
    table: Mapping[Direction, Mapping[str, Thresholds]]
    doubt: float

    def decide(self, scores: Mapping[str, float], levels: Mapping[str, float], direction: Direction) -> Verdict:
        """Return label and action.

        A category at its refusal threshold means intervention, one at its annotation threshold at least caution;
        otherwise the likeliest of the five labels stands, the graver one of equals. Rater labels alone never refuse:
        raters asked for intervention where someone was in need of help.

        Args:
            scores: category → 0..1; a category that is absent counts as 0.
            levels: label of LABELS → probability.
            direction: which column of the table applies.
        """
        thresholds = self.table[direction]
        harm = scores.get("harm", 0.0)
        over = [name for name, limit in thresholds.items() if scores.get(name, 0.0) >= limit.refuse]
        if over and (harm >= self.doubt or "harm" in over):
            return Verdict("needs intervention", "refuse", _kind(over, scores))
        likeliest = max(LABELS, key=lambda label: (levels.get(label, 0.0), LABELS.index(label)))
        over = [name for name, limit in thresholds.items() if scores.get(name, 0.0) >= limit.annotate]
        if over:
            return Verdict(max("needs caution", likeliest, key=LABELS.index), "annotate", _kind(over, scores))
        return Verdict(likeliest, "allow" if likeliest == LABELS[0] else "annotate")


def _kind(over: list[str], scores: Mapping[str, float]) -> str:
    """Return the highest of the categories that are over; a kind of harm says more than "harm"."""
    kinds = [name for name in over if name != "harm"] or over
    return max(kinds, key=lambda name: scores[name])


def _policy(name: str, doubt: float, **row: Thresholds) -> Policy:
    """Return a policy with the same thresholds in every direction."""
    return Policy(name, {"input": row, "output": row, "passage": row}, doubt)


# A head's scores are calibrated when it is trained: of harmless everyday text one window in 20 reaches 0.2 and one in
# 100 reaches 0.5, in each category. Refusal thresholds are set where on harmless chat, articles and technical prose
# fewer than one window in 500 is refused by all of them together; weights/README.md has the figures.
# `standard` refuses late, because a small head cannot well tell a harmful request from a harmless one on the same
# subject: refusing early would mostly hit harmless ones. Swearing alone is noted, never refused.
_STANDARD = {
    "harm": Thresholds(0.5, 0.925),
    "hate": Thresholds(0.8, 0.93),
    "harassment": Thresholds(0.8, 0.91),
    "violence": Thresholds(0.9, 0.9975),
    "self_harm": Thresholds(0.8, 0.917),
    "sexual": Thresholds(0.9, 0.993),
    "illicit": Thresholds(0.8, 0.957),
    "profanity": Thresholds(0.8, NEVER),
}
_STRICT = {
    "harm": Thresholds(0.4, 0.8),
    "hate": Thresholds(0.5, 0.85),
    "harassment": Thresholds(0.5, 0.85),
    "violence": Thresholds(0.8, 0.96),
    "self_harm": Thresholds(0.5, 0.8),
    "sexual": Thresholds(0.8, 0.96),
    "illicit": Thresholds(0.5, 0.9),
    "profanity": Thresholds(0.5, 0.98),
}
_MONITOR = {name: Thresholds(row.annotate, NEVER) for name, row in _STANDARD.items()}

POLICIES: Mapping[str, Policy] = {
    "standard": _policy("standard", 0.67, **_STANDARD),
    "strict": _policy("strict", 0.5, **_STRICT),
    "monitor": _policy("monitor", NEVER, **_MONITOR),
}


def named(name: str) -> Policy:
    """Return the policy called `name`.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in POLICIES:
        known = ", ".join(POLICIES)
        raise ConfigError(f"policy is {name!r}, expected one of {known}; set --policy or CHATKIT_POLICY")
    return POLICIES[name]
