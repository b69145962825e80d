"""Who may start: what the key-value cache has room for; the others wait, and their sessions take turns.

Room is reckoned at the start, prompt and longest answer together, so that what runs is never thrown out of the cache
half-way. Waiting sessions take turns, and the one whose turn it is waits until there is room: nobody overtakes, or a
large prompt would wait for ever behind small ones.
"""

from collections import deque
from dataclasses import dataclass, field

from chatkit.errors import Overloaded, TooLarge

# Tokens that a row in the cache of the `transformers` engine is a multiple of, so that it is not made anew every time.
ROW_BLOCK = 64


@dataclass(slots=True)
class Admission:
    """The running and the waiting generations of one engine, by number.

    Attributes:
        most_running: generations that may run at once.
        most_waiting: generations that may wait.
        tokens: what the cache holds; None where the engine itself sees to it.
        block: tokens that the cache hands out at a time.
        alike: every generation takes as much of the cache as the longest does.
    """

    most_running: int
    most_waiting: int = 0
    tokens: int | None = None
    block: int = 32
    alike: bool = False
    _running: dict[int, int] = field(default_factory=dict)
    _needs: dict[int, int] = field(default_factory=dict)
    _queues: dict[str, deque[int]] = field(default_factory=dict)

    def ask(self, number: int, *, session: str = "", tokens: int = 0) -> int | None:
        """Let a generation wait; `admit` says when it may start.

        When the queue is full, the session with the most in it gives up its newest, so that one caller's flood does
        not shut out the others.

        Args:
            number: names the generation.
            session: turns of one session share it; "" is a session of its own.
            tokens: of the prompt and the longest answer.

        Returns:
            The number of the one that had to go for it.

        Raises:
            TooLarge: the cache could not hold it if it were alone.
            Overloaded: the queue is full.
        """
        if self.tokens is not None and self._rounded(tokens) > self.tokens:
            raise TooLarge(
                f"prompt and answer may take {tokens} tokens, the engine's key-value cache holds {self.tokens}; raise "
                "kv_cache_gb (CHATKIT_KV_CACHE_GB), send a shorter message or ask for fewer max_new_tokens"
            )
        key = session or f"#{number}"
        gone = None
        if len(self._running) + len(self._needs) >= self.most_running + self.most_waiting:
            gone = self._newest_of_the_longest(than=len(self._queues.get(key, ())) + 1)
            self.leave(gone)
        self._needs[number] = self._rounded(tokens)
        self._queues.setdefault(key, deque()).append(number)
        return gone

    def admit(self) -> list[int]:
        """Return those that may start now, in order; they run until they `leave`."""
        admitted = []
        while self._queues and len(self._running) < self.most_running:
            key, queue = next(iter(self._queues.items()))
            need = self._needs[queue[0]]
            if self.tokens is not None and self._taken([*self._running.values(), need]) > self.tokens:
                break
            number = queue.popleft()
            del self._queues[key]
            if queue:
                self._queues[key] = queue  # to the back
            self._running[number] = self._needs.pop(number)
            admitted.append(number)
        return admitted

    def leave(self, number: int) -> None:
        """Forget one that has ended, or that no longer wants to start."""
        if self._running.pop(number, None) is None and self._needs.pop(number, None) is not None:
            key, queue = next(item for item in self._queues.items() if number in item[1])
            queue.remove(number)
            if not queue:
                del self._queues[key]

    def clear(self) -> None:
        """Forget all."""
        self._running.clear()
        self._needs.clear()
        self._queues.clear()

    def _newest_of_the_longest(self, *, than: int) -> int:
        longest = max(self._queues.values(), key=len, default=deque[int]())
        if len(longest) <= than:
            raise Overloaded(
                f"{len(self._running) + len(self._needs)} generations are running or waiting, the most this server "
                "takes; try again shortly"
            )
        return longest[-1]

    def _taken(self, needs: list[int]) -> int:
        return len(needs) * max(needs) if self.alike else sum(needs)

    def _rounded(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block
