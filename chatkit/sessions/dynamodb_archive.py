"""What is kept in a DynamoDB table, for those who keep it: lists, whole sessions, removing and restoring them.

A session's own item says `closing` from the beginning of its removal to the end, and `restoring` likewise: nobody reads
or writes such a session, the index by owner still names it, and whoever runs the work again finds it.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chatkit.errors import Conflict, InvalidRequest, TooLarge
from chatkit.protocols import SessionHead, SessionList
from chatkit.sessions import conditions, items
from chatkit.sessions.attributes import encode_item, expressions, size_of
from chatkit.sessions.budget import Budget
from chatkit.sessions.conditions import CLOSING, RESTORING
from chatkit.sessions.connection import ConditionFailed
from chatkit.sessions.dynamodb_turns import MAX_ITEM
from chatkit.sessions.table import ACTIONS, INDEX, Table
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
Item = dict[str, Any]

# The highest number that `items.turn_key` has digits for.
_LAST_SEQ = 9_999_999_999
# What a removal writes first. One that is not there is written, so that nobody opens a session between what lies there;
# one that would expire does not, for it is needed until the end.
_CLOSE = (
    "SET #state = :closing, #owner = :owner, #version = if_not_exists(#version, :none), "
    "#created_at = if_not_exists(#created_at, :now) REMOVE #expires_at"
)
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
                try:
                    yield items.head_of(partition, item)
                except (KeyError, ValueError, TypeError):
                    log.error("entry %s of a session is damaged and left out", items.META)

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
        known = expressions(keys="#pk = :pk", projection="#sk, #expires_at", pk=partition)
        rows, _ = self._table.page(budget, Limit=1, ScanIndexForward=False, ConsistentRead=True, **known)
        if not rows:
            return None
        was_kept = rows[0]["sk"] == items.META and conditions.ends_of(rows[0]) > self._clock()
        values = {"closing": CLOSING, "owner": items.owner_key(owner), "none": 0, "now": round(self._clock(), 3)}
        self._table.update(budget, partition, items.META, update=_CLOSE, **values)
        self._clear(budget, owner, session_id)
        try:
            self._table.delete(budget, partition, items.META, condition="#state = :closing", closing=CLOSING)
        except ConditionFailed:
            log.debug("a session was removed by two at once")
        return was_kept

    def _clear(self, budget: Budget, owner: Owner, session_id: str) -> None:
        """Remove the requests of a session, then its turns: a turn tells its request, so it goes after it."""
        partition = items.session_key(owner, session_id)
        turns = expressions(
            keys="#pk = :pk AND #sk < :meta", projection="#sk, #request_id", pk=partition, meta=items.META
        )
        rows = list(self._table.query(budget, ConsistentRead=True, **turns))
        self._forget(budget, owner, session_id, [str(row["request_id"]) for row in rows if "request_id" in row])
        self._table.remove(budget, partition, [str(row["sk"]) for row in rows])

    def _forget(self, budget: Budget, owner: Owner, session_id: str, requests: list[str]) -> None:
        """Remove what these request ids stand for; one that is another session's by now stays."""
        mine = "attribute_not_exists(#pk) OR #session_id = :session"
        left = list(dict.fromkeys(requests))
        while left:
            part, left = left[:ACTIONS], left[ACTIONS:]
            keys = [items.request_key(owner, request) for request in part]
            others = self._table.transact(
                budget, (self._table.drop(key, items.REQUEST, mine, session=session_id) for key in keys)
            )
            if others:  # nothing of this part is removed
                left = [request for at, request in enumerate(part) if at not in others] + left

    def shut_out(self, budget: Budget, owner: Owner, seconds: float) -> None:
        """Take nothing of an owner for so long; 0 takes the mark away."""
        partition = items.owner_mark_key(owner)
        if seconds > 0:
            self._table.write(budget, partition, items.OWNER, items.new_mark(self._clock(), seconds))
        else:
            self._table.delete(budget, partition, items.OWNER)

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
        opened = {"version": 0, "created_at": turns[0].created_at, "owner": items.owner_key(owner), "state": RESTORING}
        opened |= {} if ends is None else {"expires_at": ends}
        try:
            values = {"condition": _MAY_RESTORE, "restoring": RESTORING, "now": now}
            self._table.write(budget, partition, items.META, opened, **values)
        except ConditionFailed:
            raise items.session_is_there(session_id) from None
        self._clear(budget, owner, session_id)  # what a try that broke off, or a session that has expired, left there
        self._table.fill(budget, partition, rows)
        try:
            self._remember(budget, owner, session_id, requests, now)
        except Conflict:
            self.delete(budget, owner, session_id)
            raise
        self._complete(budget, partition, session_id, len(turns))

    def _complete(self, budget: Budget, partition: str, session_id: str, version: int) -> None:
        """Open a session that has been restored."""
        values = {"condition": "#state = :restoring", "restoring": RESTORING, "version": version}
        try:
            self._table.update(budget, partition, items.META, update="SET #version = :version REMOVE #state", **values)
        except ConditionFailed:  # as after an own update too whose answer was lost
            head = self._table.get(budget, partition, items.META) or {"state": None}
            if "state" in head or head.get("version") != version:
                raise Conflict(f"session {session_id!r} was removed while it was restored") from None

    def _remember(self, budget: Budget, owner: Owner, session_id: str, requests: dict[str, Item], now: float) -> None:
        """Write the requests that are still known, unless one of them is another turn's."""
        rows = list(requests.items())
        for start in range(0, len(rows), ACTIONS):
            part = rows[start : start + ACTIONS]
            failed = self._table.transact(
                budget,
                (
                    self._table.put(items.request_key(owner, name), items.REQUEST, row, conditions.ABSENT, now=now)
                    for name, row in part
                ),
            )
            for at in failed:
                raise _other_request(part[at][0], session_id)


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
