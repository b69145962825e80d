"""Fakes for every seam, for chatkit's tests and yours: scripted model, keyword moderator, passage list, memory.

service = OpenChatKitService(ScriptedModel(["Hello ", "there."]), KeywordModerator(["bomb"]), MemoryStore())
"""

import asyncio
import contextlib
import copy
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from chatkit.conversation import Conversation
from chatkit.errors import ChatkitError, InvalidRequest, NotFound
from chatkit.prompt_formats import OpenChatKitFormat
from chatkit.protocols import CLOSED_S, Accepted, NewTurn, Outcome, SessionHead, SessionList, Ticket
from chatkit.sessions import items, records
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

    async def check(
        self, text: str, *, direction: Direction, before: str = "", history: tuple[str, ...] = ()
    ) -> ModerationResult:
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

    async def search(
        self, query: str, *, k: int, index: str | None = None, where: Mapping[str, str] | None = None
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages; there is one index, without a name or filters."""
        if where:
            raise InvalidRequest(f"where names {min(where)!r}, expected no filter: this retriever has none")
        if index is not None:
            raise NotFound(f"there is no index {index!r}, expected none to be named")
        self.queries.append(query)
        words = set(query.lower().split())
        return tuple(p for p in self._passages if words & set(p.text.lower().split()))[:k]


class MemoryStore:
    """A TurnStore and SessionArchive that forgets everything with the process; for tests and for trying things out."""

    def __init__(self, *, clock: Callable[[], float] = time.time, retention_s: float | None = None) -> None:
        self._clock = clock
        self._retention_s = retention_s
        self._kept = _Kept()

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns."""
        return records.load(self._kept, owner, session_id, limit, self._clock())

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn, or recognise its request id."""
        return records.accept(self._kept, turn, self._clock(), self._retention_s)

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        records.renew(self._kept, ticket, self._clock())

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended."""
        records.finish(self._kept, ticket, outcome, self._clock())

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions, the one opened last first."""
        mine = sorted(self._heads(owner), key=_opened, reverse=True)
        if cursor is not None:
            position = items.position_of(owner, cursor)
            mine = [head for head in mine if _opened(head) < position]
        return SessionList(tuple(mine[:limit]), items.cursor_of(owner, mine[limit - 1]) if mine[limit:] else None)

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first."""
        return records.page(self._kept, owner, session_id, limit, after, self._clock())

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Forget a session."""
        records.delete(self._kept, owner, session_id)

    async def withdraw(self, ticket: Ticket) -> bool:
        """Remove a session that has the ticket's turn alone, where that waits to be finished; whether it did."""
        return records.withdraw(self._kept, ticket, self._clock())

    async def purge(self, owner: Owner, *, closed_s: float = CLOSED_S) -> int:
        """Forget everything of an owner."""
        removed = len(self._heads(owner))
        for partition in [p for p in self._kept.partitions if p.startswith(f"{items.owner_key(owner)}#")]:
            self._kept.drop(partition)
        if closed_s > 0:
            mark = items.new_mark(self._clock(), closed_s)
            self._kept.put(items.owner_mark_key(owner), items.OWNER, mark)
        return removed

    async def restore(self, owner: Owner, session_id: str, turns: Sequence[Turn], *, expires_at: float | None) -> None:
        """Write a session as `page` gave it."""
        before = copy.deepcopy(self._kept.partitions)
        try:
            records.restore(self._kept, owner, session_id, turns, expires_at, self._clock())
        except ChatkitError:
            self._kept.partitions = before
            raise

    def close(self) -> None:
        """Nothing is held."""

    def _heads(self, owner: Owner) -> list[SessionHead]:
        start, now = items.session_key(owner, ""), self._clock()
        heads = {p: rows.get(items.META) for p, rows in self._kept.partitions.items() if p.startswith(start)}
        kept = {p: head for p, head in heads.items() if head is not None and not items.is_gone(head, now)}
        return [records.read_head(p, head, head.get("created_at"), head.get("expires_at")) for p, head in kept.items()]


class _Kept:
    """Items in memory; see sessions.records.Records."""

    def __init__(self) -> None:
        self.partitions: dict[str, dict[str, dict[str, Any]]] = {}

    def get(self, partition: str, key: str) -> dict[str, Any] | None:
        return self.partitions.get(partition, {}).get(key)

    def put(self, partition: str, key: str, item: dict[str, Any]) -> None:
        self.partitions.setdefault(partition, {})[key] = item

    def drop(self, partition: str) -> None:
        self.partitions.pop(partition, None)

    def rows(self, partition: str, *, after: str | None = None) -> Iterator[tuple[str, dict[str, Any] | None]]:
        kept = self.partitions.get(partition, {})
        for key in sorted(kept, reverse=after is None):
            if after is None or key > after:
                yield key, kept[key]


def _opened(head: SessionHead) -> tuple[float, str]:
    return head.created_at, head.session_id


def turn_with(seq: int, user: str, assistant: str) -> Turn:
    """Return a complete turn, for tests of prompts and conversations."""
    return Turn(seq, f"request-{seq}", 1, "complete", user, assistant, "stop", user_length=len(user))
