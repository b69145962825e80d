"""The store of turns that are not stored: the caller keeps the conversation and sends it along."""

from collections.abc import Sequence

from chatkit.conversation import Conversation, turns_of
from chatkit.protocols import Accepted, NewTurn, Outcome, Ticket
from chatkit.types import Message, Owner


class Unstored:
    """A TurnStore for one request: its history is what the caller sent, and what is finished is forgotten.

    So a turn takes the same path whether it is stored or not.
    """

    def __init__(self, history: Sequence[Message]) -> None:
        self._turns = turns_of(history)

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns of what the caller sent."""
        return Conversation(self._turns[-limit:])

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn after those that were sent."""
        return Accepted(turn.session_id, Ticket(turn.owner, turn.session_id, turn.after + 1, turn.request_id, 1))

    async def renew(self, ticket: Ticket) -> None:
        """Do nothing: nobody else can take the turn over."""

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Forget the turn."""
