"""Every store, opened empty for one test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.testing import MemoryStore
from tests import ministack

STORES = ("memory", "sqlite", "dynamodb")


@contextmanager
def opened(kind: str, request: Any, folder: Path, clock: Callable[[], float]) -> Iterator[Any]:
    """Open a store; what it holds, as its disk or its server has it, is the text of its `everything()`."""
    if kind == "memory":
        store: Any = MemoryStore(clock=clock)
        store.everything = lambda: repr((store._heads, store._turns, store._requests))
    elif kind == "sqlite":
        store = SQLiteStore(folder / "sessions.sqlite3", clock=clock)
        store.everything = lambda: "".join(
            file.read_bytes().decode("utf-8", "replace") for file in folder.glob("sessions.sqlite3*")
        )
    else:
        address = request.getfixturevalue("dynamodb")
        table = ministack.new_table(address)
        store = DynamoDBStore(table, endpoint=address, clock=clock)
        store.everything = lambda: ministack.everything_in(address, table)
    try:
        yield store
    finally:
        store.close()
