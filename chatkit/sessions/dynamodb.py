"""Sessions in one DynamoDB table, for any number of processes at once."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from chatkit.conversation import Conversation
from chatkit.errors import ConfigError, StoreFailed
from chatkit.protocols import CLOSED_S, Accepted, NewTurn, Outcome, SessionList, Ticket
from chatkit.sessions import items, whole
from chatkit.sessions.budget import TRIES, Budget
from chatkit.sessions.connection import THREADS
from chatkit.sessions.dynamodb_archive import Archive
from chatkit.sessions.dynamodb_check import Check
from chatkit.sessions.dynamodb_turns import Turns
from chatkit.sessions.table import Table
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
T = TypeVar("T")

# What a call may take in all, seconds; removing or restoring a long session takes many, and their tries.
_BUDGET_S, _LONG_S, _MANY_TRIES = 5.0, 60.0, 100
# The index follows the table by a moment, so a list that is empty once proves nothing. Lists without anything new
# before everything counts as found, and the seconds between two of them.
_QUIET_LISTS, _INDEX_LAG_S = 3, 0.5
# How long an owner is shut out by a removal that broke off, unless it is run again. Seconds.
_PURGING_S = 30 * 86400.0


class DynamoDBStore:
    """A TurnStore and SessionArchive in one table. Calls wait in threads that the store owns.

    Args:
        table: its name; `create_table` makes it.
        region: AWS region; empty takes what the AWS settings say.
        endpoint: address of another server than AWS; empty for AWS.
        retention_s: how long a session is kept from its first turn on; None for ever.

    Raises:
        MissingExtra: boto3 is not installed.
        ConfigError: the table, credentials, region or permission are missing.
        StoreFailed: nobody answers.
    """

    def __init__(
        self,
        table: str,
        *,
        region: str = "",
        endpoint: str = "",
        clock: Callable[[], float] = time.time,
        retention_s: float | None = None,
    ) -> None:
        self._table = Table(table, region=region, endpoint=endpoint)
        self._turns = Turns(self._table, clock, retention_s)
        self._archive = Archive(self._table, clock)
        self._check = Check(self._table, clock)
        self._executor = ThreadPoolExecutor(THREADS, "dynamodb")
        try:
            self._table.check()
        except BaseException:
            self.close()
            raise

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns; see protocols.TurnStore."""
        return await self._run(lambda budget: self._turns.load(budget, owner, session_id, limit))

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn durably; see protocols.TurnStore."""
        items.check_message(turn)
        return await self._run(lambda budget: self._turns.accept(budget, turn))

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        await self._run(lambda budget: self._turns.renew(budget, ticket))

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended; see protocols.TurnStore.

        Raises:
            TooLarge: message, answer and sources are more than an item holds: it is stored as aborted, cut to fit.
        """
        await self._run(lambda budget: self._turns.finish(budget, ticket, outcome))

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions, a moment behind; see protocols.SessionArchive."""
        start = None if cursor is None else items.position_of(owner, cursor)
        return await self._run(lambda budget: self._archive.sessions(budget, owner, limit, start))

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first; see protocols.SessionArchive."""
        return await self._run(lambda budget: self._archive.page(budget, owner, session_id, limit, after))

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Remove a session; see protocols.SessionArchive."""
        await self._delete(owner, session_id)

    async def _delete(self, owner: Owner, session_id: str) -> bool | None:
        return await self._run_long(lambda budget: self._archive.delete(budget, owner, session_id))

    async def withdraw(self, ticket: Ticket) -> bool:
        """Remove a session that has the ticket's turn alone, where that waits to be finished; whether it did."""
        return await self._run(lambda budget: self._archive.withdraw(budget, ticket))

    async def purge(self, owner: Owner, *, closed_s: float = CLOSED_S) -> int:
        """Remove everything of an owner, session by session; see protocols.SessionArchive."""
        await self._run(lambda budget: self._archive.shut_out(budget, owner, _PURGING_S))
        removed = quiet = 0
        while True:
            named = await self._run_long(lambda budget: self._archive.named(budget, owner))
            found = [kept for kept in [await self._delete(owner, name) for name in named] if kept is not None]
            removed, quiet = removed + sum(found), 0 if found else quiet + 1
            if quiet == _QUIET_LISTS:
                break
            if not found:
                await asyncio.sleep(_INDEX_LAG_S)
        await self._run(lambda budget: self._archive.shut_out(budget, owner, closed_s))
        return removed

    async def restore(self, owner: Owner, session_id: str, turns: Sequence[Turn], *, expires_at: float | None) -> None:
        """Write a session, its turns in batches; see protocols.SessionArchive.

        Raises:
            TooLarge: a turn is more than an item holds.
        """
        whole.check_restorable(session_id, turns)
        await self._run_long(lambda budget: self._archive.restore(budget, owner, session_id, turns, expires_at))

    async def check_owner(self, owner: Owner) -> tuple[str, ...]:
        """Return a sentence for each thing that is wrong with an owner's sessions beside their turns.

        Removals and restorings that broke off are found by it, which no list shows; those that go on are named too.

        Raises:
            StoreFailed: the store could not be read.
        """
        found = list(await self._run(lambda budget: self._check.owner(budget, owner)))
        for session_id in await self._run_long(lambda budget: self._archive.named(budget, owner)):
            found += await self._run_long(partial(self._check.session, owner=owner, session_id=session_id))
        return tuple(found)

    def close(self) -> None:
        """Wait for what runs and close the connections."""
        self._executor.shutdown()
        self._table.close()

    async def _run_long(self, work: Callable[[Budget], T]) -> T:
        return await self._run(work, _LONG_S, tries=_MANY_TRIES)

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
