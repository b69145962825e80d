"""Continuous batching of torch models: who runs, who waits, what is kept. On rank 0; a Runner has the tensors.

Every pass of the loop gives each running row one token, and reads one piece of the prompt that is being filled. A row
joins when its prompt is read and leaves when it ends, whatever the others do (docs/decisions/0006).
"""

import base64
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from chatkit.models.admission import ROW_BLOCK
from chatkit.models.chat_prefixes import Prefixes
from chatkit.models.chat_runner import Runner
from chatkit.models.chat_sampling import Sampler, choose
from chatkit.models.chat_stopping import RowStop

# Vectors of one line. Bytes.
_VECTOR_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler may use.

    Attributes:
        cache_tokens: tokens whose keys and values fit the memory set aside for them, kept rows included.
        window: tokens of prompt and answer that the model holds.
        piece: tokens of a prompt that are read between two steps, and of texts for vectors, padding included.
    """

    cache_tokens: int
    window: int
    max_running: int
    piece: int
    keep_prefixes: bool = True


@dataclass(slots=True)
class Row:
    """One request: its tokens, and what decides about the next."""

    number: int
    ids: list[int]
    room: int
    eos: frozenset[int]
    sampler: Sampler
    stop: RowStop
    made: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer at most, in whole blocks."""
        return -(-(len(self.ids) + self.room) // ROW_BLOCK) * ROW_BLOCK

    def take(self, token: int) -> str | None:
        """Add a token; return why the row is over, if it is."""
        self.made.append(token)
        self.sampler.take(token)
        if token in self.eos or self.stop.hit(token):
            return "stop"
        return "length" if len(self.made) >= self.room else None


class Scheduler:
    """The rows of one model.

    Args:
        send: takes an event for the service's side.
    """

    def __init__(self, runner: Runner, tokenizer: Any, limits: Limits, send: Callable[[dict[str, Any]], None]) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._limits = limits
        self._send = send
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._filling: Row | None = None
        self._prefixes = Prefixes()
        self._texts: dict[int, Iterator[None]] = {}
        # With other ranks in step, a pass that failed here has left them in the middle of theirs.
        self._survivable = () if runner.announce else (torch.OutOfMemoryError, MemoryError)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._running or self._filling or self._texts)

    def apply(self, command: dict[str, Any]) -> None:
        """Take a command of the service's side; `engine` lists them."""
        ids = [command.get("ids", [])] if "add" in command else command.get("ids", [])
        odd = next((i for row in ids for i in row if not 0 <= i < self._runner.vocabulary), None)
        if odd is not None:
            text = f"token {odd} is none of the model's {self._runner.vocabulary}; copy the model's own tokenizer.json"
            self._fail(command["add" if "add" in command else "embed"], "invalid", text)
        elif "add" in command:
            self._add(command["add"], command["ids"], command["config"])
        elif "embed" in command:
            self._texts[command["embed"]] = self._embed(command["embed"], command["ids"])
        else:
            self._cancel(command["cancel"])

    def _add(self, number: int, ids: list[int], config: dict[str, Any]) -> None:
        room = min(config["max_new_tokens"], self._limits.window - len(ids))
        if not ids:
            return self._fail(number, "invalid", "the prompt is empty; send some text")
        if room < 1:
            text = f"the prompt has {len(ids)} tokens, the model holds {self._limits.window} with the answer; send less"
            return self._fail(number, "invalid", text)
        stop = RowStop(self._tokenizer, config["stop_words"])
        row = Row(number, ids, room, frozenset(config["eos_ids"]), Sampler.of(config, ids), stop)
        if row.length > self._limits.cache_tokens:
            text = (
                f"prompt and answer may take {row.length} tokens of key-value cache, there are "
                f"{self._limits.cache_tokens}; raise CHATKIT_KV_CACHE_GB or send less"
            )
            return self._fail(number, "overloaded", text)
        self._waiting.append(row)
        return None

    def _cancel(self, number: int) -> None:
        self._texts.pop(number, None)
        for row in [*self._running, *([self._filling] if self._filling else [])]:
            if row.number == number:  # of one that is still being filled nobody has seen whether its numbers are any
                return self._end(row, keep=row is not self._filling)
        self._waiting = deque(row for row in self._waiting if row.number != number)
        return None

    def work(self) -> None:
        """Do one step: a token for every running row, a piece of a prompt, a batch of texts."""
        events: list[list[Any]] = []
        read = 0
        if self._running:
            self._step(events)
        while read < self._limits.piece and (self._filling or self._admit()):
            read += self._fill(self._limits.piece - read, events)
        if events or read:
            self._send({"step": events, "read": read})
        if self._texts:
            number, texts = next(iter(self._texts.items()))
            if next(texts, self) is self:
                del self._texts[number]

    def _step(self, events: list[list[Any]]) -> None:
        try:
            logits = self._runner.step([row.made[-1] for row in self._running])
        except self._survivable:
            self._drop_prefixes()
            row = self._running[-1]
            self._end(row, keep=False)
            return self._fail(row.number, "overloaded", "the engine is out of memory; try again, or send less")
        chosen = choose(logits, [row.sampler for row in self._running])
        for row, token in zip(list(self._running), chosen, strict=True):
            self._take(row, token, events)
        return None

    def _take(self, row: Row, token: int | None, events: list[list[Any]]) -> None:
        if token is None:
            self._end(row, keep=False)
            text = "the model computed no numbers (NaN) for this prompt; another dtype (CHATKIT_DTYPE) may help"
            return self._fail(row.number, "unavailable", text)
        reason = row.take(token)
        events.append([row.number, [token], reason])
        if reason:
            self._end(row)
        return None

    def _admit(self) -> bool:
        """Give the next request a slot, if there is room; true when one is being filled."""
        if not self._waiting or len(self._running) >= self._limits.max_running:
            return False
        row = self._waiting[0]
        key, length = self._prefixes.find(row.ids) if self._limits.keep_prefixes else (None, 0)
        try:
            if not self._make_room(row, key):
                return False
            self._runner.begin(*(key, length) if key in self._prefixes else (None, 0))
        except self._survivable:
            self._drop_prefixes()
            self._waiting.popleft()
            self._fail(row.number, "overloaded", "the engine is out of memory; try again, or send less")
            return bool(self._waiting) and self._admit()
        self._filling = self._waiting.popleft()
        return True

    def _make_room(self, row: Row, spare: int | None) -> bool:
        """Grow the cache for one row more where it must; let kept rows go for it, `spare` last of all."""
        slots = len(self._running) + 1
        capacity = max(other.length for other in [*self._running, row])
        cache, limit = self._runner.cache, self._limits.cache_tokens
        if slots * capacity > limit:
            return False
        if slots > cache.slots or capacity > cache.capacity:
            grown = min(self._limits.max_running, 1 << (slots - 1).bit_length()), max(capacity, cache.capacity)
            if grown[0] * grown[1] * 2 > limit:
                grown = slots, capacity
            for spared in (spare, None):
                self._shrink_kept(limit - grown[0] * grown[1], spared)
            self._runner.resize(*grown)
        return True

    def _shrink_kept(self, most: int, spare: int | None = None) -> None:
        while self._prefixes.tokens > most and (key := self._prefixes.oldest(spare)) is not None:
            self._forget(key)

    def _forget(self, key: int) -> None:
        self._prefixes.remove(key)
        self._runner.forget(key)

    def _drop_prefixes(self) -> None:
        self._shrink_kept(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fill(self, most: int, events: list[list[Any]]) -> int:
        """Read a piece of the prompt being filled; return its tokens. The last piece gives the answer's first token."""
        row = self._filling
        if row is None:
            raise AssertionError("there is a row to fill")
        done = self._runner.lengths[-1]
        piece = row.ids[done : done + most]
        try:
            logits = self._runner.fill(piece)
        except self._survivable:
            self._drop_prefixes()
            self._end(row, keep=False)
            self._fail(row.number, "overloaded", "the engine is out of memory for this prompt; send less")
            return len(piece)
        if done + len(piece) == len(row.ids):
            self._filling = None
            self._running.append(row)
            (token,) = choose(logits[None], [row.sampler])
            self._take(row, token, events)
        return len(piece)

    def _end(self, row: Row, *, keep: bool = True) -> None:
        """Take a row out; keep its keys and values for a prompt that starts alike, where there is room."""
        running = len(self._running)
        slot = running if row is self._filling else self._running.index(row)
        key = None
        if keep and self._limits.keep_prefixes:
            key = self._keep((row.ids + row.made)[: self._runner.lengths[slot]])
        try:
            self._runner.end(slot, running, key, not keep)
        except self._survivable:  # there was no memory for a copy, and nothing else was done
            self._drop_prefixes()
            self._runner.end(slot, running, None, not keep)
        if row is self._filling:
            self._filling = None
        else:
            last = self._running.pop()
            if last is not row:
                self._running[slot] = last
        cache = self._runner.cache
        if not self._runner.lengths and cache.slots * cache.capacity * 2 > self._limits.cache_tokens:
            self._runner.resize(0, 0)  # or nothing could be kept any more

    def _keep(self, ids: list[int]) -> int | None:
        cache = self._runner.cache
        room = self._limits.cache_tokens - cache.slots * cache.capacity
        if len(ids) > room:
            return None
        key, needless = self._prefixes.add(ids)
        for other in needless:
            self._runner.forget(other)
        self._shrink_kept(room, key)
        return key

    def _embed(self, number: int, texts: list[list[int]]) -> Iterator[None]:
        """Make the vectors of texts, a batch of like lengths a pass, and send each as it is made.

        A pass is no longer than a piece of a prompt, since streams wait for it; only a single text may be.
        """
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        try:
            while order:
                longest = len(texts[order[-1]])
                batch = order[-max(1, self._limits.piece // longest) :]
                del order[-len(batch) :]
                made = self._runner.embed([texts[index] for index in batch]).cpu().numpy()
                self._send_vectors(number, batch, made)
                yield
        except self._survivable:
            self._drop_prefixes()
            return self._fail(number, "overloaded", "the engine is out of memory for these texts; send fewer")
        return None

    def _send_vectors(self, number: int, texts: list[int], made: Any) -> None:
        """Send the rows of some texts, in lines that are never long."""
        most = max(1, _VECTOR_BYTES // made[0].nbytes)
        for first in range(0, len(texts), most):
            raw = base64.b64encode(made[first : first + most].tobytes()).decode()
            self._send({"vectors": number, "texts": texts[first : first + most], "float32": raw})

    def _fail(self, number: int, kind: str, message: str) -> None:
        self._send({"failed": number, "kind": kind, "message": message})
