"""Every store, opened empty for one test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from chatkit.sessions import items
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.testing import MemoryStore
from tests import encrypted, ministack

STORES = ("memory", "sqlite", "dynamodb", "sqlite encrypted", "dynamodb encrypted")


@contextmanager
def opened(
    kind: str, request: Any, folder: Path, clock: Callable[[], float], retention_s: float | None = None
) -> Iterator[Any]:
    """Open a store; what it holds, as its disk or its server has it, is the text of its `everything()`.

    Its `with_retention(seconds)` is another store over the same sessions, as after a restart with another setting;
    `most` the bytes of its longest message; `encrypted` whether texts in it are no texts to whoever reads it.
    """
    with ExitStack() as stack:
        if kind.endswith(" encrypted"):
            plain = stack.enter_context(opened(kind.split()[0], request, folder, clock, retention_s))
            store = encrypted.around(plain, request, folder, clock, retention_s)
            stack.callback(store.close)
            yield store
            return
        if kind == "memory":
            store: Any = MemoryStore(clock=clock, retention_s=retention_s)
            store.everything = lambda: repr(store._kept.partitions)

            def again(retention_s: float | None) -> Any:
                other = MemoryStore(clock=clock, retention_s=retention_s)
                other._kept = store._kept
                return other
        elif kind == "sqlite":
            file = folder / "sessions.sqlite3"

            def again(retention_s: float | None) -> Any:
                other = SQLiteStore(file, clock=clock, retention_s=retention_s)
                stack.callback(other.close)
                return other

            store = again(retention_s)
            store.everything = lambda: "".join(
                file.read_bytes().decode("utf-8", "replace") for file in folder.glob("sessions.sqlite3*")
            )
        else:
            address = request.getfixturevalue("dynamodb")
            table = ministack.new_table(address)

            def again(retention_s: float | None) -> Any:
                other = DynamoDBStore(table, endpoint=address, clock=clock, retention_s=retention_s)
                stack.callback(other.close)
                return other

            store = again(retention_s)
            store.everything = lambda: ministack.everything_in(address, table)
        store.with_retention, store.most, store.encrypted = again, items.MAX_MESSAGE, False
        yield store
