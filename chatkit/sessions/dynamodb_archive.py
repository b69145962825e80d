"""What is kept in a DynamoDB table, for those who keep it: lists, whole sessions, removing and restoring them."""

import itertools
import logging
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from chatkit.errors import Conflict, InvalidRequest, TooLarge
from chatkit.protocols import SessionHead, SessionList, Ticket
from chatkit.sessions import conditions, items, records
from chatkit.sessions.attributes import encode_item, expressions, size_of
from chatkit.sessions.budget import Budget
from chatkit.sessions.conditions import CLOSING, RESTORING
from chatkit.sessions.connection import ConditionFailed
from chatkit.sessions.dynamodb_turns import MAX_ITEM
from chatkit.sessions.dynamodb_work import Lost, Work
from chatkit.sessions.table import INDEX, Table
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
Item = dict[str, Any]

# The highest number that `items.turn_key` has digits for.
_LAST_SEQ = 9_999_999_999
_MAY_RESTORE = f"{conditions.NO_SESSION} OR #state = :restoring"


class Archive:
    """What a SessionArchive does, each call within the budget it is given. Its methods wait, in any thread."""

    def __init__(self, table: Table, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock

    def sessions(self, budget: Budget, owner: Owner, limit: int, start: tuple[float, str] | None) -> SessionList:
        """List the owner's sessions after `start`; see protocols.SessionArchive."""
        found = list(itertools.islice(self._heads(budget, owner, limit + 1, start), limit + 1))
        return SessionList(tuple(found[:limit]), items.cursor_of(owner, found[limit - 1]) if found[limit:] else None)

    def _heads(self, budget: Budget, owner: Owner, page: int, start: tuple[float, str] | None) -> Iterator[SessionHead]:
        """Yield the sessions that the index names and that are open, as they are now."""
        asked: dict[str, Any] = {"Limit": page, "IndexName": INDEX, "ScanIndexForward": False}
        asked |= expressions(keys="#owner = :owner", owner=items.owner_key(owner))
        if start is not None:
            last: Item = {"pk": items.session_key(owner, start[1]), "sk": items.META}
            last |= {"owner": items.owner_key(owner), "created_at": start[0]}
            asked["ExclusiveStartKey"] = encode_item(last)
        rows = self._table.query(budget, **asked)
        while partitions := [str(row["pk"]) for row in itertools.islice(rows, page)]:
            now = self._clock()
            for partition, item in self._table.heads(budget, partitions, items.META).items():
                if conditions.is_gone(item, now):
                    continue
                ends = conditions.ends_of(item)
                yield records.read_head(partition, item, item.get("created_at"), None if ends == math.inf else ends)

    def page(self, budget: Budget, owner: Owner, session_id: str, limit: int, after: int) -> tuple[Turn, ...]:
        """Return turns, oldest first; see protocols.SessionArchive."""
        partition = items.session_key(owner, session_id)
        head, now = self._table.get(budget, partition, items.META), self._clock()
        if head is None or conditions.is_gone(head, now):
            raise items.unknown_session(session_id)
        newest = head["version"] if type(head.get("version")) is int else _LAST_SEQ
        if after >= newest:
            return ()
        between = expressions(
            keys="#pk = :pk AND #sk BETWEEN :first AND :last",
            pk=partition,
            first=items.turn_key(after + 1),
            last=items.turn_key(newest),
        )
        rows = self._table.query(budget, Limit=limit, ConsistentRead=True, **between)
        turns = filter(None, (conditions.turn_in(row, head, now) for row in rows))
        return tuple(itertools.islice(turns, limit))

    def delete(self, budget: Budget, owner: Owner, session_id: str) -> bool | None:
        """Remove a session; see protocols.SessionArchive.

        Returns:
            None where there was nothing of it; else whether it was a session that had not expired.
        """
        partition = items.session_key(owner, session_id)
        first = found = self._last(budget, partition)
        if first is None:
            return None
        was_kept = first["sk"] == items.META and conditions.ends_of(first) > self._clock()
        work = Work(self._table, budget, owner, session_id, CLOSING, secrets.token_hex(8))
        while found is not None:
            if found.get("state") == CLOSING and isinstance(found.get("work"), str):
                replace(work, work=found["work"]).remove()
                break
            if found.get("created_at") != first.get("created_at"):
                break  # somebody else has removed what was there, and another session has the name
            if work.close(found, self._clock()):
                work.remove()
                break
            budget.pause()
            found = self._last(budget, partition)
        return was_kept

    def withdraw(self, budget: Budget, ticket: Ticket) -> bool:
        """Remove a session that has the ticket's turn alone, where that waits to be finished; whether it did."""
        work = Work(self._table, budget, ticket.owner, ticket.session_id, CLOSING, secrets.token_hex(8))
        taken = work.withdraw(ticket, self._clock())
        if taken:
            work.remove()
        return taken

    def _last(self, budget: Budget, partition: str) -> Item | None:
        """Return what the removal of a session asks of its own item, or of its newest turn where that is missing."""
        wanted = "#sk, #expires_at, #created_at, #state, #work"
        known = expressions(keys="#pk = :pk", projection=wanted, pk=partition)
        rows, _ = self._table.page(budget, Limit=1, ScanIndexForward=False, ConsistentRead=True, **known)
        if not rows:
            return None
        return rows[0] if rows[0]["sk"] == items.META else {"sk": rows[0]["sk"]}

    def shut_out(self, budget: Budget, owner: Owner, seconds: float) -> None:
        """Take nothing of an owner for so long; 0 takes the mark away."""
        place = items.owner_mark_key(owner), items.OWNER
        mark = items.new_mark(self._clock(), seconds) | {"work": secrets.token_hex(8)}
        while True:
            # It asks for the mark that was there: one that comes late, when its caller has given up and another removal
            # has ended, must not take the place of that one's.
            found = self._table.get(budget, *place)
            if (found is None and seconds <= 0) or (found is not None and found.get("work") == mark["work"]):
                return  # or it was made before, and its answer lost
            condition, values = _as_found(found)
            try:
                if seconds > 0:
                    self._table.write(budget, *place, mark, condition=condition, **values)
                else:
                    self._table.delete(budget, *place, condition=condition, **values)
            except ConditionFailed:
                budget.pause()
            else:
                return

    def named(self, budget: Budget, owner: Owner) -> list[str]:
        """Return the ids of the owner's sessions that the index names, whatever their state; some may be gone."""
        asked = expressions(keys="#owner = :owner", owner=items.owner_key(owner))
        rows = self._table.query(budget, IndexName=INDEX, **asked)
        return [items.session_id_of(str(row["pk"])) for row in rows]

    def restore(
        self, budget: Budget, owner: Owner, session_id: str, turns: Sequence[Turn], expires_at: float | None
    ) -> None:
        """Write a session as `page` gave it; see protocols.SessionArchive.

        Raises:
            TooLarge: a turn is more than an item holds.
        """
        ends, now = None if expires_at is None else math.ceil(expires_at), self._clock()
        if ends is not None and ends <= now:
            raise InvalidRequest(f"session {session_id!r} has expired, expected one that is still kept")
        partition = items.session_key(owner, session_id)
        rows = {items.turn_key(turn.seq): items.restored(turn, ends) for turn in turns}
        _check_sizes(partition, rows)
        requests = _requests(session_id, turns, ends, now)
        work = Work(self._table, budget, owner, session_id, RESTORING, secrets.token_hex(8))
        opened = {"version": 0, "created_at": turns[0].created_at, "owner": items.owner_key(owner)} | work.mark
        opened |= {} if ends is None else {"expires_at": ends}
        try:
            values = {"condition": _MAY_RESTORE, "restoring": RESTORING, "now": now}
            self._table.write(budget, partition, items.META, opened, **values)
        except ConditionFailed:
            raise items.session_is_there(session_id) from None
        try:
            work.clear()  # what a try that broke off, or a session that has expired, left there
            work.fill(rows)
            taken = work.remember(requests, now)
            if taken is None:
                work.complete(len(turns))
        except Lost:
            raise Conflict(
                f"session {session_id!r} was removed, or restored by somebody else, while it was restored"
            ) from None
        if taken is not None:
            work.undo()
            raise _other_request(taken, session_id)


def _as_found(mark: Item | None) -> tuple[str, dict[str, Any]]:
    """Return the condition that an owner's mark stands as it was found, and its values."""
    if mark is None:
        return "attribute_not_exists(#pk)", {}
    seen = {name: mark.get(name) for name in ("expires_at", "work") if mark.get(name) is not None}
    return " AND ".join(["attribute_exists(#pk)", *(f"#{name} = :{name}" for name in seen)]), seen


def _requests(session_id: str, turns: Sequence[Turn], expires_at: int | None, now: float) -> dict[str, Item]:
    """Return the items of the requests that would still be known.

    Raises:
        Conflict: two turns have one request id.
    """
    requests: dict[str, Item] = {}
    for turn in turns:
        request = items.new_request(session_id, turn.seq, turn.created_at, expires_at)
        if conditions.is_gone(request, now):
            continue
        if turn.request_id in requests:
            raise _other_request(turn.request_id, session_id)
        requests[turn.request_id] = request
    return requests


def _check_sizes(partition: str, rows: dict[str, Item]) -> None:
    for key, item in rows.items():
        size = size_of(item | {"pk": partition, "sk": key})
        if size > MAX_ITEM:
            raise TooLarge(f"turn {item['seq']} has {size} bytes, at most {MAX_ITEM} are taken by DynamoDB")


def _other_request(request_id: str, session_id: str) -> Conflict:
    return Conflict(f"request_id {request_id!r} of session {session_id!r} is another turn's here")
