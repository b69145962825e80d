"""A conversation: turns in order. It knows nothing of prompts or storage."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from chatkit.types import Message, Turn


@dataclass(frozen=True, slots=True)
class Conversation:
    """The newest turns of one session, oldest first.

    Attributes:
        turns: in order of `seq`; the oldest ones of a long session may be left out.
    """

    turns: tuple[Turn, ...] = field(default=())

    def __iter__(self) -> Iterator[Turn]:
        """Iterate over the turns, oldest first."""
        return iter(self.turns)

    def __len__(self) -> int:
        """Return how many turns are held."""
        return len(self.turns)

    def context(self, *, before: int | None = None) -> tuple[Turn, ...]:
        """Return the turns a model may see: complete ones numbered below `before`.

        Pending, aborted and blocked turns are no context: the first two have no answer, the last no text.
        """
        return tuple(t for t in self.turns if t.status == "complete" and (before is None or t.seq < before))


def messages(turn: Turn) -> tuple[Message, Message]:
    """Return a complete turn as its user and assistant messages."""
    return Message("user", turn.user), Message("assistant", turn.assistant)
