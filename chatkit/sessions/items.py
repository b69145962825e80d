"""Turns as items: the keys and the form that every store writes. Knows no database.

Partition `T#tenant#U#user#S#session` holds one item a turn under `T#{seq}` and the session's own under `Z#META`, so one
descending query gives that and the newest turns. A request has a partition of its own, `T#tenant#U#user#R#request_id`,
and so has the mark of an owner whose sessions are all removed, `T#tenant#U#user#O`. Every part is percent-encoded, so
no part can end another early.

`expires_at`, whole epoch seconds, is the same in all items of a session. An item past it counts as gone, whether or not
the database has removed it yet. So does a session's own item that has a `state`: it is being removed or restored.
"""

import base64
import hashlib
import json
import math
import secrets
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

from chatkit import session_lines
from chatkit.errors import Conflict, InvalidRequest, NotFound, TooLarge
from chatkit.protocols import NewTurn, Outcome, SessionHead, Ticket
from chatkit.sessions import references
from chatkit.types import Owner, Turn, TurnStatus, Usage

META = "Z#META"
REQUEST = "R"
OWNER = "O"
# A pending turn is taken for aborted when its lease has not been renewed for this long. Seconds; DESIGN §2.9.
LEASE_S = 15.0
# A request id is known for this long. Seconds; DESIGN §2.9.
REQUEST_S = session_lines.REQUEST_S
# A message may have this much of the 400 KiB that DynamoDB takes of an item; the rest is for answer and sources. The
# same for every store, so that a session can move from one to another. Bytes of UTF-8.
MAX_MESSAGE = 256 * 1024
# What tells two attempts apart that have everything else in common. Bytes.
_MARK = 8
# A cursor holds a digest, a moment and an id of at most 128 characters. Characters; epoch seconds of the year 5138.
_LONGEST_CURSOR = 2048
_LONGEST_ID = 128
_LATEST = 1e11


class OtherMessage(Conflict):
    """A request id was used for another message, as far as texts can be compared in the form that is stored.

    Attributes:
        session_id, item: where it was used, and the turn's item there.
    """

    def __init__(self, turn: NewTurn, session_id: str, item: dict[str, Any]) -> None:
        refused = ", or for one that was refused" if turn.opens_session else ""
        super().__init__(f"request_id {turn.request_id!r} was used for another message{refused}; send a new one")
        self.session_id = session_id
        self.item = item


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


def owner_mark_key(owner: Owner) -> str:
    """Return the partition of the mark that shuts an owner out."""
    return f"{owner_key(owner)}#O"


def new_mark(now: float, closed_s: float) -> dict[str, Any]:
    """Return the mark that shuts an owner out until `closed_s` seconds after `now`."""
    return {"expires_at": math.ceil(now + closed_s)}


def is_gone(item: dict[str, Any], now: float) -> bool:
    """Whether an item has expired at `now`, epoch seconds, or is of a session that is being removed or restored."""
    return "state" in item or item.get("expires_at", math.inf) <= now


def new_head(now: float, retention_s: float | None) -> dict[str, Any]:
    """Return the item of a session that is opened at `now`; it has no turn yet."""
    head: dict[str, Any] = {"version": 0, "created_at": round(now, 3)}
    return head if retention_s is None else head | {"expires_at": math.ceil(now + retention_s)}


def new_request(session_id: str, seq: int, now: float, expires_at: float | None) -> dict[str, Any]:
    """Return the item of a request: where its turn is. How that stands is read there, so the two cannot disagree.

    Args:
        expires_at: when the session ends.
    """
    until = math.ceil(now + REQUEST_S)
    return {"session_id": session_id, "seq": seq, "expires_at": until if expires_at is None else min(until, expires_at)}


def new_item(turn: NewTurn, seq: int, now: float, expires_at: float | None = None) -> dict[str, Any]:
    """Return the item of a turn that is accepted at `now`, epoch seconds, in a session that ends at `expires_at`."""
    item: dict[str, Any] = {
        "seq": seq,
        "request_id": turn.request_id,
        "attempt": 1,
        "status": turn.status,
        "user": "" if turn.status == "blocked" else turn.user,  # a refused text reaches no disk
        "user_length": turn.user_length,
        "created_at": round(now, 3),
    }
    if expires_at is not None:
        item["expires_at"] = expires_at
    if turn.replaces is not None:
        item["replaces"] = turn.replaces
    if turn.status == "blocked":
        item |= {"blocked": "input", "label": turn.label, "finish_reason": "content_filter"}
    return item


def begun(item: dict[str, Any], now: float) -> dict[str, Any]:
    """Return a pending item as one that an attempt begins, with a lease and a mark of its own; any other as it is."""
    return leased(item, now) | {"mark": secrets.token_hex(_MARK)} if item["status"] == "pending" else item


def ticket_for(turn: NewTurn, session_id: str, item: dict[str, Any]) -> Ticket:
    """Return the right to finish the attempt that an item is of."""
    return Ticket(turn.owner, session_id, item["seq"], turn.request_id, item["attempt"], item.get("mark", ""))


def leased(item: dict[str, Any], now: float) -> dict[str, Any]:
    """Return a pending item with a lease from `now` on; any other as it is."""
    return item | {"lease": round(now + LEASE_S, 3)} if item["status"] == "pending" else item


def lease_is_over(item: dict[str, Any], now: float) -> bool:
    """Whether nobody works on a pending turn any more."""
    return "lease" in item and float(item["lease"]) < now


def ended(item: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return the item of a turn that has ended: a blocked one keeps no text of either side."""
    done = item | {"status": outcome.status, "finish_reason": outcome.finish_reason}
    counts = outcome.usage.prompt_tokens, outcome.usage.completion_tokens
    done |= {"usage": [references.count_of(count) for count in counts]}
    if outcome.status == "blocked":
        return done | {"blocked": "output", "label": outcome.label, "user": ""}
    done["assistant"] = outcome.assistant
    if outcome.passages:
        done["passages"] = [references.row_of(passage) for passage in outcome.passages]
    return done


def restored(turn: Turn, expires_at: float | None) -> dict[str, Any]:
    """Return the item that `turn_of` gave this turn of."""
    own = NewTurn(Owner(), "", turn.request_id, turn.user, turn.user_length, replaces=turn.replaces)
    item = new_item(own, turn.seq, turn.created_at, expires_at) | {"attempt": turn.attempt, "status": turn.status}
    item |= {"usage": [turn.usage.prompt_tokens, turn.usage.completion_tokens], "assistant": turn.assistant}
    item |= {"finish_reason": turn.finish_reason, "blocked": turn.blocked, "label": turn.label}
    item["passages"] = [references.row_of(passage) for passage in turn.passages]
    return {name: value for name, value in item.items() if value not in (None, [])}


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
        passages=tuple(references.passage_of(row) for row in item.get("passages", ())),
        created_at=float(item["created_at"]),
        replaces=item.get("replaces"),
    )


def unknown_session(session_id: str) -> NotFound:
    """Return the error for an id of the server's own that names no session."""
    return NotFound(f"session {session_id!r} does not exist; leave session_id out to open a new one")


def check_may_open(turn: NewTurn) -> None:
    """Refuse to open a session that the turn takes for open, or whose id only the server may make.

    Raises:
        NotFound: naming the session.
    """
    server_made = turn.session_id.startswith("s-") and not turn.opens_session
    if turn.after or turn.opened_at is not None or server_made:
        raise unknown_session(turn.session_id)


def check_as_loaded(turn: NewTurn, version: int, expires_at: float | None, opened_at: object) -> None:
    """Refuse a turn for a session that is gone and whose name another one has by now.

    Raises:
        NotFound: naming the session.
    """
    other_end = turn.expires_at is not None and turn.expires_at != expires_at
    if other_end or turn.after > version:
        raise unknown_session(turn.session_id)
    check_as_opened(turn, opened_at)


def check_message(turn: NewTurn) -> None:
    """Refuse a message that leaves no room for an answer.

    Raises:
        TooLarge: naming both sizes.
    """
    size = len(turn.user.encode())
    if size > MAX_MESSAGE:
        raise TooLarge(f"the message has {size} bytes, at most {MAX_MESSAGE} are stored; send a shorter one")


def check_replaces(turn: NewTurn, newest: int) -> None:
    """Refuse to replace a turn that a session whose newest turn is `newest` does not have.

    Raises:
        InvalidRequest: naming both.
    """
    if turn.replaces is not None and not 1 <= turn.replaces <= newest:
        has = f"it has turns 1 to {newest}" if newest else "it has none yet"
        raise InvalidRequest(f"replaces is {turn.replaces}, expected the number of a turn of this session; {has}")


def shut_out(until: float) -> Conflict:
    """Return the error for an owner whose sessions are all being removed, `until` epoch seconds at least."""
    moment = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Conflict(f"everything of this owner is being removed; nothing new is taken before {moment}")


def session_is_there(session_id: str) -> Conflict:
    """Return the error for a session that is to be restored where there is one."""
    return Conflict(f"session {session_id!r} is there already; remove it first, or restore it under another owner")


def removed_session(request_id: str) -> NotFound:
    """Return the error for a repeat of a request whose session is gone; its id is not told to whoever named none."""
    return NotFound(f"the session of request_id {request_id!r} does not exist any more; send a new request_id")


def check_owned(ticket: Ticket, item: dict[str, Any] | None) -> dict[str, Any]:
    """Return the pending item that the ticket is for.

    Raises:
        Conflict: the turn has ended, was removed, or another attempt has taken it over.
    """
    if item is None or item["status"] != "pending" or not same_attempt(ticket, item):
        raise not_owned(ticket)
    return item


def same_attempt(ticket: Ticket, item: dict[str, Any]) -> bool:
    """Whether the item is of the ticket's attempt, and not of a session that was opened again."""
    own = (item.get("attempt"), item.get("request_id"), item.get("mark", ""))  # a damaged one may lack any
    return own == (ticket.attempt, ticket.request_id, ticket.mark)


def not_owned(ticket: Ticket) -> Conflict:
    """Return the error for an attempt that may not write its turn any more."""
    return Conflict(f"turn {ticket.seq} of this session is no longer attempt {ticket.attempt}'s to finish")


def check_as_opened(turn: NewTurn, opened_at: object) -> None:
    """Refuse to run a turn again that was planned on another session of its name.

    Raises:
        NotFound: naming the session.
    """
    if turn.opened_at is not None and turn.opened_at != opened_at:
        raise unknown_session(turn.session_id)


def answer_again(turn: NewTurn, session_id: str, item: dict[str, Any], *, expired: bool) -> Turn:
    """Return the turn that a known request id has: finished ones are to be replayed, an aborted one runs again.

    Raises:
        NotFound: the item is of another request, in a session that was opened again.
        Conflict: it is being answered now, or the id was used for another message or session.
    """
    if item["request_id"] != turn.request_id:
        raise removed_session(turn.request_id)
    check_same_request(turn, session_id, item)
    stored = turn_of(item, expired=expired)
    if stored.status == "pending":
        raise Conflict(f"request_id {turn.request_id!r} is being answered; wait for it or send a new one")
    return stored


def check_same_request(turn: NewTurn, session_id: str, found: dict[str, Any]) -> None:
    """Refuse a request id that was used for another message or session.

    Of a blocked turn only the length of the message is known, which anybody can guess. So it is known again to a
    request that names the session, and not to one that would be told the session's id by it.

    Raises:
        OtherMessage: naming the id.
    """
    blocked = found.get("status") == "blocked"
    same_text = not turn.opens_session if blocked else found["user"] == turn.user
    same_place = is_same_session(turn, session_id, found) and found.get("replaces") == turn.replaces
    if not (same_place and same_text and found["user_length"] == turn.user_length):
        raise OtherMessage(turn, session_id, found)


def is_same_session(turn: NewTurn, session_id: str, found: dict[str, Any]) -> bool:
    """Whether a turn names the session in which its request id was used, or opened that one when it was first sent.

    The first turn of a session with an id of the server's own is of a request that named none: `check_may_open`.
    """
    if turn.opens_session:
        return session_id.startswith("s-") and bool(found.get("seq") == 1)
    return turn.session_id == session_id


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
        if digest == _digest(owner) and _is_opening(created_at) and _may_be_key(session_id):
            return float(created_at), session_id
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass  # whatever was sent in its place
    raise InvalidRequest(f"cursor is {cursor[:40]!r}, expected what a list of these sessions gave; start without one")


def _may_be_key(session_id: Any) -> bool:
    """Whether a session may have this id, of whatever characters: it is text that can be part of a key.

    Raises:
        ValueError: it has half a character.
    """
    return isinstance(session_id, str) and len(session_id) <= _LONGEST_ID and bool(session_id.encode())


def _is_opening(moment: Any) -> bool:
    """Whether a session can have been opened then: in whole milliseconds, as `new_item` and the heads are written."""
    return type(moment) in (int, float) and 0 <= moment < _LATEST and moment == round(moment, 3)


def _digest(owner: Owner) -> str:
    return hashlib.sha256(owner_key(owner).encode()).hexdigest()[:16]
