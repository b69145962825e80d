"""Turns in one DynamoDB table: a query and two transactions a turn, in any number of processes at once."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from chatkit.conversation import Conversation
from chatkit.errors import ConfigError, Conflict, StoreFailed, TooLarge
from chatkit.protocols import Accepted, NewTurn, Outcome, SessionList, Ticket
from chatkit.sessions import items
from chatkit.sessions.attributes import encode_item, expressions, size_of
from chatkit.sessions.budget import TRIES, Budget
from chatkit.sessions.table import INDEX, THREADS, Action, ConditionFailed, Table
from chatkit.types import FinishReason, Owner, Turn

log = logging.getLogger(__name__)
T = TypeVar("T")
Item = dict[str, Any]

# What a call may take in all, seconds; removing a long session takes many.
_BUDGET_S, _DELETE_S = 5.0, 60.0
# An item has at most 400 KiB: what the message leaves of it is for the answer and the sources. Bytes.
_MAX_ITEM, _MAX_MESSAGE = 400 * 1024, 256 * 1024
# What else a pending turn holds, its keys above all. Bytes.
_MOST_BESIDE = 4096
_ABSENT = "attribute_not_exists(#pk)"
_MINE = "#attempt = :own_attempt AND #request_id = :own_request AND #status = :pending"


class DynamoDBStore:
    """A TurnStore and SessionArchive in one table. Calls wait in threads that the store owns.

    Args:
        table: its name; `create_table` makes it.
        region: AWS region; empty takes what the AWS settings say.
        endpoint: address of another server than AWS; empty for AWS.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: the table, credentials, region or permission are missing.
        StoreFailed: nobody answers.
    """

    def __init__(
        self, table: str, *, region: str = "", endpoint: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self._table = Table(table, region=region, endpoint=endpoint)
        self._clock = clock
        self._executor = ThreadPoolExecutor(THREADS, "dynamodb")
        # Those of this process who want the next number of one session and did not get it at once ask one by one.
        self._queues = [threading.Lock() for _ in range(2 * THREADS)]
        try:
            self._table.check()
        except BaseException:
            self.close()
            raise

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns; see protocols.TurnStore."""
        return await self._run(lambda budget: self._load(budget, owner, session_id, limit))

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn durably; see protocols.TurnStore.

        Raises:
            TooLarge: the message leaves no room for an answer in an item.
        """
        size = len(turn.user.encode())
        if size > _MAX_MESSAGE:
            raise TooLarge(f"the message has {size} bytes, at most {_MAX_MESSAGE} are taken by the session store")
        return await self._run(lambda budget: self._accept(budget, turn))

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        await self._run(lambda budget: self._renew(budget, ticket))

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended; see protocols.TurnStore.

        Raises:
            TooLarge: message, answer and sources are more than an item holds: it is stored as aborted, cut to fit.
        """
        await self._run(lambda budget: self._finish(budget, ticket, outcome))

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions, a moment behind; see protocols.SessionArchive."""
        start = None if cursor is None else items.position_of(owner, cursor)
        return await self._run(lambda budget: self._sessions(budget, owner, limit, start))

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first; see protocols.SessionArchive."""
        return await self._run(lambda budget: self._page(budget, owner, session_id, limit, after))

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Remove a session; see protocols.SessionArchive."""
        await self._run(lambda budget: self._delete(budget, owner, session_id), _DELETE_S, tries=100)

    def close(self) -> None:
        """Wait for what runs and close the connections."""
        self._executor.shutdown()
        self._table.close()

    async def _run(self, work: Callable[[Budget], T], seconds: float = _BUDGET_S, *, tries: int = TRIES) -> T:
        """Run one call in a thread; one that takes too long goes on there, and ends at its next step."""
        budget = Budget(seconds, tries=tries)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work, budget)
        except ConfigError as error:
            # A setting that is wrong now was right when the store was opened, and may be again.
            log.error("%s", error)
            raise StoreFailed("the session store is not set up; the operator's log says why") from error
        except TimeoutError as error:
            log.error("DynamoDB table %s: a call took more than %g s", self._table.name, seconds)
            raise StoreFailed("the session store did not answer in time; send the request again later") from error
        except StoreFailed as error:
            self._table.log_cause(error)
            raise

    def _load(self, budget: Budget, owner: Owner, session_id: str, limit: int) -> Conversation:
        key = expressions(keys="#pk = :pk", pk=items.session_key(owner, session_id))
        rows = list(self._table.query(budget, limit=limit + 1, ScanIndexForward=False, ConsistentRead=True, **key))
        if not rows or rows[0]["sk"] != items.META:
            if session_id.startswith("s-"):
                raise items.unknown_session(session_id)
            return Conversation()
        return Conversation(self._turns(reversed(rows[1:])))

    def _accept(self, budget: Budget, turn: NewTurn) -> Accepted:
        version = turn.after
        if not version and turn.session_id.startswith("s-") and not turn.opens_session:
            version = self._version(budget, turn.owner, turn.session_id)
        found = self._accept_after(budget, turn, version)
        if isinstance(found, Accepted):
            return found
        with budget.lock(self._queues[hash(turn.session_id) % len(self._queues)]):
            found = self._accept_after(budget, turn, found)
            while not isinstance(found, Accepted):
                found = self._accept_after(budget, turn, found)
                if not isinstance(found, Accepted):
                    budget.pause()  # nobody of this process is in the way, so somebody of another is
            return found

    def _accept_after(self, budget: Budget, turn: NewTurn, version: int) -> Accepted | int:
        """Accept the turn as the one after `version`; where the session has another version by now, return that."""
        now, seq = self._clock(), version + 1
        partition = items.session_key(turn.owner, turn.session_id)
        request = {"session_id": turn.session_id, "seq": seq}
        failed = self._table.transact(
            budget,
            self._next_head(turn.owner, partition, seq, now),
            self._table.put(partition, items.turn_key(seq), self._pending(turn, seq, now), _ABSENT),
            self._table.put(items.request_key(turn.owner, turn.request_id), items.REQUEST, request, _ABSENT),
        )
        if not failed:
            return Accepted(turn.session_id, Ticket(turn.owner, turn.session_id, seq, turn.request_id, 1))
        if 2 in failed:
            return self._accept_again(budget, turn, failed[2])
        if 0 not in failed:  # a turn without its session
            raise Conflict(
                f"the removal of session {turn.session_id!r} was not ended; remove it again, or name another one"
            )
        head = failed[0]
        if head is None:
            items.check_may_open(turn)
        return int(head["version"]) if head else 0

    def _version(self, budget: Budget, owner: Owner, session_id: str) -> int:
        head = self._table.get(budget, items.session_key(owner, session_id), items.META)
        if head is None:
            raise items.unknown_session(session_id)
        return int(head["version"])

    def _next_head(self, owner: Owner, partition: str, seq: int, now: float) -> Action:
        """Return the action that opens a session, or counts the next turn of one that has come no further."""
        if seq == 1:
            head = {"version": 1, "created_at": round(now, 3), "owner": items.owner_key(owner)}
            return self._table.put(partition, items.META, head, _ABSENT)
        update, condition = "SET #version = :seq", "#version = :before"
        return self._table.change(partition, items.META, update, condition, seq=seq, before=seq - 1)

    def _pending(self, turn: NewTurn, seq: int, now: float) -> Item:
        item = items.new_item(turn, seq, now)
        return item | {"lease": self._lease(now)} if turn.status == "pending" else item

    def _accept_again(self, budget: Budget, turn: NewTurn, request: Item | None) -> Accepted:
        """Answer a request id that is known: replay what is finished, run again what was aborted."""
        if request is None:
            raise AssertionError("a request that is known has an item")
        session_id, seq = str(request["session_id"]), int(request["seq"])
        partition, key = items.session_key(turn.owner, session_id), items.turn_key(seq)
        while True:
            item = self._table.get(budget, partition, key)
            if item is None or self._table.get(budget, partition, items.META) is None:
                raise items.removed_session(session_id)
            now = self._clock()
            stored = items.answer_again(turn, session_id, item, expired=_expired(item, now))
            if stored.status != "aborted":
                return Accepted(session_id, repeat=stored)
            attempt = stored.attempt + 1
            again = self._pending(turn, seq, now) | {"attempt": attempt, "created_at": stored.created_at}
            failed = self._table.transact(
                budget, self._take_over(partition, key, item, again), self._table.require(partition, items.META)
            )
            if not failed:
                return Accepted(session_id, Ticket(turn.owner, session_id, seq, turn.request_id, attempt))
            budget.pause()  # somebody else took it, or removed it

    def _take_over(self, partition: str, key: str, item: Item, again: Item) -> Action:
        """Return the action that puts a turn in the place of an ended attempt that stands as it was read."""
        seen = {name: item[name] for name in ("attempt", "status", "lease") if name in item}
        unchanged = [f"#{name} = :{name}" for name in seen]
        if "lease" not in seen:
            unchanged.append("attribute_not_exists(#lease)")
        return self._table.put(partition, key, again, " AND ".join(unchanged), **seen)

    def _renew(self, budget: Budget, ticket: Ticket) -> None:
        partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
        lease = self._lease(self._clock())
        try:
            self._table.update(
                budget, partition, key, update="SET #lease = :lease", condition=_MINE, lease=lease, **_mine(ticket)
            )
        except ConditionFailed:
            raise items.not_owned(ticket) from None

    def _finish(self, budget: Budget, ticket: Ticket, outcome: Outcome) -> None:
        partition, key = items.session_key(ticket.owner, ticket.session_id), items.turn_key(ticket.seq)
        fitting = self._fitting(budget, partition, key, outcome)
        written = items.ended({}, fitting)
        update = f"SET {', '.join(f'#{name} = :{name}' for name in written)} REMOVE #lease"
        failed = self._table.transact(
            budget,
            self._table.change(partition, key, update, _MINE, **written, **_mine(ticket)),
            self._table.require(partition, items.META),
        )
        stored = failed.get(0)
        if failed and not (stored and 1 not in failed and _is_written(ticket, stored, written)):
            raise items.not_owned(ticket)
        if outcome.status == "complete" and fitting is not outcome:
            raise TooLarge(
                f"message, answer and sources have more than the {_MAX_ITEM} bytes that the session store takes of a "
                "turn, so it is stored as aborted and its answer cut; send a shorter message or lower max_new_tokens"
            )

    def _fitting(self, budget: Budget, partition: str, key: str, outcome: Outcome) -> Outcome:
        """Return the outcome as the turn's item can hold it: a larger one is aborted, without sources, and cut."""
        if size_of(items.ended({}, outcome)) + _MAX_MESSAGE + _MOST_BESIDE <= _MAX_ITEM:
            return outcome  # whatever the message is; nearly every turn
        item = self._table.get(budget, partition, key) or {}
        if size_of(items.ended(item, outcome)) <= _MAX_ITEM:
            return outcome
        reason: FinishReason = "length" if outcome.status == "complete" else outcome.finish_reason
        bare = replace(outcome, status="aborted", finish_reason=reason, assistant="", passages=())
        room = _MAX_ITEM - size_of(items.ended(item, bare))
        return replace(bare, assistant=outcome.assistant.encode()[:room].decode("utf-8", "ignore"))

    def _lease(self, now: float) -> float:
        return round(now + items.LEASE_S, 3)

    def _turns(self, rows: Iterable[Item]) -> tuple[Turn, ...]:
        now = self._clock()
        return tuple(turn for turn in (_decoded(row, now) for row in rows) if turn is not None)

    def _sessions(self, budget: Budget, owner: Owner, limit: int, start: tuple[float, str] | None) -> SessionList:
        more: dict[str, Any] = expressions(keys="#owner = :owner", owner=items.owner_key(owner))
        if start is not None:
            last = {"pk": items.session_key(owner, start[1]), "sk": items.META}
            more["ExclusiveStartKey"] = encode_item(last | {"owner": items.owner_key(owner), "created_at": start[0]})
        rows = self._table.query(budget, limit=limit + 1, IndexName=INDEX, ScanIndexForward=False, **more)
        listed = [items.head_of(row["pk"], row | {"version": 0}) for row in rows]
        now = self._table.heads(
            budget, [items.session_key(owner, row.session_id) for row in listed[:limit]], items.META
        )
        found = tuple(items.head_of(key, head) for key, head in now.items())
        return SessionList(found, items.cursor_of(owner, listed[limit - 1]) if listed[limit:] else None)

    def _page(self, budget: Budget, owner: Owner, session_id: str, limit: int, after: int) -> tuple[Turn, ...]:
        newest = self._version(budget, owner, session_id)
        if after >= newest:
            return ()
        between = expressions(
            keys="#pk = :pk AND #sk BETWEEN :first AND :last",
            pk=items.session_key(owner, session_id),
            first=items.turn_key(after + 1),
            last=items.turn_key(newest),
        )
        return self._turns(self._table.query(budget, limit=limit, ConsistentRead=True, **between))

    def _delete(self, budget: Budget, owner: Owner, session_id: str) -> None:
        """Remove the session's own item, so that nothing more is stored, then requests, then turns.

        A turn tells its request, so it goes after it; the first turn goes last, for nobody can open a session of that
        name while it is there.
        """
        partition = items.session_key(owner, session_id)
        self._table.remove(budget, [(partition, items.META)])
        wanted = expressions(keys="#pk = :pk", projection="#pk, #sk, #request_id", pk=partition)
        rows = list(self._table.query(budget, ScanIndexForward=False, ConsistentRead=True, **wanted))
        requests = [str(row["request_id"]) for row in rows if "request_id" in row]
        self._table.remove(budget, [(items.request_key(owner, request), items.REQUEST) for request in requests])
        self._table.remove(budget, [(partition, row["sk"]) for row in rows[:-1]])
        self._table.remove(budget, [(partition, row["sk"]) for row in rows[-1:]])


def _mine(ticket: Ticket) -> dict[str, Any]:
    """Return the values of `_MINE`."""
    return {"own_attempt": ticket.attempt, "own_request": ticket.request_id, "pending": "pending"}


def _is_written(ticket: Ticket, stored: Item, written: Item) -> bool:
    """Whether a turn stands as this finish meant to leave it: its own write, whose acknowledgement was lost."""
    names = {*written, "assistant", "passages", "blocked", "label"}
    return items.same_attempt(ticket, stored) and all(stored.get(name) == written.get(name) for name in names)


def _expired(item: Item, now: float) -> bool:
    return "lease" in item and float(item["lease"]) < now


def _decoded(item: Item, now: float) -> Turn | None:
    """Return a turn, or None for one that another program has written over: it does not hide the rest."""
    try:
        return items.turn_of(item, expired=_expired(item, now))
    except (ValueError, KeyError, TypeError):
        log.error("turn %s of a session is damaged and left out", item.get("sk"))
        return None
