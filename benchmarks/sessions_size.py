"""What many sessions in one SQLite file cost: its size, and a turn, a list and a page beside those of an empty one.

    python benchmarks/sessions_size.py [--sessions 100000] [--turns 10] [--measured 10000] [--home DIR] [--json]

One file is filled in bulk, by the same statements that the store runs, in large transactions that nobody waits for.
Every session gets its first turn before any gets its second, so that one session's turns lie as far apart as they can.
A message has 40 to 360 bytes and an answer 300 to 1,300, uniformly: 1 KB a turn, of words, line ends and quotes. Half
of the sessions are one owner's, the rest is spread over 500. All are of the last six days, so no request id has ended.

Then two stores, one on that file and one on an empty file, take turns of 100 measured turns each: accept and finish,
one in ten in a new session, the others in any that the file has. Lists and pages are read from both by turns.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.evaluation.report import Report
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import items, records, sqlite_file, sqlite_rows
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner, Usage

MESSAGE, ANSWER = (40, 360), (300, 1300)
OWNERS = 500
BLOCK = 100
SPAN_S = 6 * 86400.0
WORDS = """the of and to in is that it was for on are as with his they at be this have from or one had by word but not
 what all were we when your can said there use an each which she do how their if will up other about out many then them
 session answer store turn "quoted" it's naïve café"""


@dataclass(frozen=True, slots=True)
class Place:
    """A session and whose it is."""

    owner: Owner
    session_id: str


class Talk:
    """Turns of random words, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self._text = " ".join(self.source.choices(WORDS.split(" "), k=200_000))
        self.payload = 0

    def place(self, number: int) -> Place:
        """Return the session of that number, under an id of the form that the service makes."""
        owner = Owner() if number % 2 == 0 else Owner(user=f"user-{number // 2 % OWNERS}")
        return Place(owner, f"s-{random.Random(number).getrandbits(128):022x}"[:24])

    def turn(self, place: Place, *, opens: bool) -> tuple[NewTurn, Outcome]:
        """Return a turn and its answer, and count their bytes."""
        message, answer = self._some(MESSAGE), self._some(ANSWER)
        self.payload += len(message.encode()) + len(answer.encode())
        request = f"r-{self.source.getrandbits(128):032x}"[:24]
        new = NewTurn(place.owner, place.session_id, request, message, len(message), opens_session=opens)
        return new, Outcome("complete", "stop", answer, usage=Usage(len(message) // 4, len(answer) // 4))

    def _some(self, length: tuple[int, int]) -> str:
        at = self.source.randrange(len(self._text) - length[1])
        return self._text[at : at + self.source.randint(*length)]


def fill(file: Path, sessions: int, turns: int) -> Talk:
    """Make the file and return the talk that is in it."""
    talk = Talk(seed=1)
    places = [talk.place(number) for number in range(sessions)]
    start = time.time() - SPAN_S
    with closing(sqlite_file.open_file(file)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -1000000")
        rows = sqlite_rows.Rows(connection)
        for at in range(turns):
            connection.execute("BEGIN IMMEDIATE")
            for number, place in enumerate(places):
                now = start + SPAN_S * (at * sessions + number) / (sessions * turns)
                new, outcome = talk.turn(place, opens=at == 0)
                ticket = records.accept(rows, new, now, None).ticket
                if ticket is None:
                    raise SystemExit(f"error: request id {new.request_id!r} came twice, expected random ones")
                records.finish(rows, ticket, outcome, now)
            connection.execute("COMMIT")
            said(f"turn {at + 1} of {turns} of {sessions} sessions")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return talk


class Side:
    """A store that is measured; `many` sessions are in it at the start."""

    def __init__(self, name: str, store: SQLiteStore, many: int) -> None:
        self.name = name
        self.store = store
        self.talk = Talk(seed=2)
        self.places = [self.talk.place(number) for number in range(many)]
        self.turn_ms: list[float] = []

    async def turns(self, count: int) -> None:
        """Measure turns one after another."""
        source = self.talk.source
        for _ in range(count):
            opens = not self.places or source.random() < 0.1
            if opens:
                self.places.append(self.talk.place(10**9 + len(self.places)))
            new, outcome = self.talk.turn(self.places[-1] if opens else source.choice(self.places), opens=opens)
            began = time.perf_counter()
            accepted = await self.store.accept(new)
            if accepted.ticket is None:
                raise SystemExit(f"error: request id {new.request_id!r} came twice, expected random ones")
            await self.store.finish(accepted.ticket, outcome)
            self.turn_ms.append((time.perf_counter() - began) * 1000)

    async def asked(self) -> dict[str, Callable[[Place], Awaitable[Any]]]:
        """Return what is read: 50 sessions from the newest and from the middle on, 20 turns by page and by load."""
        heads = [head async for head in self._heads()]
        middle = items.cursor_of(Owner(), heads[len(heads) // 2])
        return {
            "list": lambda at: self.store.sessions(Owner(), limit=50),
            "list_middle": lambda at: self.store.sessions(Owner(), limit=50, cursor=middle),
            "page": lambda at: self.store.page(at.owner, at.session_id, limit=20),
            "load": lambda at: self.store.load(at.owner, at.session_id, limit=20),
        }

    async def _heads(self) -> Any:
        cursor: str | None = None
        while True:
            listed = await self.store.sessions(Owner(), limit=1000, cursor=cursor)
            for head in listed.sessions:
                yield head
            if (cursor := listed.cursor) is None:
                return


async def read(sides: list[Side], samples: int) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds by side and by what is read, of random sessions; the sides take turns at every one."""
    asked = {side.name: await side.asked() for side in sides}
    taken: dict[str, dict[str, list[float]]] = {name: {verb: [] for verb in verbs} for name, verbs in asked.items()}
    for verb in asked[sides[0].name]:
        for _ in range(samples):
            for side in sides:
                place = side.talk.source.choice(side.places)
                began = time.perf_counter()
                await asked[side.name][verb](place)
                taken[side.name][verb].append((time.perf_counter() - began) * 1000)
    return taken


def at(share: float, values: list[float]) -> float:
    """Return the value below which that share lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures_of(sides: list[Side], reads: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Return percentiles of both sides, in milliseconds, and the ratios of the full file's to the empty one's."""
    figures: dict[str, float] = {}
    full, empty = sides
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        both = at(share, full.turn_ms), at(share, empty.turn_ms)
        figures |= {
            f"turn_{name}_ms": both[0],
            f"empty_turn_{name}_ms": both[1],
            f"turn_{name}_ratio": both[0] / both[1],
        }
    for verb in reads[full.name]:
        both = at(0.5, reads[full.name][verb]), at(0.5, reads[empty.name][verb])
        figures |= {f"{verb}_p50_ms": both[0], f"empty_{verb}_p50_ms": both[1], f"{verb}_p50_ratio": both[0] / both[1]}
    return {name: round(value, 3) for name, value in figures.items()}


async def measure(home: Path, sessions: int, turns: int, measured: int) -> Report:
    """Fill one file, then let both take turns."""
    files = {name: home / f"{name}.sqlite3" for name in ("full", "empty")}
    talk = fill(files["full"], sessions, turns)
    size = files["full"].stat().st_size
    sides = [Side(name, SQLiteStore(file), sessions if name == "full" else 0) for name, file in files.items()]
    try:
        for block in range(0, measured, BLOCK):
            for side in sides if block // BLOCK % 2 == 0 else sides[::-1]:
                await side.turns(min(BLOCK, measured - block))
        reads = await read(sides, min(1000, measured))
        said("checking the whole file")
        began = time.perf_counter()
        faults = await sides[0].store.check()
        check_s = time.perf_counter() - began
    finally:
        for side in sides:
            side.store.close()
    if faults:
        raise SystemExit(f"error: {len(faults)} faults in the file after the run, the first: {faults[0]}")
    figures = {
        "file_bytes": size,
        "payload_bytes": talk.payload,
        "file_over_payload": round(size / talk.payload, 3),
        "payload_bytes_per_turn": round(talk.payload / (sessions * turns), 1),
        "check_s": round(check_s, 1),
    }
    settings = {"sessions": sessions, "turns": turns, "measured": measured, "message": MESSAGE, "answer": ANSWER}
    rows = [{"side": side.name, "turn_ms": [round(ms, 3) for ms in side.turn_ms]} for side in sides]
    return Report("sessions_size", settings, figures | figures_of(sides, reads), rows)


def said(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(description="Measure what many sessions in one SQLite file cost.")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=10, help="of each session")
    parser.add_argument("--measured", type=int, default=10_000, help="turns measured on each of the two files")
    parser.add_argument("--home", type=Path, help="a folder on the disk that is to be measured; without it a new one")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if min(given.sessions, given.turns, given.measured) < 1:
        parser.error("sessions, turns and measured are counts, expected 1 or more")
    with tempfile.TemporaryDirectory(prefix="chatkit-sessions-", dir=given.home) as home:
        report = asyncio.run(measure(Path(home), given.sessions, given.turns, given.measured))
    print(report.as_json() if given.json else report.as_table())


if __name__ == "__main__":
    main()
