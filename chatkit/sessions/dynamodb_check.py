"""What is wrong with an owner's sessions in a DynamoDB table, in plain sentences: work that broke off, lost requests.

Sessions are found by the index, which names those too that are being removed or restored. A session without its own
item is in no index, and a scan would be needed to find it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from chatkit.errors import StoreFailed
from chatkit.protocols import CLOSED_S
from chatkit.sessions import conditions, items, whole
from chatkit.sessions.attributes import expressions
from chatkit.sessions.budget import Budget
from chatkit.sessions.conditions import CLOSING
from chatkit.sessions.table import Table
from chatkit.types import Owner, Turn

Item = dict[str, Any]

# How far the clocks of two machines may be apart. Seconds.
_CLOCKS_S = 60.0


class Check:
    """Looks through what only this store knows, each call within the budget it is given. Its methods wait."""

    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock

    def owner(self, budget: Budget, owner: Owner) -> tuple[str, ...]:
        """Return a sentence where everything of an owner was to be removed, and that did not end."""
        mark = self._table.get(budget, items.owner_mark_key(owner), items.OWNER)
        if mark is None or conditions.ends_of(mark) <= self._clock() + CLOSED_S + _CLOCKS_S:
            return ()
        until = datetime.fromtimestamp(min(conditions.ends_of(mark), 1e11), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"nothing new of this owner is taken before {until}: a purge goes on, or one broke off; "
            "chatkit sessions purge ends it",
        )

    def session(self, budget: Budget, owner: Owner, session_id: str) -> tuple[str, ...]:
        """Return a sentence for each thing that is wrong with a session that the index names; none for one that ended.

        A turn that cannot be read is left to whoever reads the turns.
        """
        head = self._table.get(budget, items.session_key(owner, session_id), items.META)
        now = self._clock()
        if head is None or conditions.ends_of(head) <= now:
            return ()
        if "state" in head:
            return (_broken_off(session_id, head["state"]),)
        found = self._lost_requests(budget, owner, session_id, head, now)
        again = self._table.get(budget, items.session_key(owner, session_id), items.META) if found else head
        same = again is not None and "state" not in again and again.get("created_at") == head.get("created_at")
        return found if same else ()  # it was removed while it was looked at

    def _lost_requests(self, budget: Budget, owner: Owner, session_id: str, head: Item, now: float) -> tuple[str, ...]:
        turns = self._remembered(budget, owner, session_id, head, now)
        keys = [items.request_key(owner, turn.request_id) for turn in turns]
        found = self._table.heads(budget, keys, items.REQUEST)
        said = (_lost(session_id, turn, found.get(key), now) for key, turn in zip(keys, turns, strict=True))
        return tuple(sentence for sentence in said if sentence)

    def _remembered(self, budget: Budget, owner: Owner, session_id: str, head: Item, now: float) -> list[Turn]:
        """Return the turns whose requests have to be there, without their texts."""
        kept = "#sk, #seq, #request_id, #attempt, #status, #user_length, #created_at, #expires_at"
        partition = items.session_key(owner, session_id)
        between = expressions(keys="#pk = :pk AND #sk < :meta", projection=kept, pk=partition, meta=items.META)
        rows = self._table.query(budget, ConsistentRead=True, **between)
        turns = (conditions.turn_in(row | {"user": ""}, head, now) for row in rows)
        return [turn for turn in turns if turn is not None and whole.is_remembered(turn, now)]


def _broken_off(session_id: str, state: Any) -> str:
    if state == CLOSING:
        return (
            f"session {session_id!r} is half removed: that goes on, or broke off; "
            f"chatkit sessions delete {session_id} ends it"
        )
    return (
        f"session {session_id!r} is half restored: that goes on, or broke off; import it again, "
        f"or remove it: chatkit sessions delete {session_id}"
    )


def _lost(session_id: str, turn: Turn, request: Item | None, now: float) -> str:
    """Return what a repeat of a turn's request would not find; empty where it finds the turn."""
    place = f"turn {turn.seq} of session {session_id!r}"
    if request is None or conditions.is_gone(request, now):
        return f"{place} has lost its request {turn.request_id!r}"
    try:
        session, seq = conditions.place_in(request)
    except StoreFailed:
        return f"the request {turn.request_id!r} of {place} cannot be read"
    if (session, seq) == (session_id, turn.seq):
        return ""
    return f"the request {turn.request_id!r} of {place} points at turn {seq} of session {session!r}"
