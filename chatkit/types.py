"""The values that travel through one chat turn. Frozen, validated once, and free of any library."""

import re
from dataclasses import dataclass, field
from typing import Literal

from chatkit.errors import InvalidRequest
from chatkit.verdicts import ACTIONS as ACTIONS
from chatkit.verdicts import CATEGORIES as CATEGORIES
from chatkit.verdicts import HARM as HARM
from chatkit.verdicts import LABELS as LABELS
from chatkit.verdicts import REFUSALS as REFUSALS
from chatkit.verdicts import Action as Action
from chatkit.verdicts import Direction as Direction
from chatkit.verdicts import Done as Done
from chatkit.verdicts import ModerationResult as ModerationResult
from chatkit.verdicts import Scores as Scores

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "deadline", "content_filter", "aborted"]
TurnStatus = Literal["pending", "complete", "aborted", "blocked"]

# What a client may call a session or a request; ids that begin with `s-` are the server's own. DESIGN §2.15.
_CLIENT_ID = re.compile(r"[A-Za-z0-9._~:@-]{8,128}")


def check_id(name: str, value: str) -> None:
    """Refuse what can be no session's or request's id.

    Raises:
        InvalidRequest: naming it.
    """
    if not _CLIENT_ID.fullmatch(value):
        raise InvalidRequest(f"{name} is {value[:140]!r}, expected 8 to 128 letters, digits or any of ._~:@-")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose sessions these are; part of every storage key."""

    tenant: str = "default"
    user: str = "anonymous"

    @classmethod
    def behind(cls, api_key: str | None) -> "Owner":
        """Return the one owner of all who call a service with this key; without one they are all anonymous."""
        return cls() if api_key is None else cls(user="key")


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a prompt."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved piece of one document.

    Attributes:
        id: stable across rebuilds of the same content.
        text: the words themselves; empty where only the reference was kept.
        start, end: character offsets of `text` in the document; where neighbours were read with it, those of the first
            word and the last, and headings between them are not in `text`.
        score: what the ranking used, higher is better.
        text_hash: of one that comes from a store, the beginning of the SHA-256 of its text, in hexadecimal digits.
        page: from 1; 0 where the format has no pages.
        document: id of the document within its source: the source, or "SOURCE#ROW" where one file holds many.
        risks: category → score pairs, as moderation scored `shown` when the index was built, of joined neighbours the
            highest; empty where it did not.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    section: str = ""
    start: int = 0
    end: int = 0
    score: float = 0.0
    text_hash: str = ""
    page: int = 0
    document: str = ""
    risks: tuple[tuple[str, float], ...] = ()

    @property
    def heading(self) -> str:
        """What stands above it wherever it is shown; see `heading_of`."""
        return heading_of(self.title, self.section, self.source)

    @property
    def shown(self) -> str:
        """What a prompt says of it, and moderation judges: a document chooses its headings as it does its text."""
        return f"{self.heading}\n\n{self.text}" if self.heading else self.text


def heading_of(title: str, section: str, source: str) -> str:
    """Return what stands above a passage: title and section, or else its source."""
    return " - ".join(part for part in (title, section) if part) or source


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next tokens are chosen.

    Raises:
        InvalidRequest: for a value out of range, naming it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy, anything above samples
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps every token
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every bound once, so that no engine has to."""
        _within("max_new_tokens", self.max_new_tokens, 1, 32768)
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("top_p", self.top_p, 1e-6, 1.0)
        _within("top_k", self.top_k, 0, 1_000_000)
        _within("repetition_penalty", self.repetition_penalty, 0.1, 2.0)
        if self.seed is not None:
            _within("seed", self.seed, 0, 2**63 - 1)
        for word in self.stop_words:
            if not word or len(word) > 256:
                raise InvalidRequest(f"stop word {word[:40]!r} has {len(word)} characters, expected 1 to 256")
            if any("\ud800" <= character <= "\udfff" for character in word):
                raise InvalidRequest(f"stop word {word[:40]!r} has half a character, expected whole Unicode")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # false for NaN too
        raise InvalidRequest(f"{name} is {value!r:.40}, expected a number from {low} to {high}")


@dataclass(frozen=True, slots=True)
class QueryPart:
    """One of the texts that a search goes by.

    Attributes:
        weight: how much it counts beside the others, above 0.
    """

    text: str
    weight: float = 1.0


# What a filter may ask of a passage's document, and the most patterns and characters of one.
FILTERS = ("source", "title", "document")
_LONGEST_PATTERN = 512


@dataclass(frozen=True, slots=True)
class RetrievalOptions:
    """What one request asks of retrieval.

    Attributes:
        index: name of the index to search; None takes the service's own.
        where: pairs of `source`, `title` or `document` and a pattern with `*`, `?` and `[ab]`; only passages of
            documents that match all are searched.
        rerank: let the service's reranker read what was found; None leaves it to the service.
        neighbours: passages on each side of a hit that are read with it; None leaves it to the service.
    """

    enabled: bool = True
    k: int = 3
    index: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    rerank: bool | None = None
    neighbours: int | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        _within("k", self.k, 1, 50)
        if self.neighbours is not None:
            _within("neighbours", self.neighbours, 0, 10)
        names = [name for name, _ in self.where]
        for name, pattern in self.where:
            if name not in FILTERS or names.count(name) > 1:
                raise InvalidRequest(f"where has {name[:40]!r}, expected each of {', '.join(FILTERS)} at most once")
            if not pattern or len(pattern) > _LONGEST_PATTERN:
                raise InvalidRequest(
                    f"the pattern for {name} has {len(pattern)} characters, expected 1 to {_LONGEST_PATTERN}"
                )


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn as asked for: what every edge turns its wire schema into.

    Attributes:
        session_id: None opens a new session with an id that the server makes.
        request_id: the same id sent again is the same turn, never a second one.
        client_request_id: whether the caller chose `request_id`, and so can ask again.
        deadline_s: seconds after which the answer ends with what it has; None takes the service's own.
        instructions: what the caller's own system message says; it follows the service's.
        history: the conversation so far where the caller keeps it: the turn is then answered and not stored. None
            reads it from the store.
        replaces: number of the turn that this one is to stand in for, edited or said again: it and what followed it
            are kept and no longer part of the conversation.
    """

    text: str
    request_id: str
    owner: Owner = field(default_factory=Owner)
    session_id: str | None = None
    client_request_id: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    deadline_s: float | None = None
    instructions: str = ""
    history: tuple[Message, ...] | None = None
    replaces: int | None = None

    def __post_init__(self) -> None:
        """Check what a caller may ask for; the stop words of the prompt's format come on top."""
        if len(self.sampling.stop_words) > 16:
            raise InvalidRequest(f"stop_words has {len(self.sampling.stop_words)} entries, at most 16 are taken")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the model's own tokenizer counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a model yields.

    Attributes:
        text: whole characters; may be empty.
        tokens: how many tokens the model made for this chunk, those without text yet included.
        finish_reason: set on the last chunk only.
        prompt_tokens: set on the last chunk.
    """

    text: str
    tokens: int = 0
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message and what answers it, as stored.

    Attributes:
        seq: position in the session, from 1, without holes.
        attempt: counts runs of the same request; a late finish of an older attempt fails.
        user: empty for a refused message: only its length is kept.
        label: the moderation label of a blocked turn.
        blocked: which side was blocked, None otherwise.
        passages: references only, their text is not stored.
        replaces: the number that this turn stands in for; while it is pending or complete, that turn and those between
            the two are hidden.
    """

    seq: int
    request_id: str
    attempt: int
    status: TurnStatus
    user: str
    assistant: str = ""
    finish_reason: FinishReason | None = None
    blocked: Direction | None = None
    label: str | None = None
    user_length: int = 0
    usage: Usage = field(default_factory=Usage)
    passages: tuple[Passage, ...] = ()
    created_at: float = 0.0
    replaces: int | None = None


# The events of a turn, in order: TurnStarted, Retrieved, TextDelta…, Replace?, then Reply or Error.


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The turn is accepted: these ids name it from now on."""

    session_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The passages that the prompt holds."""

    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that the release gate has let out."""

    text: str


@dataclass(frozen=True, slots=True)
class Replace:
    """Whatever was shown so far is withdrawn; this refusal stands in its place."""

    text: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Citation:
    """One sentence of an answer and the passages that support it.

    Attributes:
        start, end: character offsets of the sentence in `Reply.text`.
        passage_ids: of passages that the prompt held, the best first; none where no passage supports it.
        score: of the best passage, 0..1, higher is better.
        supported: whether that is enough.
    """

    start: int
    end: int
    passage_ids: tuple[str, ...] = ()
    score: float = 0.0
    supported: bool = False


@dataclass(frozen=True, slots=True)
class Withheld:
    """A passage that was found and that moderation kept from the prompt, or let in as a quotation only.

    Attributes:
        category, label: of the verdict, as in ModerationResult.
        unavailable: it could not be checked.
    """

    passage_id: str
    action: Literal["dropped", "quoted"]
    category: str | None = None
    label: str | None = None
    unavailable: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The turn is stored and this is its result.

    Attributes:
        citations: one a sentence of `text`, in order. None where the prompt held no passage, of a refusal, of an
            aborted and of a replayed answer, and where citations are turned off.
        timings: seconds by stage: moderation_input, retrieval, accept, first_token, first_delta, generation, finish,
            citations, total.
        dropped_turns: how many of the oldest turns the prompt leaves out. Of those too old to be loaded every number
            counts, also of a turn that had no answer.
        dropped_passages: how many of the passages found did not fit it, the worst ones.
        withheld: passages that moderation dropped, or let in as quotations, and why.
        feedback: of a refusal, a token by which a user may report it as wrong; "" where nobody takes reports.
        replayed: the answer comes from the store, the request was a repeat.
    """

    text: str
    session_id: str
    request_id: str
    seq: int
    finish_reason: FinishReason
    passages: tuple[Passage, ...] = ()
    citations: tuple[Citation, ...] = ()
    usage: Usage = field(default_factory=Usage)
    timings: dict[str, float] = field(default_factory=dict)
    moderation_input: ModerationResult | None = None
    moderation_output: ModerationResult | None = None
    dropped_turns: int = 0
    dropped_passages: int = 0
    withheld: tuple[Withheld, ...] = ()
    feedback: str = ""
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Error:
    """The turn ended without a stored result; `error` says why."""

    error: Exception


Event = TurnStarted | Retrieved | TextDelta | Replace | Reply | Error
