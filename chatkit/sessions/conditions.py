"""What the DynamoDB store asks of an item before it writes, and what it takes of one that it reads. Pure.

Somebody else may have written a row over, and DynamoDB removes what has expired when it likes: some of a session may be
gone while the rest still lies there, and a session of the same name may be open again meanwhile.
"""

import math
from dataclasses import dataclass
from typing import Any

from chatkit.errors import NotFound, StoreFailed
from chatkit.protocols import Ticket
from chatkit.sessions import items, records
from chatkit.sessions.shapes import is_moment
from chatkit.types import Turn

Item = dict[str, Any]

# What a session's own item says while it is being removed or restored.
CLOSING, RESTORING = "closing", "restoring"
# Each of them takes `:now`. Nothing that has expired stands in the way of what is new.
ABSENT = "attribute_not_exists(#pk) OR #expires_at <= :now"
# A session may be opened: one that is being removed or restored is in the way until that has ended.
NO_SESSION = "attribute_not_exists(#pk) OR (#expires_at <= :now AND attribute_not_exists(#state))"
_KEPT = "(attribute_not_exists(#expires_at) OR #expires_at > :now)"
# A session is open.
SESSION = f"attribute_exists(#pk) AND attribute_not_exists(#state) AND {_KEPT}"
# A turn is the ticket's, and waits to be finished.
_MINE = f"#attempt = :own_attempt AND #request_id = :own_request AND #status = :pending AND {_KEPT}"


@dataclass(frozen=True, slots=True)
class Head:
    """How far a session has come, when it ends and when it was opened; version 0 is one that is not open yet."""

    version: int
    expires_at: float | None = None
    opened_at: float | None = None


def same(head: Head) -> tuple[str, dict[str, Any]]:
    """Return the condition that an open session stands as it was seen, and its values but `now`."""
    unchanged = "#version = :before AND attribute_not_exists(#state)"
    values: dict[str, Any] = {"before": head.version}
    if head.opened_at is not None:
        unchanged, values["opened"] = f"{unchanged} AND #created_at = :opened", head.opened_at
    if head.expires_at is None:
        return f"{unchanged} AND {_KEPT} AND attribute_not_exists(#expires_at)", values
    return f"{unchanged} AND {_KEPT} AND #expires_at = :ends", values | {"ends": head.expires_at}


def opened_at(moment: float | None) -> tuple[str, dict[str, Any]]:
    """Return the condition that a session is open which was opened then, and its values but `now`."""
    return (SESSION, {}) if moment is None else (f"{SESSION} AND #created_at = :opened", {"opened": moment})


def mine(ticket: Ticket) -> tuple[str, dict[str, Any]]:
    """Return the condition that a turn is the ticket's and waits to be finished, and its values but `now`."""
    values = {"own_attempt": ticket.attempt, "own_request": ticket.request_id, "pending": "pending"}
    if not ticket.mark:
        return f"{_MINE} AND attribute_not_exists(#mark)", values
    return f"{_MINE} AND #mark = :own_mark", values | {"own_mark": ticket.mark}


def is_gone(item: Item, now: float) -> bool:
    """Whether an item counts as absent, as items.is_gone; one whose end is no number has none."""
    return "state" in item or ends_of(item) <= now


def ends_of(item: Item) -> float:
    """Return when an item ends; never where that is not said, or is no number."""
    ends = item.get("expires_at")
    return ends if is_moment(ends) else math.inf


def head_in(item: Item) -> Head:
    """Return what a session's own item says.

    Raises:
        StoreFailed: it is damaged.
    """
    version, ends = item.get("version"), item.get("expires_at")
    if type(version) is not int or not (is_moment(ends) or "expires_at" not in item):
        raise damaged(items.META, "start a new session")
    return Head(version, ends, opened_in(item))


def opened_in(item: Item) -> float | None:
    """Return when a session was opened; None where its own item does not say."""
    opened = item.get("created_at")
    return opened if is_moment(opened) else None


def place_in(request: Item | None) -> tuple[str, int]:
    """Return the session and the number of the turn that a request made.

    Raises:
        StoreFailed: its item is damaged.
    """
    session_id, seq = (request or {}).get("session_id"), (request or {}).get("seq")
    if not isinstance(session_id, str) or type(seq) is not int:
        raise damaged(items.REQUEST, "send a new request_id")
    return session_id, seq


def turn_in(row: Item, head: Item, now: float) -> Turn | None:
    """Return the turn of a row under a session's own item; None for a damaged one and for one of an older session."""
    ending = is_moment(head.get("expires_at")) or "expires_at" not in head
    if is_gone(row, now) or (ending and ends_of(row) != ends_of(head)):
        return None
    return records.read_turn(row["sk"], row, now)


def damaged(key: str, step: str) -> StoreFailed:
    """Return the error for an entry that cannot be gone on with."""
    error = StoreFailed(f"the session store holds a damaged entry {key!r}; {step}")
    error.__cause__ = ValueError(f"entry {key} of a session or request is damaged")  # which the log is told
    return error


def being_changed(session_id: str, state: Any) -> NotFound:
    """Return the error for a session that is being removed or restored, or was when that broke off."""
    work = "restored" if state == RESTORING else "removed"
    return NotFound(f"session {session_id!r} is being {work}; name another one, or have it {work} again if that failed")
