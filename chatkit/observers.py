"""Who is told what a service does, and never what was said: the seam of metrics."""

from typing import Literal, Protocol

from chatkit.errors import Conflict, InvalidRequest, NotFound
from chatkit.types import Direction, Done, Error, Event, FinishReason, Reply, TurnStarted

# How a turn ended. Whatever the answer was, a turn whose message or answer could not be checked is "unavailable": it
# is no success. "replayed" is a repeat that got what was stored, "rejected" a request that no turn can be made of,
# "error" any other that ended without a stored result.
TurnEnd = Literal[FinishReason, "unavailable", "replayed", "rejected", "error"]
_REJECTED = (InvalidRequest, NotFound, Conflict)


class Observer(Protocol):
    """Counts, or does what it likes; called in the event loop, so it may not wait. What it raises ends the turn."""

    def checked(self, direction: Direction, done: Done, model: str, seconds: float | None) -> None:
        """One text was checked: a window or the whole of an answer, a message, or a passage.

        Args:
            done: the action of the policy, or "unavailable" where the check could not run.
            model: what scored it; "" where the check ended before anybody said so.
            seconds: that the check took; None where scores of before were judged.
        """
        ...

    def ended(self, status: TurnEnd) -> None:
        """One turn has ended. A request whose fault shows before a turn begins is none."""
        ...


def end_of(first: Event | None, last: Event | None, *, cancelled: bool) -> TurnEnd:
    """Return how a turn ended.

    Args:
        first, last: of its events.
        cancelled: nobody waited for it any more, or the service was stopped.
    """
    if isinstance(last, Error) and isinstance(last.error, _REJECTED):
        return "rejected"
    if not isinstance(last, Reply):
        return "aborted" if cancelled and not isinstance(first, TurnStarted) else "error"
    if last.replayed:
        return "replayed"
    verdicts = (last.moderation_input, last.moderation_output)
    return "unavailable" if any(v is not None and v.unavailable for v in verdicts) else last.finish_reason
