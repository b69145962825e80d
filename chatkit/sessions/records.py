"""What each verb of a store does to its items, over records that a transaction around it changes all or not at all.

DynamoDB has no such transactions, so its store says the same in conditional writes.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from chatkit.conversation import Conversation, Newest
from chatkit.errors import Conflict, InvalidRequest, StoreFailed
from chatkit.protocols import Accepted, NewTurn, Outcome, SessionHead, Ticket
from chatkit.sessions import items, shapes, whole
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
Item = dict[str, Any]

# What stands for a session's own item that cannot be read. Its turns still can.
_DAMAGED: Item = {}


class Records(Protocol):
    """Items by partition and sort key."""

    def get(self, partition: str, key: str) -> Item | None:
        """Return an item; None where there is none.

        Raises:
            StoreFailed: what is there cannot be read.
        """
        ...

    def put(self, partition: str, key: str, item: Item) -> None:
        """Write an item in the place of what is there."""
        ...

    def drop(self, partition: str) -> None:
        """Remove every item of a partition."""
        ...

    def rows(self, partition: str, *, after: str | None = None) -> Iterator[tuple[str, Item | None]]:
        """Yield keys and items of a partition, None for one that cannot be read.

        Args:
            after: yields those above this key, the lowest first; without it all, the highest first.
        """
        ...


def load(records: Records, owner: Owner, session_id: str, limit: int, now: float) -> Conversation:
    """Return the newest turns; see protocols.TurnStore."""
    rows = records.rows(items.session_key(owner, session_id))
    key, head = next(rows, (None, None))
    if key != items.META or (head is not None and items.is_gone(head, now)):
        if session_id.startswith("s-"):
            raise items.unknown_session(session_id)
        return Conversation()
    newest, ends = Newest(limit), None if head is None else head.get("expires_at")
    for key, item in rows:
        if newest.full:
            break
        turn = read_turn(key, item, now)
        if turn is None or (head is None and _has_ended(item, now)):
            continue
        newest.take(turn)
        ends = ends if head is not None else (item or {}).get("expires_at")  # the same in every item
    return newest.conversation(ends, (head or {}).get("version"), (head or {}).get("created_at"))


def accept(records: Records, turn: NewTurn, now: float, retention_s: float | None) -> Accepted:
    """Number the turn, or recognise its request id; see protocols.TurnStore."""
    items.check_message(turn)
    mark = records.get(items.owner_mark_key(turn.owner), items.OWNER)
    if mark is not None and not items.is_gone(mark, now):
        raise items.shut_out(mark["expires_at"])
    request = records.get(items.request_key(turn.owner, turn.request_id), items.REQUEST)
    if request is not None and not items.is_gone(request, now):
        return _accept_again(records, turn, request, now)
    partition = items.session_key(turn.owner, turn.session_id)
    head = records.get(partition, items.META)
    if head is None or items.is_gone(head, now):
        items.check_may_open(turn)
        records.drop(partition)  # what one that has expired left behind
        head = items.new_head(now, retention_s)
    else:
        items.check_as_loaded(turn, int(head["version"]), head.get("expires_at"), head.get("created_at"))
    seq, expires_at = int(head["version"]) + 1, head.get("expires_at")
    items.check_replaces(turn, seq - 1)
    records.put(partition, items.META, head | {"version": seq})
    item = items.begun(items.new_item(turn, seq, now, expires_at), now)
    records.put(partition, items.turn_key(seq), item)
    request_key = items.request_key(turn.owner, turn.request_id)
    records.put(request_key, items.REQUEST, items.new_request(turn.session_id, seq, now, expires_at))
    return Accepted(turn.session_id, items.ticket_for(turn, turn.session_id, item))


def _accept_again(records: Records, turn: NewTurn, request: Item, now: float) -> Accepted:
    """Answer a request id that is known: replay what is finished, run again what was aborted."""
    session_id, seq = request["session_id"], request["seq"]
    partition, key = items.session_key(turn.owner, session_id), items.turn_key(seq)
    head, item = records.get(partition, items.META), records.get(partition, key)
    if item is None or head is None or items.is_gone(head, now):
        raise items.removed_session(turn.request_id)
    stored = items.answer_again(turn, session_id, item, expired=items.lease_is_over(item, now))
    if stored.status != "aborted":
        return Accepted(session_id, repeat=stored)
    items.check_as_opened(turn, head.get("created_at"))
    again = items.new_item(turn, seq, now, item.get("expires_at"))
    again = items.begun(again | {"attempt": stored.attempt + 1, "created_at": item["created_at"]}, now)
    records.put(partition, key, again)
    return Accepted(session_id, items.ticket_for(turn, session_id, again))


def renew(records: Records, ticket: Ticket, now: float) -> None:
    """Extend the lease of a pending turn."""
    partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
    records.put(partition, key, items.leased(_owned(records, ticket, now), now))


def finish(records: Records, ticket: Ticket, outcome: Outcome, now: float) -> None:
    """Store how the turn ended; see protocols.TurnStore."""
    partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
    done = items.ended(_owned(records, ticket, now), outcome)
    kept = {name: value for name, value in done.items() if name not in ("lease", "mark")}  # nobody asks for them again
    records.put(partition, key, kept)


def _owned(records: Records, ticket: Ticket, now: float) -> Item:
    """Return the pending item that the ticket is for."""
    partition = items.session_key(ticket.owner, ticket.session_id)
    head = records.get(partition, items.META)
    if head is None or items.is_gone(head, now):
        raise items.not_owned(ticket)
    return items.check_owned(ticket, records.get(partition, items.turn_key(ticket.seq)))


def page(records: Records, owner: Owner, session_id: str, limit: int, after: int, now: float) -> tuple[Turn, ...]:
    """Return turns, oldest first; see protocols.SessionArchive."""
    partition = items.session_key(owner, session_id)
    head = _head(records, partition)
    if head is None or items.is_gone(head, now):
        raise items.unknown_session(session_id)
    turns: list[Turn] = []
    for key, item in records.rows(partition, after=items.turn_key(after)):
        if key == items.META or len(turns) == limit:
            break
        turn = read_turn(key, item, now)
        if turn is not None and not (head == _DAMAGED and _has_ended(item, now)):
            turns.append(turn)
    return tuple(turns)


def _head(records: Records, partition: str) -> Item | None:
    try:
        return records.get(partition, items.META)
    except StoreFailed:
        return _DAMAGED


def _has_ended(item: Item | None, now: float) -> bool:
    """Whether a turn says that its session has ended, where the session itself cannot say it."""
    ends = (item or {}).get("expires_at")
    return isinstance(ends, int | float) and ends <= now


def delete(records: Records, owner: Owner, session_id: str) -> None:
    """Remove a session with its request ids; see protocols.SessionArchive."""
    partition = items.session_key(owner, session_id)
    for key, item in records.rows(partition):
        request_id = None if key == items.META or item is None else item.get("request_id")
        if not isinstance(request_id, str):
            continue
        request_key = items.request_key(owner, request_id)
        try:
            request = records.get(request_key, items.REQUEST)
        except StoreFailed:  # a damaged one is of no use to another session, and must not keep this one
            request = {"session_id": session_id}
        if request is not None and request["session_id"] == session_id:  # the id may be another session's by now
            records.drop(request_key)
    records.drop(partition)


def withdraw(records: Records, ticket: Ticket, now: float) -> bool:
    """Remove a session that has the ticket's turn alone, where that waits to be finished; whether it did."""
    partition = items.session_key(ticket.owner, ticket.session_id)
    head, item = records.get(partition, items.META), records.get(partition, items.turn_key(ticket.seq))
    if head is None or items.is_gone(head, now) or head["version"] != 1:
        return False
    if item is None or item["status"] != "pending" or not items.same_attempt(ticket, item):
        return False
    delete(records, ticket.owner, ticket.session_id)
    return True


def restore(
    records: Records, owner: Owner, session_id: str, turns: Sequence[Turn], expires_at: float | None, now: float
) -> None:
    """Write a session as `page` gave it; see protocols.SessionArchive."""
    whole.check_restorable(session_id, turns)
    if expires_at is not None and expires_at <= now:
        raise InvalidRequest(f"session {session_id!r} has expired, expected one that is still kept")
    partition = items.session_key(owner, session_id)
    head = records.get(partition, items.META)
    if head is not None and not items.is_gone(head, now):
        raise items.session_is_there(session_id)
    records.drop(partition)
    opened = {"version": len(turns), "created_at": turns[0].created_at}
    records.put(partition, items.META, opened if expires_at is None else opened | {"expires_at": expires_at})
    for turn in turns:
        records.put(partition, items.turn_key(turn.seq), items.restored(turn, expires_at))
        request = items.new_request(session_id, turn.seq, turn.created_at, expires_at)
        if items.is_gone(request, now):
            continue
        request_key = items.request_key(owner, turn.request_id)
        known = records.get(request_key, items.REQUEST)
        if known is not None and not items.is_gone(known, now):
            raise Conflict(f"request_id {turn.request_id!r} of session {session_id!r} is another turn's here")
        records.put(request_key, items.REQUEST, request)


def read_head(partition: str, item: Item | None, created_at: object, expires_at: float | None) -> SessionHead:
    """Return the row of a list that a session's own item holds; one that is marked for a damaged item.

    Args:
        created_at, expires_at: what is known of these beside the item.
    """
    head = None if item is None else shapes.head_of(partition, item)
    if head is not None:
        return head
    log.error("entry %s of a session is damaged; the session is listed without the number of its turns", items.META)
    opened = float(created_at) if shapes.is_moment(created_at) else 0.0
    return SessionHead(items.session_id_of(partition), 0, opened, expires_at, damaged=True)


def read_turn(key: str, item: Item | None, now: float) -> Turn | None:
    """Return the turn that a row holds, or None for a damaged one: one bad turn does not hide the rest."""
    if item is not None and shapes.is_sound(key, item):
        return items.turn_of(item, expired=items.lease_is_over(item, now))
    log.error("entry %s of a session is damaged and left out", key)
    return None
