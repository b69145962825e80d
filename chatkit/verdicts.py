"""What moderation says of a text: scores, levels, and the verdict that a policy makes of them. Frozen, no library."""

from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["input", "output", "passage"]
Action = Literal["allow", "annotate", "soften", "refuse", "escalate"]
# What a check came to: a check that could not run is no action, least of all "allow".
Done = Literal[Action, "unavailable"]

# The five OpenChatKit labels, from harmless to grave. They are rater votes, not severities of harm.
LABELS = (
    "casual",
    "possibly needs caution",
    "probably needs caution",
    "needs caution",
    "needs intervention",
)

# The kinds of harm that a policy knows. A moderator scores those it can; an absent one counts as 0.
CATEGORIES = (
    "hate",
    "harassment",
    "violence",
    "self_harm",
    "sexual",
    "sexual_minors",
    "illicit",
    "personal_data",
    "injection",
    "profanity",
)
# The overall judgement, where a moderator has one beside the kinds.
HARM = "harm"

# Actions from mild to grave, and those that keep a text from being answered or let out.
ACTIONS: tuple[Action, ...] = ("allow", "annotate", "soften", "refuse", "escalate")
REFUSALS: tuple[Action, ...] = ("refuse", "escalate")


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of one text, before any policy.

    Attributes:
        scores: of CATEGORIES, and HARM, each → probability in 0..1; an absent one counts as 0.
        levels: label of LABELS → probability; empty where the model has none.
        unavailable: the model could not say; never to be read as safe.
        model: its name.
        version: digest of its weights, or revision.
    """

    scores: dict[str, float] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    unavailable: bool = False
    model: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ModerationResult:
    """What one check said.

    Attributes:
        flagged: the policy refuses this text: its action is "refuse" or "escalate".
        action: what the policy does.
        label: one of LABELS; None when the check could not run.
        category: what decided it: one of CATEGORIES, HARM, "block_list", "domain"; None where nothing or a label did.
        scores: category → probability in 0..1.
        levels: label of LABELS → probability.
        unavailable: the check could not run; never to be read as safe.
        model, version: what scored it.
        notice: what to say in the place of a refused text, or after a softened one; "" where the service says it.
    """

    flagged: bool
    action: Action = "allow"
    label: str | None = "casual"
    category: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    unavailable: bool = False
    model: str = ""
    version: str = ""
    notice: str = ""

    @property
    def done(self) -> Done:
        """What the check came to, as logs and metrics count it."""
        if self.unavailable:
            return "unavailable"
        return "refuse" if self.flagged and self.action not in REFUSALS else self.action
