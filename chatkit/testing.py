"""Fakes for every seam, for chatkit's tests and yours: scripted model, keyword moderator, passage list, memory.

service = OpenChatKitService(ScriptedModel(["Hello ", "there."]), KeywordModerator(["bomb"]), MemoryStore())
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from chatkit.conversation import Conversation
from chatkit.errors import NotFound
from chatkit.prompt_formats import OpenChatKitFormat
from chatkit.protocols import Accepted, NewTurn, Outcome, SessionHead, SessionList, Ticket
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

    def generate(self, prompt: str, sampling: SamplingParams, *, session: str = "") -> ScriptedGeneration:
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
    """A TurnStore and SessionArchive that forgets everything with the process; for tests and for trying things out."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._heads: dict[str, SessionHead] = {}
        self._turns: dict[str, dict[int, tuple[dict[str, Any], float | None]]] = {}
        self._requests: dict[str, tuple[str, int]] = {}

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns."""
        key = items.session_key(owner, session_id)
        if key not in self._heads:
            if session_id.startswith("s-"):
                raise items.unknown_session(session_id)
            return Conversation()
        newest = self._heads[key].turns
        return Conversation(tuple(self._turn(key, seq) for seq in range(max(1, newest - limit + 1), newest + 1)))

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn, or recognise its request id."""
        request = items.request_key(turn.owner, turn.request_id)
        if request in self._requests:
            return self._accept_again(turn, *self._requests[request])
        key, now = items.session_key(turn.owner, turn.session_id), self._clock()
        if key not in self._heads:
            items.check_may_open(turn)
            self._heads[key] = SessionHead(turn.session_id, 0, round(now, 3))
        seq = self._heads[key].turns + 1
        self._heads[key] = replace(self._heads[key], turns=seq)
        self._requests[request] = (turn.session_id, seq)
        self._write(key, items.new_item(turn, seq, now))
        return Accepted(turn.session_id, Ticket(turn.owner, turn.session_id, seq, turn.request_id, 1))

    def _accept_again(self, turn: NewTurn, session_id: str, seq: int) -> Accepted:
        key = items.session_key(turn.owner, session_id)
        item, lease = self._turns[key][seq]
        stored = items.answer_again(turn, session_id, item, expired=lease is not None and lease < self._clock())
        if stored.status != "aborted":
            return Accepted(session_id, repeat=stored)
        attempt = stored.attempt + 1
        self._write(key, items.new_item(turn, seq, stored.created_at) | {"attempt": attempt})
        return Accepted(session_id, Ticket(turn.owner, session_id, seq, turn.request_id, attempt))

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        self._write(items.session_key(ticket.owner, ticket.session_id), self._owned(ticket))

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended."""
        self._write(items.session_key(ticket.owner, ticket.session_id), items.ended(self._owned(ticket), outcome))

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions, the one opened last first."""
        mine = [head for key, head in self._heads.items() if key == items.session_key(owner, head.session_id)]
        mine.sort(key=_opened, reverse=True)
        if cursor is not None:
            position = items.position_of(owner, cursor)
            mine = [head for head in mine if _opened(head) < position]
        return SessionList(tuple(mine[:limit]), items.cursor_of(owner, mine[limit - 1]) if mine[limit:] else None)

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first."""
        key = items.session_key(owner, session_id)
        if key not in self._heads:
            raise items.unknown_session(session_id)
        return tuple(self._turn(key, seq) for seq in sorted(self._turns[key]) if seq > after)[:limit]

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Forget a session."""
        key = items.session_key(owner, session_id)
        self._heads.pop(key, None)
        for item, _ in self._turns.pop(key, {}).values():
            self._requests.pop(items.request_key(owner, item["request_id"]), None)

    def close(self) -> None:
        """Nothing is held."""

    def _owned(self, ticket: Ticket) -> dict[str, Any]:
        turns = self._turns.get(items.session_key(ticket.owner, ticket.session_id), {})
        return items.check_owned(ticket, turns.get(ticket.seq, (None, None))[0])

    def _turn(self, key: str, seq: int) -> Turn:
        item, lease = self._turns[key][seq]
        return items.turn_of(item, expired=lease is not None and lease < self._clock())

    def _write(self, key: str, item: dict[str, Any]) -> None:
        pending = item["status"] == "pending"
        lease = self._clock() + items.LEASE_S if pending else None
        self._turns.setdefault(key, {})[item["seq"]] = (item, lease)


def _opened(head: SessionHead) -> tuple[float, str]:
    return head.created_at, head.session_id


def turn_with(seq: int, user: str, assistant: str) -> Turn:
    """Return a complete turn, for tests of prompts and conversations."""
    return Turn(seq, f"request-{seq}", 1, "complete", user, assistant, "stop", user_length=len(user))
