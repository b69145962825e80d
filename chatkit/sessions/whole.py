"""Whether turns are a whole session: their numbers, and that each came of a request of its own."""

from collections.abc import Sequence

from chatkit.errors import InvalidRequest
from chatkit.session_lines import REQUEST_S, Repeats
from chatkit.types import Turn

# A check leaves out the requests that end while it reads. Seconds.
_A_WHILE_S = 3600.0


def is_remembered(turn: Turn, now: float) -> bool:
    """Whether the request of a turn is still known, and will be for as long as a check reads."""
    return turn.created_at + REQUEST_S > now + _A_WHILE_S


def check_restorable(session_id: str, turns: Sequence[Turn]) -> None:
    """Refuse what cannot be a whole session.

    Raises:
        InvalidRequest: naming the turn that is wrong.
    """
    if not turns:
        raise InvalidRequest(f"session {session_id!r} has no turns, expected at least one")
    repeats = Repeats()
    for seq, turn in enumerate(turns, start=1):
        if turn.seq != seq:
            raise InvalidRequest(f"session {session_id!r} has turn {turn.seq} in place of {seq}, expected all in order")
        if turn.status == "pending":
            raise InvalidRequest(f"turn {seq} of session {session_id!r} is pending, expected one that has ended")
        if turn.replaces is not None and not 1 <= turn.replaces < seq:
            raise InvalidRequest(
                f"turn {seq} of session {session_id!r} replaces {turn.replaces}, expected an older one"
            )
        before = repeats.before(turn)
        if before is not None:
            raise InvalidRequest(
                f"turns {before} and {seq} of session {session_id!r} have one request_id, {turn.request_id!r}; "
                "expected one of its own for each turn"
            )
