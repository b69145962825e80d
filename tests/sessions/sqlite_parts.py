"""What tests of the SQLite store share: turns, damage done behind its back, and scripts in processes of their own."""

import subprocess
import sys
from contextlib import closing

from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import records, sqlite_file, sqlite_rows
from chatkit.types import Owner

OWNER = Owner()
PREAMBLE = """
import asyncio, sys
from pathlib import Path
from chatkit.errors import StoreFailed
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
def new(text, number, session="my-session"):
    return NewTurn(Owner(), session, f"request-{number}", text, len(text))
"""


def new(text: str, number, session: str = "my-session", owner: Owner = OWNER) -> NewTurn:
    return NewTurn(owner, session, f"request-{number}", text, len(text))


async def fill(store, count: int, size: int = 5) -> None:
    for number in range(1, count + 1):
        accepted = await store.accept(new("q" * size, number))
        await store.finish(accepted.ticket, Outcome("complete", "stop", f"a{number}"))


def fill_in_bulk(
    file, session: str, count: int, *, owner: Owner = OWNER, now: float = 1000.0, text: str = "q", retention_s=None
) -> None:
    """Write turns as the store does, in one transaction."""
    with closing(sqlite_file.open_file(file)) as connection:
        rows = sqlite_rows.Rows(connection)
        connection.execute("BEGIN IMMEDIATE")
        for number in range(1, count + 1):
            turn = NewTurn(owner, session, f"request-{session}-{number}", f"{text}{number}", len(f"{text}{number}"))
            ticket = records.accept(rows, turn, now + number / 1000, retention_s).ticket
            records.finish(rows, ticket, Outcome("complete", "stop", f"a{number}"), now + number / 1000)
        connection.execute("COMMIT")


def behind_its_back(file, statement: str, *values) -> int:
    """Run one statement on the file and return how many rows it changed."""
    with closing(sqlite_file.connect(file)) as connection:
        return connection.execute(statement, values).rowcount


def python(script: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
