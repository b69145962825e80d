"""Fakes for every seam, for chatkit's tests and yours: scripted model, keyword moderator, passage list, memory.

service = OpenChatKitService(ScriptedModel(["Hello ", "there."]), KeywordModerator(["bomb"]), MemoryStore())
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from chatkit.conversation import Conversation
from chatkit.errors import NotFound
from chatkit.prompts import OpenChatKitFormat
from chatkit.protocols import Accepted, NewTurn, Outcome, Ticket
from chatkit.sessions import items
from chatkit.types import LABELS, Chunk, Direction, ModerationResult, Owner, Passage, SamplingParams, Turn


class ScriptedGeneration:
    """Plays a list of pieces; one piece is one token."""

    def __init__(
        self, pieces: Sequence[str | Exception], sampling: SamplingParams, delay: float, model: "ScriptedModel"
    ) -> None:
        self._pieces = pieces
        self._limit = sampling.max_new_tokens
        self._delay = delay
        self._model = model
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        """Stop before the next piece."""
        self._cancelled.set()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield the pieces; an exception among them is raised in its place."""
        for at, piece in enumerate(self._pieces):
            if isinstance(piece, Exception):
                raise piece
            if at == self._limit:
                yield Chunk("", 0, "length", len(self._model.prompts[-1].split()))
                return
            if self._delay:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._cancelled.wait(), self._delay)
            if self._cancelled.is_set():
                yield Chunk("", 0, "aborted", 1)
                return
            self._model.tokens_made += 1
            yield Chunk(piece, 1)
        yield Chunk("", 0, "aborted" if self._cancelled.is_set() else "stop", len(self._model.prompts[-1].split()))


class ScriptedModel:
    """A language model that says what it is told.

    Args:
        replies: pieces of each reply, in order; the last is said again when they run out.
        delay: seconds before each piece.

    Attributes:
        prompts: every prompt it was given.
    """

    name = "scripted"
    context_window = 2048
    format = OpenChatKitFormat()

    def __init__(self, *replies: Iterable[str | Exception], delay: float = 0.0) -> None:
        self._replies: deque[list[str | Exception]] = deque(list(reply) for reply in replies or (["Hello."],))
        self._delay = delay
        self.prompts: list[str] = []
        self.tokens_made = 0
        self.ready = True

    def count_tokens(self, text: str) -> int:
        """Count words."""
        return len(text.split())

    def generate(self, prompt: str, sampling: SamplingParams) -> ScriptedGeneration:
        """Start the next reply."""
        self.prompts.append(prompt)
        pieces = self._replies.popleft() if len(self._replies) > 1 else self._replies[0]
        return ScriptedGeneration(pieces, sampling, self._delay, self)


class KeywordModerator:
    """Flags text that holds one of the words; `broken` makes every check raise it.

    Attributes:
        checked: every text it judged, with its direction.
    """

    def __init__(self, words: Sequence[str] = (), *, delay: float = 0.0, broken: Exception | None = None) -> None:
        self._words = tuple(words)
        self._delay = delay
        self.broken = broken
        self.checked: list[tuple[Direction, str]] = []

    async def check(self, text: str, *, direction: Direction, before: str = "") -> ModerationResult:
        """Judge by keyword, `before` included."""
        if self._delay:
            await asyncio.sleep(self._delay)
        if self.broken:
            raise self.broken
        self.checked.append((direction, text))
        if any(word in before + text for word in self._words):
            return ModerationResult(True, "refuse", LABELS[-1], "keyword", {"keyword": 1.0}, model="keywords")
        return ModerationResult(False, scores={"keyword": 0.0}, model="keywords")


class ListRetriever:
    """Returns passages that share a word with the query, in the order given."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = tuple(passages)
        self.queries: list[str] = []

    async def search(self, query: str, *, k: int, index: str | None = None) -> tuple[Passage, ...]:
        """Return at most `k` passages; there is one index, without a name."""
        if index is not None:
            raise NotFound(f"there is no index {index!r}, expected none to be named")
        self.queries.append(query)
        words = set(query.lower().split())
        return tuple(p for p in self._passages if words & set(p.text.lower().split()))[:k]


class MemoryStore:
    """A TurnStore that forgets everything with the process; for tests and for trying things out."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._heads: dict[str, int] = {}
        self._turns: dict[tuple[str, int], tuple[dict[str, object], float | None]] = {}
        self._requests: dict[str, tuple[str, int]] = {}

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns."""
        key = items.session_key(owner, session_id)
        if key not in self._heads:
            if session_id.startswith("s-"):
                raise items.unknown_session(session_id)
            return Conversation()
        newest = self._heads[key]
        kept = range(max(1, newest - limit + 1), newest + 1)
        found = (self._read(key, seq) for seq in kept)
        return Conversation(tuple(items.turn_of(item, expired=expired) for item, expired in found))

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn, or recognise its request id."""
        request = items.request_key(turn.owner, turn.request_id)
        if request in self._requests:
            return self._accept_again(turn, *self._requests[request])
        key = items.session_key(turn.owner, turn.session_id)
        if key not in self._heads and turn.session_id.startswith("s-") and not turn.opens_session:
            raise items.unknown_session(turn.session_id)
        seq = self._heads.get(key, 0) + 1
        self._heads[key] = seq
        self._requests[request] = (turn.session_id, seq)
        self._write(key, items.new_item(turn, seq, self._clock()))
        return Accepted(turn.session_id, Ticket(turn.owner, turn.session_id, seq, turn.request_id, 1))

    def _accept_again(self, turn: NewTurn, session_id: str, seq: int) -> Accepted:
        key = items.session_key(turn.owner, session_id)
        item, expired = self._read(key, seq)
        stored = items.answer_again(turn, session_id, item, expired=expired)
        if stored.status != "aborted":
            return Accepted(session_id, repeat=stored)
        self._write(key, items.new_item(turn, seq, self._clock()) | {"attempt": stored.attempt + 1})
        return Accepted(session_id, Ticket(turn.owner, session_id, seq, turn.request_id, stored.attempt + 1))

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        self._write(items.session_key(ticket.owner, ticket.session_id), self._owned(ticket))

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended."""
        self._write(items.session_key(ticket.owner, ticket.session_id), items.ended(self._owned(ticket), outcome))

    def _owned(self, ticket: Ticket) -> dict[str, object]:
        item, _ = self._read(items.session_key(ticket.owner, ticket.session_id), ticket.seq)
        return items.check_owned(ticket, item)

    def _read(self, key: str, seq: int) -> tuple[dict[str, object], bool]:
        item, lease = self._turns[key, seq]
        return item, lease is not None and lease < self._clock()

    def _write(self, key: str, item: dict[str, object]) -> None:
        pending = item["status"] == "pending"
        seq = item["seq"]
        if not isinstance(seq, int):
            raise AssertionError("an item's seq is a number")
        self._turns[key, seq] = (item, self._clock() + items.LEASE_S if pending else None)


def turn_with(seq: int, user: str, assistant: str) -> Turn:
    """Return a complete turn, for tests of prompts and conversations."""
    return Turn(seq, f"request-{seq}", 1, "complete", user, assistant, "stop", user_length=len(user))
