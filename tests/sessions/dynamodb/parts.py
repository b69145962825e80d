"""What the tests of the DynamoDB store say in one line."""

import subprocess
import sys

from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions.attributes import encode_item
from chatkit.sessions.table import key_of
from chatkit.types import Owner, Usage

OWNER = Owner()
DONE = Outcome("complete", "stop", "Hi.", usage=Usage(3, 2))


def new(number=1, text="Hello", session_id="my-session", after=0, **more) -> NewTurn:
    return NewTurn(OWNER, session_id, f"request-{number}", text, len(text), after=after, **more)


async def talk(store, count, session_id="my-session", first=1) -> None:
    """Have turns `first` and on, with request ids of their own for each session."""
    for number in range(first, first + count):
        turn = NewTurn(OWNER, session_id, f"{session_id}-{number}", "Hello", 5, after=number - 1)
        await store.finish((await store.accept(turn)).ticket, DONE)


async def seqs(store, session_id="my-session") -> list[int]:
    return [turn.seq for turn in await store.load(OWNER, session_id, limit=999)]


def write_over(store, partition: str, key: str, **item) -> None:
    """Put an item as another program might."""
    store._table.client.put_item(TableName=store._table.name, Item=key_of(partition, key) | encode_item(item))


def python(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True)
