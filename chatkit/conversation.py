"""A conversation: turns in order. It knows nothing of prompts or storage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from chatkit.types import Message, Role, Turn


@dataclass(frozen=True, slots=True)
class Conversation:
    """The newest turns of one session, oldest first.

    Attributes:
        turns: in order of `seq`, those that another one replaced left out; so may be the oldest of a long session.
        expires_at: when the session ends, epoch seconds; None where it is not open, or is kept until removed.
        left_out: how many numbers of the session are below those of `turns`, where not all of them are held.
        total: how many numbers the session has given, those of damaged turns too; 0 where a store does not say.
        opened_at: when the session was opened, epoch seconds; tells it from another that has its name later.
    """

    turns: tuple[Turn, ...] = field(default=())
    expires_at: float | None = None
    left_out: int = 0
    total: int = 0
    opened_at: float | None = None

    def __iter__(self) -> Iterator[Turn]:
        """Iterate over the turns, oldest first."""
        return iter(self.turns)

    def __len__(self) -> int:
        """Return how many turns are held."""
        return len(self.turns)

    @property
    def newest(self) -> int:
        """Number of the newest turn; 0 where there is none."""
        return self.turns[-1].seq if self.turns else 0

    def in_blocks(self, limit: int) -> "Conversation":
        """Return these turns, loaded as the newest `limit`, without those before the first whole block of numbers.

        A block is a quarter of the limit. So the first turn stays the same one while a block of others follows, and
        with it the beginning of the prompts (DESIGN §2.10); without this it would be another one at each turn.
        """
        if len(self.turns) < limit or self.turns[0].seq == 1:
            return self
        block = max(1, limit // 4)
        first = -(-(self.turns[0].seq - 1) // block) * block + 1
        kept = tuple(turn for turn in self.turns if turn.seq >= first)
        return replace(self, turns=kept, left_out=kept[0].seq - 1)

    def context(self, *, before: int | None = None) -> tuple[Turn, ...]:
        """Return the turns a model may see: complete ones numbered below `before`.

        Pending, aborted and blocked turns are no context: the first two have no answer, the last no text.
        """
        return tuple(t for t in self.turns if t.status == "complete" and (before is None or t.seq < before))


class Newest:
    """Collects the newest turns of a session that are not hidden. Hand them in the newest first, until it is `full`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: list[Turn] = []
        self._below: int | None = None  # turns from this number on are hidden

    @property
    def full(self) -> bool:
        """Whether no more turns are wanted."""
        return len(self._taken) >= self._limit

    def take(self, turn: Turn) -> None:
        """Take a turn, older than those before it; a replaced one is left out."""
        if not self.full and (self._below is None or turn.seq < self._below):
            self._taken.append(turn)
        if turn.replaces is not None and turn.status in ("pending", "complete"):
            self._below = turn.replaces if self._below is None else min(self._below, turn.replaces)

    def conversation(
        self, expires_at: float | None = None, total: object = 0, opened_at: object = None
    ) -> Conversation:
        """Return what was taken, oldest first; a `total` or `opened_at` that is damaged counts as none."""
        known = total if type(total) is int else 0
        opened = opened_at if isinstance(opened_at, int | float) else None
        return Conversation(tuple(reversed(self._taken)), expires_at, total=known, opened_at=opened)


def messages(turn: Turn) -> tuple[Message, ...]:
    """Return a complete turn as its user and assistant messages; one that nobody asked for is the latter alone."""
    answer = Message("assistant", turn.assistant)
    return (Message("user", turn.user), answer) if turn.user else (answer,)


def turns_of(history: Sequence[Message]) -> tuple[Turn, ...]:
    """Return messages that somebody else kept as complete turns; neighbours of one side count as one message."""
    sides: list[tuple[Role, str]] = []
    for message in history:
        if sides and sides[-1][0] == message.role:
            sides[-1] = (message.role, f"{sides[-1][1]}\n\n{message.content}")
        else:
            sides.append((message.role, message.content))
    turns: list[Turn] = []
    user = ""
    for role, text in sides:
        if role == "user":
            user = text
        else:
            seq = len(turns) + 1
            turns.append(Turn(seq, f"kept-{seq}", 1, "complete", user, text, "stop", user_length=len(user)))
            user = ""
    return tuple(turns)
