"""The server that the killer kills, with a fault planted in its store: `-m tests.faults.lossy_serve early|drops`."""

import asyncio
import itertools
import sys

from chatkit import wiring
from chatkit.cli import _scripted_serve

# Longer than most servers live. Seconds.
LATE = 0.6
# One in so many is never written; few end between two kills on a busy machine.
DROPPED = 5


class Lossy:
    """A store that acknowledges the end of a turn before it writes it, or never writes one in 5."""

    def __init__(self, store, fault: str) -> None:
        self._store, self._fault = store, fault
        self._numbers, self._tasks = itertools.count(1), set()

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    async def finish(self, ticket, outcome) -> None:
        if self._fault == "early":
            task = asyncio.create_task(self._later(ticket, outcome))
            self._tasks.add(task)
        elif next(self._numbers) % DROPPED:
            await self._store.finish(ticket, outcome)

    async def _later(self, ticket, outcome) -> None:
        await asyncio.sleep(LATE)
        await self._store.finish(ticket, outcome)


if __name__ == "__main__":
    planted = sys.argv.pop(1)
    if planted == "dies":
        sys.stderr.write("the planted end\n")
        sys.exit(3)
    _scripted_serve.main(lambda settings: Lossy(wiring.open_store(settings), planted))
