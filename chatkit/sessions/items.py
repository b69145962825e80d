"""Turns as items: the keys and the form that every store writes. Pure; knows no database.

Partition `T#tenant#U#user#S#session` holds one item a turn under `T#{seq}` and the session's own under `Z#META`, so one
descending query gives that and the newest turns. A request has a partition of its own, `T#tenant#U#user#R#request_id`.
Every part is percent-encoded, so no part can end another early.
"""

import base64
import hashlib
import json
from typing import Any
from urllib.parse import quote, unquote

from chatkit.errors import Conflict, InvalidRequest, NotFound
from chatkit.protocols import NewTurn, Outcome, SessionHead, Ticket
from chatkit.types import Owner, Passage, Turn, TurnStatus, Usage

META = "Z#META"
REQUEST = "R"
# A pending turn is taken for aborted when its lease has not been renewed for this long. Seconds; DESIGN §2.9.
LEASE_S = 15.0
# A cursor holds a digest, a moment and an id of at most 128 characters. Characters; epoch seconds of the year 5138.
_LONGEST_CURSOR = 2048
_LATEST = 1e11


def session_key(owner: Owner, session_id: str) -> str:
    """Return the partition of a session."""
    return f"{owner_key(owner)}#S#{quote(session_id, safe='')}"


def session_id_of(partition: str) -> str:
    """Return the id of the session that `session_key` made this partition of."""
    return unquote(partition.rpartition("#")[2])


def request_key(owner: Owner, request_id: str) -> str:
    """Return the partition of a request."""
    return f"{owner_key(owner)}#R#{quote(request_id, safe='')}"


def turn_key(seq: int) -> str:
    """Return the sort key of a turn: its sequence number, so that order never depends on a clock."""
    return f"T#{seq:010}"


def owner_key(owner: Owner) -> str:
    """Return what every key of an owner starts with; no owner's is the beginning of another's, the closing # added."""
    return f"T#{quote(owner.tenant, safe='')}#U#{quote(owner.user, safe='')}"


def new_item(turn: NewTurn, seq: int, now: float) -> dict[str, Any]:
    """Return the item of a turn that is accepted at `now`, epoch seconds."""
    item: dict[str, Any] = {
        "seq": seq,
        "request_id": turn.request_id,
        "attempt": 1,
        "status": turn.status,
        "user": "" if turn.status == "blocked" else turn.user,  # a refused text reaches no disk
        "user_length": turn.user_length,
        "created_at": round(now, 3),
    }
    if turn.status == "blocked":
        item |= {"blocked": "input", "label": turn.label, "finish_reason": "content_filter"}
    return item


def ended(item: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return the item of a turn that has ended: a blocked one keeps no text of either side."""
    done = item | {"status": outcome.status, "finish_reason": outcome.finish_reason}
    done |= {"usage": [outcome.usage.prompt_tokens, outcome.usage.completion_tokens]}
    if outcome.status == "blocked":
        return done | {"blocked": "output", "label": outcome.label, "user": ""}
    done["assistant"] = outcome.assistant
    if outcome.passages:
        done["passages"] = [
            [p.id, p.title, p.source, p.section, p.start, p.end, round(p.score, 4)] for p in outcome.passages
        ]
    return done


def turn_of(item: dict[str, Any], *, expired: bool) -> Turn:
    """Return the turn that an item holds; a pending one whose lease has run out reads as aborted."""
    status: TurnStatus = "aborted" if item["status"] == "pending" and expired else item["status"]
    return Turn(
        seq=item["seq"],
        request_id=item["request_id"],
        attempt=item["attempt"],
        status=status,
        user=item["user"],
        assistant=item.get("assistant", ""),
        finish_reason=item.get("finish_reason"),
        blocked=item.get("blocked"),
        label=item.get("label"),
        user_length=item["user_length"],
        usage=Usage(*item.get("usage", (0, 0))),
        passages=tuple(_passage(row) for row in item.get("passages", ())),
        created_at=float(item["created_at"]),
    )


def _passage(row: list[Any]) -> Passage:
    identity, title, source, section, start, end, score = row
    return Passage(identity, "", title, source, section, start, end, float(score))


def unknown_session(session_id: str) -> NotFound:
    """Return the error for an id of the server's own that names no session."""
    return NotFound(f"session {session_id!r} does not exist; leave session_id out to open a new one")


def check_may_open(turn: NewTurn) -> None:
    """Refuse to open a session that the turn takes for open, or whose id only the server may make.

    Raises:
        NotFound: naming the session.
    """
    if turn.after or (turn.session_id.startswith("s-") and not turn.opens_session):
        raise unknown_session(turn.session_id)


def removed_session(session_id: str) -> NotFound:
    """Return the error for a repeat of a request whose session is gone."""
    return NotFound(f"session {session_id!r} does not exist any more; send a new request_id")


def check_owned(ticket: Ticket, item: dict[str, Any] | None) -> dict[str, Any]:
    """Return the pending item that the ticket is for.

    Raises:
        Conflict: the turn has ended, was removed, or another attempt has taken it over.
    """
    if item is None or item["status"] != "pending" or not same_attempt(ticket, item):
        raise not_owned(ticket)
    return item


def same_attempt(ticket: Ticket, item: dict[str, Any]) -> bool:
    """Whether the item is of the ticket's attempt; a session that was opened again has other requests."""
    return bool(item["attempt"] == ticket.attempt and item["request_id"] == ticket.request_id)


def not_owned(ticket: Ticket) -> Conflict:
    """Return the error for an attempt that may not write its turn any more."""
    return Conflict(f"turn {ticket.seq} of this session is no longer attempt {ticket.attempt}'s to finish")


def answer_again(turn: NewTurn, session_id: str, item: dict[str, Any], *, expired: bool) -> Turn:
    """Return the turn that a known request id has: finished ones are to be replayed, an aborted one runs again.

    Raises:
        Conflict: it is being answered now, or the id was used for another message or session.
    """
    check_same_request(turn, session_id, item)
    stored = turn_of(item, expired=expired)
    if stored.status == "pending":
        raise Conflict(f"request_id {turn.request_id!r} is being answered; wait for it or send a new one")
    return stored


def check_same_request(turn: NewTurn, session_id: str, found: dict[str, Any]) -> None:
    """Refuse a request id that was used for another message or session.

    Raises:
        Conflict: naming the id.
    """
    same_session = turn.opens_session or turn.session_id == session_id
    same_text = not found["user"] or found["user"] == turn.user  # of a blocked one only the length is known
    if not (same_session and same_text and found["user_length"] == turn.user_length):
        raise Conflict(f"request_id {turn.request_id!r} was used for another message; send a new one")


def head_of(partition: str, item: dict[str, Any]) -> SessionHead:
    """Return the row of a list that a session's own item holds."""
    return SessionHead(session_id_of(partition), int(item["version"]), float(item["created_at"]))


def cursor_of(owner: Owner, last: SessionHead) -> str:
    """Return where a list goes on after `last`. Names its owner by a digest, so that it is of no use to another."""
    position = json.dumps([_digest(owner), last.created_at, last.session_id])
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def position_of(owner: Owner, cursor: str) -> tuple[float, str]:
    """Return when the last session listed was opened, epoch seconds, and its id.

    Raises:
        InvalidRequest: the cursor is not one of this owner's.
    """
    try:
        if len(cursor) > _LONGEST_CURSOR:
            raise ValueError("longer than any that was given")
        digest, created_at, session_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if digest == _digest(owner) and _is_opening(created_at) and len(session_id.encode()) <= _LONGEST_CURSOR:
            return float(created_at), session_id
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        pass  # whatever was sent in its place
    raise InvalidRequest(f"cursor is {cursor[:40]!r}, expected what a list of these sessions gave; start without one")


def _is_opening(moment: Any) -> bool:
    """Whether a session can have been opened then: in whole milliseconds, as `new_item` and the heads are written."""
    return type(moment) in (int, float) and 0 <= moment < _LATEST and moment == round(moment, 3)


def _digest(owner: Owner) -> str:
    return hashlib.sha256(owner_key(owner).encode()).hexdigest()[:16]
