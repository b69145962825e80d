"""The seams: what a turn needs from a model, a moderator, a retriever, an encoder and a store. Knows no library."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from chatkit.conversation import Conversation
from chatkit.encoders import Embedder as Embedder
from chatkit.encoders import Encoder as Encoder
from chatkit.encoders import PassageEncoder as PassageEncoder
from chatkit.retrievers import PartsRetriever as PartsRetriever
from chatkit.retrievers import Retriever as Retriever
from chatkit.types import (
    Chunk,
    Direction,
    FinishReason,
    Message,
    ModerationResult,
    Owner,
    Passage,
    SamplingParams,
    Scores,
    Turn,
    TurnStatus,
    Usage,
)


class Generation(Protocol):
    """One running generation: iterate it to the end; the last chunk has a `finish_reason`.

    Iterating it raises what `LanguageModel.generate` names.
    """

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield chunks in order."""
        ...

    def cancel(self) -> None:
        """Ask the model to stop; iteration then ends with `finish_reason="aborted"`. Safe from any task, twice too."""
        ...


class PromptFormat(Protocol):
    """How a model wants its messages written."""

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Strings that end a reply in this format."""
        ...

    def neutralise(self, text: str) -> str:
        """Return `text` with every role marker of this format broken, so that it cannot forge a turn. Idempotent."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt, ending where the assistant's words begin. Contents are already neutralised."""
        ...


class LanguageModel(Protocol):
    """A language model behind any engine."""

    @property
    def name(self) -> str:
        """What the model is called in answers and metrics."""
        ...

    @property
    def context_window(self) -> int:
        """Tokens of prompt and answer together that the model can hold."""
        ...

    @property
    def format(self) -> PromptFormat:
        """The prompt format the model was tuned on."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a generation could start now.

        After a failure it is false for good where the engine runs here; an upstream that is back is used again.
        """
        ...

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads `text` as, markers of the format included."""
        ...

    def generate(self, prompt: str, sampling: SamplingParams, *, session: str = "") -> Generation:
        """Start generating at once; what is refused is refused here, or when the generation is iterated.

        Args:
            prompt: as `format` renders it.
            sampling: how tokens are chosen; its stop words save steps, the service cuts at them either way.
            session: the same for every turn of a session and no secret, for fair queues and warm caches; "" for none.

        Raises:
            InvalidRequest: the engine cannot take this prompt or these parameters; TooLarge where the prompt leaves no
                room for an answer in `context_window`. An answer ends with "length" where the window does.
            Overloaded: the engine's queue or memory is full.
            Unavailable: this generation failed and others do not: its numbers are none.
            EngineFailed: the engine has stopped, or does not answer.
        """
        ...


class Scorer(Protocol):
    """Scores text and decides nothing. What cannot say returns `unavailable=True` or raises; either is not safe."""

    async def score(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> Scores:
        """Score `text`.

        Args:
            text: what is scored, whole and of any length.
            direction: which side of the turn it is on.
            before: text already released just before it, read for context but not scored alone.
            history: what the user and the assistant said before in turn, oldest first, the user's first; bounded.
        """
        ...


class Moderator(Protocol):
    """Judges text. A check that cannot run returns `unavailable=True` or raises; either counts as not safe."""

    async def check(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> ModerationResult:
        """Judge `text`; see `Scorer.score` for the arguments. The policy may differ by direction."""
        ...


@runtime_checkable
class JudgesScores(Protocol):
    """A moderator that can also judge what was scored before."""

    def judge(self, found: Scores, text: str, *, direction: Direction) -> ModerationResult:
        """Judge `text` by the scores that it has."""
        ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to finish one attempt of one turn."""

    owner: Owner
    session_id: str
    seq: int
    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """What `accept` decided.

    Attributes:
        ticket: to be handed to `finish`; None when `repeat` is set.
        repeat: the finished turn that this request id already has.
        session_id: of the accepted or repeated turn.
    """

    session_id: str
    ticket: Ticket | None = None
    repeat: Turn | None = None


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to be accepted: `pending`, or `blocked` when the message was refused.

    Attributes:
        user: the message; of a blocked one a store keeps the length alone, and compares the text with a repeat's.
        opens_session: the request named no session, and `session_id` was made for it.
        after: the newest number in the session as loaded, 0 where it is not open; spares a store the read. Another
            turn may have come since.
        expires_at: when the session ends, as loaded; epoch seconds.
        opened_at: when the session was opened, as loaded; epoch seconds. No turn goes to another session of its name.
        replaces: the number that this turn stands in for.
    """

    owner: Owner
    session_id: str
    request_id: str
    user: str
    user_length: int
    status: TurnStatus = "pending"
    opens_session: bool = False
    label: str | None = None
    after: int = 0
    expires_at: float | None = None
    opened_at: float | None = None
    replaces: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pending turn ended."""

    status: TurnStatus
    finish_reason: FinishReason
    assistant: str = ""
    label: str | None = None
    usage: Usage = Usage()
    passages: tuple[Passage, ...] = ()


class TurnStore(Protocol):
    """Where turns live. Two writes a turn, accept and finish; each is durable when it returns."""

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest `limit` turns that are not hidden, in order; empty for a caller's own id not open yet.

        A session that has expired is as one that never was.

        Raises:
            NotFound: the id starts with `s-` and names no session of this owner.
            StoreFailed: the store could not be read.
        """
        ...

    async def accept(self, turn: NewTurn) -> Accepted:
        """Give the turn the next number, durably, or recognise it as a repeat.

        A request id that ended aborted, or whose lease has run out, runs again under its old number with the next
        attempt. Request ids are known for `items.REQUEST_S`.

        Raises:
            InvalidRequest: the session has no turn of the number that is to be replaced.
            TooLarge: the message leaves no room for an answer in what a store takes of a turn.
            Conflict: the request id is being answered now, or was used for another message; or everything of the owner
                is being removed.
            NotFound: the session was removed meanwhile, or has expired.
            StoreFailed: the write was not acknowledged.
        """
        ...

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        ...

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended, durably.

        Raises:
            Conflict: another attempt has taken the turn over.
            StoreFailed: the write was not acknowledged.
        """
        ...


@dataclass(frozen=True, slots=True)
class SessionHead:
    """One row of a list of sessions; times are epoch seconds.

    Attributes:
        expires_at: None for one that is kept until it is removed.
        damaged: its own entry cannot be read, so `turns` is 0; what can be read of its turns, `page` gives.
    """

    session_id: str
    turns: int
    created_at: float
    expires_at: float | None = None
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class SessionList:
    """One page of a list of sessions.

    Attributes:
        cursor: to be handed in for the next page; None at the end. Opaque.
    """

    sessions: tuple[SessionHead, ...]
    cursor: str | None = None


# How long an owner whose sessions were all removed is shut out: longer than a turn's deadline or a client's last try
# usually takes. Seconds.
CLOSED_S = 600.0


class SessionArchive(Protocol):
    """What is stored, for those who keep it: reading whole sessions and removing them. Every store has it."""

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """Return the owner's sessions, the one opened last first, at most `limit` of them.

        Raises:
            InvalidRequest: the cursor is not one of this owner's.
            StoreFailed: the store could not be read.
        """
        ...

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return the turns numbered above `after`, oldest first, at most `limit`, hidden ones too; none at the end.

        Damaged turns are left out, and a damaged entry of the session's own keeps no turn from being read.

        Raises:
            NotFound: there is no such session of this owner.
            StoreFailed: the store could not be read.
        """
        ...

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Remove a session with everything in it; harmless where there is none, so a broken-off removal is run again.

        A turn that is being answered then ends with Conflict, and is not stored.

        Raises:
            StoreFailed: the store did not acknowledge; some turns may be gone.
        """
        ...

    async def purge(self, owner: Owner, *, closed_s: float = CLOSED_S) -> int:
        """Remove everything of an owner and return how many sessions that was; harmless to run again.

        Until `closed_s` seconds after the end no turn of this owner is accepted, so that neither one on its way nor a
        re-sent request brings anything back; 0 lets them in as soon as everything is gone.

        Raises:
            StoreFailed: the store did not acknowledge; the owner stays shut out, and running it again goes on.
        """
        ...

    async def restore(self, owner: Owner, session_id: str, turns: Sequence[Turn], *, expires_at: float | None) -> None:
        """Write a session as `page` gave it; a broken-off one cannot be read, and running it again goes on.

        Args:
            turns: all of its turns, numbered from 1 without holes, none of them pending.
            expires_at: when it ends, epoch seconds.

        Raises:
            InvalidRequest: the turns are not those of a session.
            Conflict: there is such a session, or one of the request ids is in use.
            StoreFailed: the store did not acknowledge.
        """
        ...


class SessionStore(TurnStore, SessionArchive, Protocol):
    """What every store is: where turns live, and what reads and removes whole sessions."""
