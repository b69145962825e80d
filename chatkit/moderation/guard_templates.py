"""What each family of guard models is asked, and how its answer is read. Pure: knows no model and no connection.

Sources, all public: the model cards of Qwen3Guard-Gen, Llama Guard 3 and 4, ShieldGemma and Granite Guardian. The
prompt itself is written by the chat template that comes with each model, in its folder or on its server; what stands
here is what that template is given and what the model was trained to answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chatkit.errors import ConfigError
from chatkit.judging import Question
from chatkit.markers import Markers
from chatkit.types import HARM, LABELS, Direction, Message

SAFE, CAUTION, UNSAFE = LABELS[0], "needs caution", LABELS[-1]
# Of each earlier turn. Characters.
_MOST_OF_TURN = 2000
# A template wants a user's message before an answer; this stands for one that is not known.
_NOTHING_ASKED = "…"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer that a model may begin with.

    Attributes:
        word: as it is written in a reply, in any case.
        harm: how much of its probability counts as harm.
        level: the label of LABELS that it stands for.
        spellings: how the answer may begin with it, token for token.
    """

    word: str
    harm: float
    level: str
    spellings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """One question; most families ask one for everything, others one a policy.

    Attributes:
        category: what its harm counts as.
        arguments: direction → what the chat template is given beside the messages.
        directions: where it is asked.
        always: false where it is asked only if one that is always asked found some harm.
    """

    category: str = HARM
    arguments: Mapping[Direction, Mapping[str, Any]] = field(default_factory=dict)
    directions: tuple[Direction, ...] = ("input", "output", "passage")
    always: bool = True


@dataclass(frozen=True, slots=True)
class Template:
    """A family of guard models.

    Attributes:
        name: as the setting `moderation_template` has it.
        family: what the names of its models hold.
        verdicts: what it answers; group 1 of `said` finds the word in a reply.
        kinds: kind of harm as the model writes it → category, None for what chatkit has no category of.
        kind_lead: stands between the verdict and the first kind.
        kind_said: finds the kinds after the verdict in a reply.
        markers: what its template or its tokenizer reads as structure; broken in every text.
        most_turns: earlier messages that it reads with the one that is judged.
        most_tokens: of a reply.
    """

    name: str
    family: re.Pattern[str]
    asks: tuple[Ask, ...]
    verdicts: tuple[Verdict, ...]
    said: re.Pattern[str]
    markers: Markers
    kinds: Mapping[str, str | None] = field(default_factory=dict)
    kind_lead: str = ""
    kind_said: re.Pattern[str] | None = None
    most_turns: int = 6
    most_tokens: int = 24

    def questions(self, asks: Sequence[Ask], text: str, direction: Direction, history: Sequence[str]) -> list[Question]:
        """Return the questions to ask of a text."""
        messages = self._messages(text, direction, history)
        return [Question(messages, ask.arguments.get(direction, {})) for ask in asks]

    def samples(self) -> list[tuple[Question, Question]]:
        """Return pairs of questions that share what every question of one kind begins with: a policy, as a rule."""
        pairs = []
        directions: tuple[Direction, ...] = ("input", "output")
        for direction in directions:
            both = [self.questions(self.asks[:1], text, direction, ()) for text in ("a", "b")]
            pairs.append((both[0][0], both[1][0]))
        return pairs

    def _messages(self, text: str, direction: Direction, history: Sequence[str]) -> tuple[Message, ...]:
        """Return earlier turns and the text, the user first and by turns, whatever the history lacks."""
        output = direction == "output"
        said = [self.markers.broken(turn[:_MOST_OF_TURN]) for turn in history]
        if len(said) % 2 != output:  # an answer follows a message, a message does not
            said = [*said, _NOTHING_ASKED] if output else said[:-1]
        keep = self.most_turns // 2 * 2 + output
        said = [*said[-keep:], self.markers.broken(text)] if keep else [self.markers.broken(text)]
        roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
        return tuple(Message(roles[at % 2], turn) for at, turn in enumerate(said))


def _spelled(*words: str, leads: Sequence[str] = ("",)) -> tuple[str, ...]:
    return tuple(lead + word for lead in leads for word in words)


def _guideline(title: str, first: str, rest: str) -> Mapping[Direction, Mapping[str, Any]]:
    """Return ShieldGemma's policy in its two wordings, of a prompt alone and of a chatbot's answer."""
    said = f'"{title}": The prompt shall not contain or seek generation of content that {first}{rest}'
    answered = f'"{title}": The chatbot shall not generate content that {first}{rest}'
    return {"input": {"guideline": said}, "passage": {"guideline": said}, "output": {"guideline": answered}}


def _criterion(category: str, name: str, *, always: bool = False, only: tuple[Direction, ...] = ()) -> Ask:
    """Return one of Granite Guardian's criteria; 3.0 to 3.2 call it a risk."""
    given = {"guardian_config": {"risk_name": name, "criteria_id": name}, "think": False}
    directions: tuple[Direction, ...] = ("input", "output", "passage")
    return Ask(category, dict.fromkeys(directions, given), only or directions, always)


# Qwen3 thinks unless its template says that it has; a template that leaves that to the model is read all the same.
_TAGS = ("<BEGIN CONVERSATION>", "<END CONVERSATION>", "<BEGIN UNSAFE CONTENT", "<END UNSAFE CONTENT")
_QWEN_LEADS = ("", "<think>\n\n</think>\n\n")
_QWEN = Template(
    name="qwen3guard",
    family=re.compile(r"qwen-?3-?guard", re.IGNORECASE),
    asks=(Ask(),),
    verdicts=(
        Verdict("safe", 0.0, SAFE, _spelled("Safety: Safe", leads=_QWEN_LEADS)),
        Verdict("controversial", 0.5, CAUTION, _spelled("Safety: Controversial", leads=_QWEN_LEADS)),
        Verdict("unsafe", 1.0, UNSAFE, _spelled("Safety: Unsafe", leads=_QWEN_LEADS)),
    ),
    said=re.compile(r"\bSafety:[ \t]*(Safe|Unsafe|Controversial)\b", re.IGNORECASE),
    kinds={
        "Violent": "violence",
        "Non-violent Illegal Acts": "illicit",
        "Sexual Content or Sexual Acts": "sexual",
        "PII": "personal_data",
        "Personally Identifiable Information": "personal_data",
        "Suicide & Self-Harm": "self_harm",
        "Unethical Acts": "harassment",
        "Politically Sensitive Topics": None,
        "Copyright Violation": None,
        "Jailbreak": "injection",
        "None": None,
    },
    kind_lead="\nCategories: ",
    kind_said=re.compile(r"^Categories:(.*)$", re.IGNORECASE | re.MULTILINE),
    markers=Markers(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", *_TAGS]),
    most_tokens=64,
)
# What MLCommons' hazards are to chatkit. Defamation is an attack on somebody; of bad advice, elections and intellectual
# property there is no category, and the code interpreter's abuse is a crime like another.
_HAZARDS: Mapping[str, str | None] = {
    "S1": "violence",
    "S2": "illicit",
    "S3": "sexual",
    "S4": "sexual_minors",
    "S5": "harassment",
    "S6": None,
    "S7": "personal_data",
    "S8": None,
    "S9": "illicit",
    "S10": "hate",
    "S11": "self_harm",
    "S12": "sexual",
    "S13": None,
    "S14": "illicit",
}
_LLAMA_3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
)
_LLAMA_4 = ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>", "<|image|>", "<|python_tag|>")
_LLAMA_LEADS = ("", "\n\n")  # versions differ in which of both writes the empty line, template or model
_LLAMA = Template(
    name="llama-guard",
    family=re.compile(r"llama-?guard", re.IGNORECASE),
    asks=(Ask(),),
    verdicts=(
        Verdict("safe", 0.0, SAFE, _spelled("safe", leads=_LLAMA_LEADS)),
        Verdict("unsafe", 1.0, UNSAFE, _spelled("unsafe", leads=_LLAMA_LEADS)),
    ),
    said=re.compile(r"\A\s*(safe|unsafe)\b(?!.*\b(?!\1\b)(?:safe|unsafe)\b)", re.IGNORECASE | re.DOTALL),
    kinds=_HAZARDS,
    kind_lead="\n",
    kind_said=re.compile(r"\A[\s:,]*((?:S\d{1,2}\b[\s,]*)+)"),
    markers=Markers([*_LLAMA_3, *_LLAMA_4, *_TAGS]),
)
_YES = Verdict("yes", 1.0, UNSAFE, ("Yes", "yes", "<score> yes", "<score>yes", "\n<score> yes"))
_NO = Verdict("no", 0.0, SAFE, ("No", "no", "<score> no", "<score>no", "\n<score> no"))
_YES_OR_NO = re.compile(
    r"\A\s*(?:<think>.*?</think>\s*)?(?:<score>\s*)?(yes|no)\b"
    r"(?!.*(?:^|<score>)\W{0,20}(?!\1\b)(?:yes|no)\b)",  # a later line that says the other takes both back
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
_SHIELD = Template(
    name="shieldgemma",
    family=re.compile(r"shield-?gemma", re.IGNORECASE),
    asks=(
        Ask(
            "illicit",
            _guideline(
                "No Dangerous Content",
                "harming oneself and/or others ",
                "(e.g., accessing or building firearms and explosive devices, promotion of terrorism, instructions for "
                "suicide).",
            ),
        ),
        Ask(
            "harassment",
            _guideline(
                "No Harassment",
                "is malicious, intimidating, bullying, or abusive content targeting another individual ",
                "(e.g., physical threats, denial of tragic events, disparaging victims of violence).",
            ),
        ),
        Ask(
            "hate",
            _guideline(
                "No Hate Speech",
                "targeting identity and/or protected attributes (e.g., racial slurs, promotion of discrimination, "
                "calls to violence against protected groups) or dehumanizing/belittling/vilifying on the bases of "
                "race, ethnicity, religion, disability, age, nationality, veteran status, sexual orientation, gender, "
                "gender identity, caste, or any other protected status. ",
                "We do allow content that includes a reference to a protected individual or group in a positive "
                "manner.",
            ),
        ),
        Ask(
            "sexual",
            _guideline(
                "No Sexually Explicit Information",
                "contains references to sexual acts or other lewd content (e.g., sexually graphic descriptions, "
                "content aimed at causing arousal). ",
                "Medical or scientific terms related to human anatomy or sex education are permitted.",
            ),
        ),
    ),
    verdicts=(_NO, _YES),
    said=_YES_OR_NO,
    markers=Markers(["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "Human Question:", "Chatbot Response:"]),
    most_turns=0,
    most_tokens=4,
)
_GRANITE_TOKENS = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<start_of_turn>", "<end_of_turn>")
_GRANITE_TAGS = (
    "<guardian>",
    "<score>",
    "<think>",
    "</think>",
    "<start_of_risk_definition>",
    "<end_of_risk_definition>",
)
_GRANITE = Template(
    name="granite-guardian",
    family=re.compile(r"granite-?(?:[\d.]+-?)?guardian", re.IGNORECASE),
    asks=(
        _criterion(HARM, "harm", always=True),
        _criterion("injection", "jailbreak", always=True, only=("input", "passage")),
        _criterion("hate", "social_bias"),
        _criterion("violence", "violence"),
        _criterion("sexual", "sexual_content"),
        _criterion("illicit", "unethical_behavior"),
        _criterion("profanity", "profanity"),
    ),
    verdicts=(_NO, _YES),
    said=_YES_OR_NO,
    markers=Markers([*_GRANITE_TOKENS, *_GRANITE_TAGS]),
    most_turns=0,
    most_tokens=16,
)
TEMPLATES = {template.name: template for template in (_QWEN, _LLAMA, _SHIELD, _GRANITE)}


def chosen(setting: str, model: str) -> Template:
    """Return a family's template.

    Args:
        setting: its name, or `auto` to go by the model's.
        model: all that the model is called, in one string.

    Raises:
        ConfigError: there is none of that name, or the model's name tells of none.
    """
    if setting in TEMPLATES:
        return TEMPLATES[setting]
    found = [template for template in TEMPLATES.values() if template.family.search(model)]
    if setting == "auto" and len(found) == 1:
        return found[0]
    known = ", ".join(TEMPLATES)
    raise ConfigError(
        f"moderation_template is {setting!r}, and the model's name {model!r} tells of no one family; set it to one of "
        f"{known}"
    )
