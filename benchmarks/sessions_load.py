"""How long a turn's read takes in a session of 10 turns and in one of 10,000, over SQLite and over DynamoDB.

    python benchmarks/sessions_load.py --json
    python benchmarks/sessions_load.py --dynamodb-endpoint http://127.0.0.1:8000 --dynamodb-table chatkit-bench

Both sessions are written by `restore`, as an import writes them, and read by `load` as the service reads a turn's
history, taking turns so that whatever else the machine does meets both. The table must be there; `chatkit sessions
create-table` makes one. What was written is removed at the end, unless `--keep` leaves it, for a server that knows no
transactions.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from chatkit.protocols import SessionStore
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner, Turn, Usage

LENGTHS = (10, 10_000)
# Turns that a load reads: as many in either session, so that their lengths are all that differs.
HISTORY = 10


def turns_of(length: int, text_bytes: int) -> list[Turn]:
    """Return a session's turns; they are a year old, so that no request of theirs is known any more."""
    then, text = time.time() - 365 * 86400, "x" * (text_bytes // 2)
    return [
        Turn(n, f"request-{n}", 1, "complete", text, text, "stop", None, None, len(text), Usage(9, 9), (), then + n)
        for n in range(1, length + 1)
    ]


async def measured(
    store: SessionStore, rounds: int, text_bytes: int, limit: int, *, keep: bool
) -> dict[int, list[float]]:
    """Return the milliseconds of each load by the session's length."""
    owner = Owner(user=f"bench-{uuid.uuid4().hex}")
    spent: dict[int, list[float]] = {length: [] for length in LENGTHS}
    try:
        for length in LENGTHS:
            await store.restore(owner, f"session-{length}", turns_of(length, text_bytes), expires_at=None)
        for number in range(rounds + 5):
            for length in LENGTHS if number % 2 else LENGTHS[::-1]:
                started = time.perf_counter()
                loaded = await store.load(owner, f"session-{length}", limit=limit)
                if number >= 5:  # the first ones open connections and fill caches
                    spent[length].append(1000 * (time.perf_counter() - started))
                expected = list(range(max(1, length - limit + 1), length + 1))
                assert [turn.seq for turn in loaded] == expected, "not the newest turns"
    finally:
        if not keep:
            await store.purge(owner, closed_s=0)
    return spent


def figures_of(name: str, spent: dict[int, list[float]]) -> dict[str, float]:
    """Return the medians and nineteenths-of-twentieths by length, and the ratio of the medians."""
    short, long = (statistics.median(spent[length]) for length in LENGTHS)
    figures = {f"{name}.load_p50_ms@{length}": statistics.median(spent[length]) for length in LENGTHS}
    figures |= {f"{name}.load_p95_ms@{length}": statistics.quantiles(spent[length], n=20)[-1] for length in LENGTHS}
    return {key: round(value, 3) for key, value in (figures | {f"{name}.ratio_p50": long / short}).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the figures and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="loads of each session")
    parser.add_argument("--turn-bytes", type=int, default=800, help="text of a turn, both sides")
    parser.add_argument("--history", type=int, default=HISTORY, help="turns that a load reads")
    parser.add_argument("--dynamodb-endpoint", default="", help="address of a server; empty leaves DynamoDB out")
    parser.add_argument("--dynamodb-table", default="chatkit")
    parser.add_argument("--keep", action="store_true", help="leave the sessions where they are")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    wanted = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        opened: dict[str, DynamoDBStore | SQLiteStore] = {"sqlite": SQLiteStore(Path(folder) / "sessions.sqlite3")}
        if wanted.dynamodb_endpoint:
            opened["dynamodb"] = DynamoDBStore(wanted.dynamodb_table, endpoint=wanted.dynamodb_endpoint)
        for name, store in opened.items():
            try:
                spent = asyncio.run(measured(store, wanted.rounds, wanted.turn_bytes, wanted.history, keep=wanted.keep))
            finally:
                store.close()
            figures |= figures_of(name, spent)
    settings = {name: value for name, value in vars(wanted).items() if name != "json"}
    if wanted.json:
        print(json.dumps({"command": "benchmarks/sessions_load.py", "settings": settings, "figures": figures}))
    else:
        print("\n".join(f"{name}  {value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
