"""Stores that a test and the command open side by side: a file, or a table of ministack."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner, Passage, Turn, Usage
from tests import ministack

PASSAGE = Passage("p1", "words of the passage", "Title", "a.md", "Section", 5, 25, 0.25)
DAY = 86400.0


class Place:
    """Where sessions are.

    Attributes:
        flags: what names it on the command line.
        keys: the setting `session_keys` of the command, empty for none.
    """

    def __init__(self, kind: str, request: Any, folder: Any, keys: str = "") -> None:
        self._kind = kind
        self.keys = keys
        if kind == "dynamodb":
            self.address = request.getfixturevalue("dynamodb")
            self.table = ministack.new_table(self.address)
            named = ["--dynamodb-table", self.table, "--dynamodb-endpoint", self.address]
            self.flags = ["--store", "dynamodb", *named]
        else:
            self.file = folder / "sessions.sqlite3"
            self.flags = ["--store", "sqlite", "--home", str(folder)]

    @contextmanager
    def opened(self, **options: Any) -> Iterator[Any]:
        """Open the store; closed with the block."""
        if self._kind == "dynamodb":
            store: Any = DynamoDBStore(self.table, endpoint=self.address, **options)
        else:
            store = SQLiteStore(self.file, **options)
        try:
            yield store
        finally:
            store.close()

    def run(self, work: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        """Do something with the store, opened for it alone."""

        async def awaited(store: Any) -> Any:
            return await work(store)

        with self.opened(**options) as store:
            return asyncio.run(awaited(store))

    def turns(self, owner: Owner, session_id: str) -> tuple[Turn, ...]:
        """Return every turn of a session, hidden ones too."""
        return self.run(lambda store: store.page(owner, session_id, limit=10_000))

    def chatkit(self, *arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess:
        """Run `chatkit sessions` on this place."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "chatkit", "sessions", *arguments, *self.flags],
            env={**os.environ, "CHATKIT_SESSION_KEYS": self.keys},
            input=b"" if given is None else given,
            capture_output=True,
            timeout=120,
            check=False,
        )
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        return done

    def ids(self, *whose: str) -> list[str]:
        """Return the ids that `chatkit sessions list` names, in order."""
        rows = json.loads(self.chatkit("list", "--json", *whose).stdout)["sessions"]
        return sorted(row["session_id"] for row in rows)


async def say(store: Any, owner: Owner, session_id: str, number: int, **more: Any) -> Any:
    """Accept a message and return what the store said."""
    text = more.pop("text", f"question {number} of {owner.user} \x1b[31m漢 \u2028")
    turn = NewTurn(owner, session_id, f"request-{session_id}-{number}", text, len(text), **more)
    return await store.accept(turn)


async def talk(store: Any, owner: Owner, session_id: str, turns: int) -> None:
    """Fill a session with complete turns."""
    for number in range(1, turns + 1):
        accepted = await say(store, owner, session_id, number, after=number - 1)
        outcome = Outcome("complete", "length", f"answer\n{number}", usage=Usage(3, 2), passages=(PASSAGE,))
        await store.finish(accepted.ticket, outcome)


async def talk_of_everything(store: Any, owner: Owner, session_id: str) -> None:
    """Fill a session with one turn of every kind that ends: the last replaces the second."""
    await talk(store, owner, session_id, 1)
    ticket = (await say(store, owner, session_id, 2, after=1)).ticket
    await store.finish(ticket, Outcome("aborted", "aborted", "ans", passages=(PASSAGE,)))
    ticket = (await say(store, owner, session_id, 2, after=2)).ticket
    assert ticket.attempt == 2
    await store.finish(ticket, Outcome("complete", "stop", "answer 2", usage=Usage(30, 2)))
    await say(store, owner, session_id, 3, text="", status="blocked", label="needs caution", after=2)
    ticket = (await say(store, owner, session_id, 4, after=3)).ticket
    await store.finish(ticket, Outcome("blocked", "content_filter", label="needs intervention"))
    ticket = (await say(store, owner, session_id, 5, after=4)).ticket
    await store.finish(ticket, Outcome("aborted", "aborted", ""))
    ticket = (await say(store, owner, session_id, 6, after=5, replaces=2)).ticket
    await store.finish(ticket, Outcome("complete", "stop", "answer 6"))
