"""One removal or restoring of a session in a DynamoDB table: writes that hold as long as the session is that work's.

A session's own item says `closing` from the beginning of its removal to the end, and `restoring` likewise: nobody reads
or writes such a session, the index by owner still names it, and whoever runs the work again finds it. Beside that it
has `work`, a random number of the removal or restoring. Every write asks for both, so that one that comes late, when
the session is open again, changes nothing.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from chatkit.protocols import Ticket
from chatkit.sessions import conditions, items
from chatkit.sessions.attributes import expressions, size_of
from chatkit.sessions.budget import Budget
from chatkit.sessions.conditions import CLOSING
from chatkit.sessions.connection import Action, ConditionFailed
from chatkit.sessions.table import ACTIONS, Table
from chatkit.types import Owner

log = logging.getLogger(__name__)
Item = dict[str, Any]
T = TypeVar("T")

# What a removal writes first. One that is not there is written, so that nobody opens a session between what lies there;
# one that would expire does not, for it is needed until the end.
_CLOSE = (
    "SET #state = :closing, #work = :work, #owner = :owner, #version = if_not_exists(#version, :none), "
    "#created_at = if_not_exists(#created_at, :now) REMOVE #expires_at"
)
_HELD = "#state = :state AND #work = :work"
# One action of each transaction asks for the session's own item. A transaction may have 4 MB.
_BESIDE, _PART_BYTES = ACTIONS - 1, 3 * 1024 * 1024


class Lost(Exception):
    """A session is no longer this work's: somebody else has ended it, or begun anew."""


@dataclass(frozen=True, slots=True)
class Work:
    """One removal or restoring within a budget. Its methods wait.

    Attributes:
        state, work: what the session's own item says while it is this work's.
    """

    table: Table
    budget: Budget
    owner: Owner
    session_id: str
    state: str
    work: str

    @property
    def partition(self) -> str:
        """The session's partition."""
        return items.session_key(self.owner, self.session_id)

    @property
    def mark(self) -> dict[str, str]:
        """What the session's own item has of this work."""
        return {"state": self.state, "work": self.work}

    def close(self, found: Item, now: float) -> bool:
        """Take a session that stands as it was found; False where it has changed since."""
        seen = {name: found[name] for name in ("created_at", "state", "work") if name in found}
        unchanged = [f"#{name} = :old_{name}" for name in seen]
        unchanged += [f"attribute_not_exists(#{name})" for name in ("created_at", "state") if name not in seen]
        values = self._closing(now) | {f"old_{name}": value for name, value in seen.items()}
        condition = " AND ".join(unchanged)
        try:
            self.table.update(self.budget, self.partition, items.META, update=_CLOSE, condition=condition, **values)
        except ConditionFailed:  # so does the SDK's re-sending of one whose answer was lost; another look tells
            return False
        return True

    def withdraw(self, ticket: Ticket, now: float) -> bool:
        """Take a session that has the ticket's turn alone, where that waits to be finished; False for any other."""
        alone, (mine, values) = "#version = :one AND attribute_not_exists(#state)", conditions.mine(ticket)
        first = items.turn_key(1)
        return not self.table.transact(
            self.budget,
            (
                self.table.change(self.partition, items.META, _CLOSE, alone, one=1, **self._closing(now)),
                self.table.require(self.partition, first, mine, now=now, **values),
            ),
        )

    def _closing(self, now: float) -> dict[str, Any]:
        """Return the values of `_CLOSE`."""
        values = {"closing": CLOSING, "work": self.work, "owner": items.owner_key(self.owner), "none": 0}
        return values | {"now": round(now, 3)}

    def remove(self) -> None:
        """Remove a session that is closed, its own item last; of two who do, both are done when one is."""
        try:
            self.clear()
            self.table.delete(self.budget, self.partition, items.META, condition=_HELD, **self.mark)
        except (Lost, ConditionFailed):
            log.debug("a session was removed by two at once")

    def undo(self) -> None:
        """Remove what was restored so far, unless somebody else has the session now."""
        closing = replace(self, state=CLOSING)
        update = "SET #state = :closing REMOVE #expires_at"
        try:
            self._update(update, closing=CLOSING)
        except ConditionFailed:  # so does the SDK's re-sending of one whose answer was lost; removing tells
            log.debug("a session that is restored is no longer")
        closing.remove()

    def complete(self, version: int) -> None:
        """Open a session that has been restored; `work` stays and tells who did.

        Raises:
            Lost: somebody else has it.
        """
        try:
            self._update("SET #version = :version REMOVE #state", version=version)
        except ConditionFailed:  # as above
            head = self.table.get(self.budget, self.partition, items.META) or {"state": None}
            if "state" in head or head.get("work") != self.work:
                raise Lost from None

    def _update(self, update: str, **values: Any) -> None:
        values |= self.mark
        self.table.update(self.budget, self.partition, items.META, update=update, condition=_HELD, **values)

    def clear(self) -> None:
        """Remove the requests of a session and its turns: a turn tells its request, so it goes after it.

        Raises:
            Lost: somebody else has it.
        """
        turns = expressions(
            keys="#pk = :pk AND #sk < :meta", projection="#sk, #request_id", pk=self.partition, meta=items.META
        )
        asked: Item = {"ConsistentRead": True} | turns
        while True:
            # What one answer reads is about 1 MB, so a transaction over some of it is never too large.
            rows, last = self.table.page(self.budget, **asked)
            for part in _batched(rows):
                self._forget([str(row["request_id"]) for row in part if "request_id" in row])
                self._write(self.table.drop(self.partition, str(row["sk"])) for row in part)
            if last is None:
                return
            asked["ExclusiveStartKey"] = last

    def _forget(self, requests: list[str]) -> None:
        """Remove what these request ids stand for; one that is another session's by now stays."""
        mine = "attribute_not_exists(#pk) OR #session_id = :session"
        left = list(dict.fromkeys(requests))
        while left:
            keys = [items.request_key(self.owner, request) for request in left]
            others = self._write(self.table.drop(key, items.REQUEST, mine, session=self.session_id) for key in keys)
            left = [request for at, request in enumerate(left) if at not in others] if others else []

    def fill(self, rows: dict[str, Item]) -> None:
        """Put items into the session's partition, in the place of what is there.

        Raises:
            Lost: somebody else has it.
        """
        for part in _parts(self.partition, rows):
            self._write(self.table.put(self.partition, key, rows[key]) for key in part)

    def remember(self, requests: dict[str, Item], now: float) -> str | None:
        """Write requests until one of them is another turn's; return that one.

        Raises:
            Lost: somebody else has the session.
        """
        for part in _batched(list(requests)):
            keys = {name: items.request_key(self.owner, name) for name in part}
            taken = self._write(
                self.table.put(key, items.REQUEST, requests[name], conditions.ABSENT, now=now)
                for name, key in keys.items()
            )
            for at in taken:
                return part[at]
        return None

    def _write(self, actions: Iterable[Action]) -> dict[int, Item | None]:
        """Apply all of the actions, or none, while the session is this work's; see Connection.transact."""
        held = self.table.require(self.partition, items.META, _HELD, **self.mark)
        failed = self.table.transact(self.budget, (held, *actions))
        if 0 in failed:
            raise Lost
        return {at - 1: item for at, item in failed.items()}


def _batched(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield rows, as many together as one transaction takes."""
    for start in range(0, len(rows), _BESIDE):
        yield rows[start : start + _BESIDE]


def _parts(partition: str, rows: dict[str, Item]) -> Iterator[list[str]]:
    """Yield the keys of rows, as many bytes of them together as one transaction takes."""
    part: list[str] = []
    room = _PART_BYTES
    for key, item in rows.items():
        size = size_of(item | {"pk": partition, "sk": key})
        if len(part) == _BESIDE or (part and size > room):
            yield part
            part, room = [], _PART_BYTES
        part.append(key)
        room -= size
    yield part
