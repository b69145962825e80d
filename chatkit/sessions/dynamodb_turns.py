"""The verbs of a turn in a DynamoDB table: a query and two transactions, in any number of processes at once."""

import hashlib
import itertools
import math
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chatkit.conversation import Conversation, Newest
from chatkit.errors import Conflict, TooLarge
from chatkit.protocols import Accepted, NewTurn, Outcome, Ticket
from chatkit.sessions import conditions, items, shapes
from chatkit.sessions.attributes import expressions, size_of
from chatkit.sessions.budget import Budget
from chatkit.sessions.conditions import Head
from chatkit.sessions.connection import THREADS, Action, ConditionFailed
from chatkit.sessions.table import Table, key_of
from chatkit.types import FinishReason, Owner

Item = dict[str, Any]

# An item has at most 400 KiB: what the message leaves of it is for the answer and the sources. Bytes.
MAX_ITEM = 400 * 1024
# What a mark that somebody else wrote over may say of the time that an owner is shut out. Seconds.
_LONGEST_MARK_S = 366 * 86400.0
# What tells that a turn stands as it was read, and the place that a request has.
_STANDS = ("request_id", "created_at", "attempt", "status", "lease", "mark")
_PLACE = "#session_id = :session AND #seq = :seq"
# What else a pending turn holds, its keys above all. Bytes.
_MOST_BESIDE = 4096


class Turns:
    """What a TurnStore does, each call within the budget it is given. Its methods wait, in any thread."""

    def __init__(self, table: Table, clock: Callable[[], float], retention_s: float | None) -> None:
        self._table = table
        self._clock = clock
        self._retention_s = retention_s
        # Those of this process who want the next number of one session and did not get it at once ask one by one.
        self._queues = [threading.Lock() for _ in range(2 * THREADS)]
        self._nonce, self._tries = secrets.token_hex(16), itertools.count()

    def load(self, budget: Budget, owner: Owner, session_id: str, limit: int) -> Conversation:
        """Return the newest turns; see protocols.TurnStore."""
        partition = items.session_key(owner, session_id)
        asked: dict[str, Any] = {"Limit": limit + 1, "ScanIndexForward": False, "ConsistentRead": True}
        asked |= expressions(keys="#pk = :pk", pk=partition)
        rows, last = self._table.page(budget, **asked)
        now = self._clock()
        if not rows or rows[0]["sk"] != items.META or conditions.is_gone(rows[0], now):
            if session_id.startswith("s-"):
                raise items.unknown_session(session_id)
            return Conversation()
        head, newest = rows[0], Newest(limit)
        rows = rows[1:]
        while True:
            for turn in filter(None, (conditions.turn_in(row, head, now) for row in rows)):
                newest.take(turn)
            if newest.full or last is None:
                ends = conditions.ends_of(head)
                opened = conditions.opened_in(head)
                return newest.conversation(None if ends == math.inf else ends, head.get("version"), opened)
            asked.pop("Limit", None)  # hidden turns may be many, and an answer holds 1 MB
            rows, last = self._table.page(budget, **asked, ExclusiveStartKey=_after(last, head))

    def accept(self, budget: Budget, turn: NewTurn) -> Accepted:
        """Number the turn durably; see protocols.TurnStore."""
        found = self._as_loaded(budget, turn)
        if isinstance(found, Head):
            found = self._accept_after(budget, turn, found)
        if isinstance(found, Accepted):
            return found
        with budget.lock(self._queues[hash(turn.session_id) % len(self._queues)]):
            found = self._accept_after(budget, turn, found)
            while not isinstance(found, Accepted):
                found = self._accept_after(budget, turn, found)
                if not isinstance(found, Accepted):
                    budget.pause()  # nobody of this process is in the way, so somebody of another is
            return found

    def _as_loaded(self, budget: Budget, turn: NewTurn) -> Head | Accepted:
        """Return how far the session had come when it was loaded; where the turn cannot tell, that is read now."""
        misplaced = turn.replaces is not None and not 1 <= turn.replaces <= turn.after
        if misplaced:  # unless it is a repeat; that is known by its request alone
            request = self._table.get(budget, items.request_key(turn.owner, turn.request_id), items.REQUEST)
            if request is not None and not conditions.is_gone(request, self._clock()):
                return self._accept_again(budget, turn, request)
        elif turn.after or (turn.opened_at is None and (turn.opens_session or not turn.session_id.startswith("s-"))):
            return Head(turn.after, turn.expires_at, turn.opened_at)
        return self._as_found(turn, self._table.get(budget, items.session_key(turn.owner, turn.session_id), items.META))

    def _as_found(self, turn: NewTurn, item: Item | None) -> Head:
        """Return how far a session has come, from its own item, which may not be there."""
        if item is not None and "state" in item:
            raise conditions.being_changed(turn.session_id, item["state"])
        if item is None or conditions.is_gone(item, self._clock()):
            items.check_may_open(turn)
            return Head(0)
        head = conditions.head_in(item)
        items.check_as_loaded(turn, head.version, head.expires_at, head.opened_at)
        return head

    def _accept_after(self, budget: Budget, turn: NewTurn, head: Head) -> Accepted | Head:
        """Accept the turn as the next one; where the session has come further by now, return how far."""
        now, seq = self._clock(), head.version + 1
        items.check_replaces(turn, head.version)
        partition = items.session_key(turn.owner, turn.session_id)
        if head.version:
            condition, values = conditions.same(head)
            counted = self._table.change(
                partition, items.META, "SET #version = :seq", condition, seq=seq, now=now, **values
            )
        else:
            opened = items.new_head(now, self._retention_s) | {"version": seq, "owner": items.owner_key(turn.owner)}
            head = Head(0, opened.get("expires_at"))
            counted = self._table.put(partition, items.META, opened, conditions.NO_SESSION, now=now)
        item = items.begun(items.new_item(turn, seq, now, head.expires_at), now)
        request = items.new_request(turn.session_id, seq, now, head.expires_at)
        request_key = items.request_key(turn.owner, turn.request_id)
        failed = self._table.transact(
            budget,
            (
                counted,
                self._table.put(partition, items.turn_key(seq), item, conditions.ABSENT, now=now),
                self._table.put(request_key, items.REQUEST, request, conditions.ABSENT, now=now),
                self._not_shut_out(turn.owner, now),
            ),
            self._tokens("accept", turn.owner, turn.request_id, 1, seq),
        )
        if not failed:
            return Accepted(turn.session_id, items.ticket_for(turn, turn.session_id, item))
        if 3 in failed:
            raise items.shut_out(_end_of(failed[3], now))
        if 2 in failed:
            return self._accept_again(budget, turn, failed[2])
        if 0 not in failed:  # a turn without its session
            raise Conflict(
                f"the removal of session {turn.session_id!r} was not ended; remove it again, or name another one"
            )
        return self._as_found(turn, failed[0])

    def _not_shut_out(self, owner: Owner, now: float) -> Action:
        return self._table.require(items.owner_mark_key(owner), items.OWNER, conditions.ABSENT, now=now)

    def _accept_again(self, budget: Budget, turn: NewTurn, request: Item | None) -> Accepted:
        """Answer a request id that is known: replay what is finished, run again what was aborted."""
        while True:
            session_id, seq = conditions.place_in(request)
            partition, key = items.session_key(turn.owner, session_id), items.turn_key(seq)
            item = self._table.get(budget, partition, key)
            head = self._table.get(budget, partition, items.META)
            now = self._clock()
            if item is None or head is None or conditions.is_gone(item, now) or conditions.is_gone(head, now):
                raise items.removed_session(turn.request_id)
            if not shapes.is_sound(key, item):
                raise conditions.damaged(key, "send a new request_id")
            stored = items.answer_again(turn, session_id, item, expired=items.lease_is_over(item, now))
            if stored.status != "aborted":
                return Accepted(session_id, repeat=stored)
            items.check_as_opened(turn, head.get("created_at"))
            again = items.new_item(turn, seq, now, item.get("expires_at"))
            again = items.begun(again | {"attempt": stored.attempt + 1, "created_at": stored.created_at}, now)
            failed = self._take_over(budget, turn, item, head, again, now)
            if not failed:
                return Accepted(session_id, items.ticket_for(turn, session_id, again))
            if 2 in failed:
                raise items.shut_out(_end_of(failed[2], now))
            request = failed.get(3, request)
            if request is None or conditions.is_gone(request, now):
                raise items.removed_session(turn.request_id)
            budget.pause()  # somebody else took it, or removed it

    def _take_over(
        self, budget: Budget, turn: NewTurn, item: Item, head: Item, again: Item, now: float
    ) -> dict[int, Item | None]:
        """Put a turn in the place of an ended attempt, where that, its session and its request stand as they were read.

        Returns:
            What did not: 0 the attempt, 1 its session, 3 its request; and 2 where the owner is shut out.
        """
        seen = {name: item[name] for name in _STANDS if name in item}
        unchanged = [f"#{name} = :{name}" if name in seen else f"attribute_not_exists(#{name})" for name in _STANDS]
        opened, values = conditions.opened_at(conditions.opened_in(head))
        place = {"session": items.session_id_of(item["pk"]), "seq": item["seq"]}
        request_key = items.request_key(turn.owner, turn.request_id)
        return self._table.transact(
            budget,
            (
                self._table.put(item["pk"], item["sk"], again, " AND ".join(unchanged), **seen),
                self._table.require(item["pk"], items.META, opened, now=now, **values),
                self._not_shut_out(turn.owner, now),
                self._table.require(request_key, items.REQUEST, _PLACE, **place),
            ),
            self._tokens("take over", turn.owner, turn.request_id, again["attempt"], again["seq"]),
        )

    def renew(self, budget: Budget, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
        now = self._clock()
        lease = items.leased({"status": "pending"}, now)["lease"]
        condition, values = conditions.mine(ticket)
        values |= {"lease": lease, "now": now}
        try:
            self._table.update(budget, partition, key, update="SET #lease = :lease", condition=condition, **values)
        except ConditionFailed:
            raise items.not_owned(ticket) from None

    def finish(self, budget: Budget, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended; see protocols.TurnStore.

        Raises:
            TooLarge: message, answer and sources are more than an item holds: it is stored as aborted, cut to fit.
        """
        partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
        fitting = self._fitting(budget, partition, key, outcome)
        written, now = items.ended({}, fitting), self._clock()
        update = f"SET {', '.join(f'#{name} = :{name}' for name in written)} REMOVE #lease"
        condition, values = conditions.mine(ticket)
        failed = self._table.transact(
            budget,
            (
                self._table.change(partition, key, update, condition, now=now, **written, **values),
                self._table.require(partition, items.META, conditions.SESSION, now=now),
            ),
            self._tokens("finish", ticket.owner, ticket.request_id, ticket.attempt, ticket.seq),
        )
        stored = failed.get(0)
        if failed and not (stored and 1 not in failed and _is_written(ticket, stored, written)):
            raise items.not_owned(ticket)
        if outcome.status == "complete" and fitting is not outcome:
            raise TooLarge(
                f"message, answer and sources have more than the {MAX_ITEM} bytes that the session store takes of a "
                "turn, so it is stored as aborted and its answer cut; send a shorter message or lower max_new_tokens"
            )

    def _fitting(self, budget: Budget, partition: str, key: str, outcome: Outcome) -> Outcome:
        """Return the outcome as the turn's item can hold it: a larger one is aborted, without sources, and cut."""
        if size_of(items.ended({}, outcome)) + items.MAX_MESSAGE + _MOST_BESIDE <= MAX_ITEM:
            return outcome  # whatever the message is; nearly every turn
        item = self._table.get(budget, partition, key) or {}
        if size_of(items.ended(item, outcome)) <= MAX_ITEM:
            return outcome
        reason: FinishReason = "length" if outcome.status == "complete" else outcome.finish_reason
        bare = replace(outcome, status="aborted", finish_reason=reason, assistant="", passages=())
        room = MAX_ITEM - size_of(items.ended(item, bare))
        return replace(bare, assistant=outcome.assistant.encode()[:room].decode("utf-8", "ignore"))

    def _tokens(self, step: str, owner: Owner, request_id: str, attempt: int, seq: int) -> Callable[[], str]:
        """Return what makes the token of each try of a step; no other try of any store has the same, see decision 0008.

        The SDK sends one try under one token however often it sends it, and DynamoDB applies that once.
        """
        whose = (self._nonce, items.owner_key(owner), request_id, attempt, seq, step)
        return lambda: hashlib.sha256(repr((*whose, next(self._tries))).encode()).hexdigest()[:36]


def _after(last: dict[str, Any], head: Item) -> dict[str, Any]:
    """Return where a load goes on after `last`; what an older, longer session of the same name left is not read."""
    version = head.get("version")
    top = items.turn_key(version + 1) if type(version) is int else last["sk"]["S"]
    return key_of(head["pk"], min(top, last["sk"]["S"]))


def _end_of(mark: Item | None, now: float) -> float:
    """Return until when a mark shuts its owner out, as far as it can be said."""
    return min(conditions.ends_of(mark or {}), now + _LONGEST_MARK_S)


def _is_written(ticket: Ticket, stored: Item, written: Item) -> bool:
    """Whether a turn stands as this finish meant to leave it: its own write, whose acknowledgement was lost."""
    names = {*written, "assistant", "passages", "blocked", "label"}
    return items.same_attempt(ticket, stored) and all(stored.get(name) == written.get(name) for name in names)
