"""Writers of several processes at once on one session, each of which keeps a ledger of what the store acknowledged."""

import asyncio
import json
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatkit import child_python, wiring
from chatkit.errors import Conflict, InvalidRequest, StoreFailed, Unavailable
from chatkit.evaluation.ledger import Acknowledged, Asked, Ledger
from chatkit.protocols import NewTurn, Outcome, TurnStore
from chatkit.settings import Settings
from chatkit.types import Owner

# What Python runs for each process of writers.
_PROGRAM = child_python.run_module("chatkit.evaluation.races")
# A writer gives a request up after this long; a taken-over turn waits for a lease of 15 s. Seconds.
_PATIENCE = 120.0
# The longest that an answer takes to be made. Seconds.
_ANSWER_S = 0.02
# Between two looks at a request that somebody else is answering. Seconds.
_PAUSE = 0.01


@dataclass(frozen=True, slots=True)
class RaceBench:
    """What is done: so many runs of `processes` × `writers` writers with `turns` turns each on one session.

    Attributes:
        shared: requests that every writer of every process sends at once, before its own.
    """

    runs: int = 1
    processes: int = 2
    writers: int = 3
    turns: int = 50
    shared: int = 5

    def __post_init__(self) -> None:
        """Check every bound."""
        if min(self.runs, self.processes, self.writers, self.turns) < 1 or self.shared < 0:
            raise InvalidRequest(f"the races are {self}, expected numbers of at least 1")


async def race(store: TurnStore, bench: RaceBench, run: str, name: str) -> tuple[list[Asked], list[Acknowledged]]:
    """Let the writers of one process write at once.

    Args:
        run: names the session and begins every request id.
        name: of the process, so that its own requests are nobody else's.
    """
    asked: list[Asked] = []
    answers: list[Acknowledged] = []

    async def write(writer: int) -> None:
        own = [f"{run}-shared-{number}" for number in range(bench.shared)]
        own += [f"{run}-{name}-{writer}-{number}" for number in range(bench.turns)]
        for request_id in own:
            asked.append(Asked(request_id, f"{run}-session", f"Message {request_id}"))
            answers.append(await _answered(store, asked[-1]))

    await asyncio.gather(*(write(writer) for writer in range(bench.writers)))
    return asked, answers


async def _answered(store: TurnStore, asked: Asked) -> Acknowledged:
    """Ask until there is an answer, as a client does that sends a request again.

    Raises:
        Unavailable: there was none in two minutes.
    """
    session_id, until = asked.session_id or "", time.monotonic() + _PATIENCE
    answer = f"Answer {secrets.token_hex(8)}"
    while time.monotonic() < until:
        try:
            kept = await store.load(Owner(), session_id, limit=4)
            new = NewTurn(Owner(), session_id, asked.request_id, asked.text, len(asked.text), after=kept.newest)
            accepted = await store.accept(new)
            if accepted.repeat is not None:
                return Acknowledged(asked.request_id, session_id, accepted.repeat.seq, accepted.repeat.assistant)
            if accepted.ticket is None:
                raise AssertionError("accept returns a ticket or a repeat")
            await asyncio.sleep(random.uniform(0, _ANSWER_S))  # others come in between, as in a service
            await store.finish(accepted.ticket, Outcome("complete", "stop", answer))
            return Acknowledged(asked.request_id, session_id, accepted.ticket.seq, answer)
        except (Conflict, StoreFailed):  # another writer is answering it, or the store is busy
            await asyncio.sleep(_PAUSE)
    raise Unavailable(f"request {asked.request_id} got no answer in {_PATIENCE:g} s")


def race_processes(settings: Mapping[str, Any], bench: RaceBench, run: str, ledger: Ledger) -> None:
    """Start the processes, let all begin at once when each has opened the store, and write down what they were told.

    Raises:
        Unavailable: one of them failed; the message holds its last words.
    """
    jobs = [json.dumps([dict(settings), asdict(bench), run, f"p{number}"]) for number in range(bench.processes)]
    started = [
        subprocess.Popen(
            [sys.executable, *_PROGRAM, job],
            env=child_python.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for job in jobs
    ]
    try:
        for process in started:
            if process.stdout is None or process.stdout.readline() != b"open\n":
                raise _failure(process)
        for process in started:
            if process.stdin is not None:
                process.stdin.write(b"go\n")
                process.stdin.flush()
        for process in started:
            said, words = process.communicate(timeout=2 * _PATIENCE)
            if process.returncode:
                raise _failure(process, words)
            _write_down(ledger, *json.loads(said))
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _write_down(ledger: Ledger, asked: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    for row in asked:
        ledger.ask(Asked(**row))
    for row in answers:
        ledger.acknowledge(Acknowledged(**row))


def _failure(process: "subprocess.Popen[bytes]", words: bytes = b"") -> Unavailable:
    last = (words or process.communicate()[1]).decode(errors="replace").strip().splitlines()[-1:]
    return Unavailable(f"a process of writers ended with code {process.returncode}: {''.join(last)}")


def race_here(store: TurnStore, bench: RaceBench, run: str, ledger: Ledger) -> None:
    """Let all the writers write in this process, for a store that others cannot see."""

    async def write() -> None:
        runs = (race(store, bench, run, f"p{number}") for number in range(bench.processes))
        for asked, answers in await asyncio.gather(*runs):
            for one in asked:
                ledger.ask(one)
            for answer in answers:
                ledger.acknowledge(answer)

    asyncio.run(write())


def main() -> None:
    """Write as the arguments say and print what was asked and acknowledged, as one line of JSON."""
    told, shape, run, name = json.loads(sys.argv[1])
    store = wiring.open_store(Settings(**told | {"home": Path(told["home"])}))
    try:
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.readline()
        asked, answers = asyncio.run(race(store, RaceBench(**shape), run, name))
    finally:
        store.close()
    sys.stdout.write(json.dumps([[asdict(row) for row in asked], [asdict(row) for row in answers]]))


if __name__ == "__main__":
    main()
