"""`bench sessions`: whether an acknowledged turn is ever lost, doubled or out of place, whatever dies or races."""

import asyncio
import contextlib
import itertools
import math
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chatkit import wiring
from chatkit.errors import ChatkitError, ConfigError
from chatkit.evaluation.killing import SOONEST, Kill, KillBench, Progress, kill_again_and_again
from chatkit.evaluation.ledger import Findings, Ledger, compare, figures_of, read_back
from chatkit.evaluation.races import RaceBench, race_here, race_processes
from chatkit.evaluation.report import Report
from chatkit.evaluation.scripted import PROGRAM, ScriptedServer
from chatkit.settings import Settings
from chatkit.types import Owner, Turn

_COMMAND = "bench sessions"
# What a process of its own is told of the settings; the rest of them decides nothing here.
_TOLD = ("store", "dynamodb_table", "dynamodb_region", "dynamodb_endpoint", "retention_days", "session_keys")
# Of everything that is wrong, this many lines are shown.
_SHOWN = 20
# Clocks of a database and of this machine may differ. Seconds.
_SKEW = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured, and what is wrong; nothing when every promise was kept."""

    report: Report
    wrong: tuple[str, ...]


def bench_kills(
    settings: Settings, bench: KillBench, progress: Progress, *, program: Sequence[str] = PROGRAM
) -> Verdict:
    """Kill a serving process again and again under clients, then compare what they were told with what is stored.

    Raises:
        ConfigError: the store forgets with its process, or its table is missing.
        StoreFailed: the store is out of reach.
        EngineFailed: the service did not come up.
    """
    if settings.store == "memory":
        raise ConfigError("store is 'memory', which no killed process leaves anything of; use sqlite or dynamodb")
    ledger, prefix, began = Ledger(), _new_prefix(), time.time()
    with _own_home(settings, progress) as home:
        settings = replace(settings, home=home.folder)
        wiring.open_store(settings).close()  # what is missing is said before anything starts
        with _tidied(settings, ledger, prefix, home, progress) as wrong:
            server = ScriptedServer(home.folder, _told(settings), program=program)
            try:
                kills, spent = kill_again_and_again(server, bench, ledger, prefix, progress)
            finally:
                server.close()
            progress("reading everything back …")
            findings, damaged = _compared(settings, ledger, prefix, began)
            wrong += [*findings.lines(), *(f"damaged: {line}" for line in damaged)]
            wrong += [f"unanswered: {_unanswered(ledger, request_id)}" for request_id in ledger.unanswered()]
    figures = _kill_figures(kills, ledger, findings, spent) | {"damaged": len(damaged)}
    rows = [asdict(kill) for kill in kills]
    told: dict[str, Any] = {
        "kills": bench.kills,
        "clients": bench.clients,
        "seed": bench.seed,
        "killed_after_s": [SOONEST, bench.latest],
    }
    told |= {"store": settings.store, "model": "scripted", "door": "POST /invocations, loopback"}
    return Verdict(Report(_COMMAND, told, figures, rows), tuple(wrong))


def bench_races(settings: Settings, bench: RaceBench, progress: Progress) -> Verdict:
    """Let writers of several processes write to one session at once, run after run, and compare as above.

    Raises:
        ConfigError, StoreFailed: as above.
        Unavailable: a writer got no answer.
    """
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    totals: dict[str, float] = {}
    with _own_home(settings, progress) as home:
        settings = replace(settings, home=home.folder)
        store = wiring.open_store(settings)
        try:
            for number in range(1, bench.runs + 1):
                ledger, prefix, began = Ledger(), _new_prefix(), time.time()
                with _tidied(settings, ledger, prefix, home, progress) as found:
                    if settings.store == "memory":
                        race_here(store, bench, prefix, ledger)
                    else:
                        race_processes(_told(settings), bench, prefix, ledger)
                    stored = asyncio.run(read_back(store, Owner(), ledger, prefix, since=began - _SKEW))
                    findings = compare(ledger, stored)
                    found += findings.lines()
                wrong += found
                row = {"stored": sum(map(len, stored.values())), **figures_of(ledger, findings)}
                row["hand_overs"] = sum(_hand_overs(prefix, turns) for turns in stored.values())
                rows.append({"run": number, "seconds": round(time.time() - began, 2), **row})
                totals = {name: totals.get(name, 0) + value for name, value in row.items()}
                progress(f"run {number} of {bench.runs}: {row['acknowledged']} acknowledged, {row['stored']} stored")
        finally:
            store.close()
    right = sum(row["stored"] == row["acknowledged"] and not _any_wrong(row) for row in rows)
    figures = {"runs": bench.runs, "runs_right": right, **totals}
    return Verdict(Report(_COMMAND, asdict(bench) | {"store": settings.store}, figures, rows), tuple(wrong))


def _hand_overs(prefix: str, turns: Sequence[Turn]) -> int:
    """Return how often the next turn is of another process; with none they did not race."""
    processes = [turn.request_id.removeprefix(f"{prefix}-").partition("-")[0] for turn in turns]
    return sum(one != other for one, other in itertools.pairwise(name for name in processes if name != "shared"))


def _any_wrong(row: Mapping[str, Any]) -> bool:
    return any(row[name] for name in Findings.__slots__)


def _kill_figures(kills: Sequence[Kill], ledger: Ledger, findings: Findings, spent: list[float]) -> dict[str, float]:
    slow = sorted(spent)[math.ceil(0.99 * len(spent)) - 1] if spent else 0.0
    return {
        "kills": len(kills),
        "kills_in_flight": sum(kill.broken > 0 for kill in kills),
        "acknowledged_per_kill": round(ledger.acknowledged / len(kills), 1),
        **_kinds_of(ledger),
        **figures_of(ledger, findings),
        "unanswered": len(ledger.unanswered()),
        "begin_finish_p99_ms": round(slow * 1000, 2),
    }


def _kinds_of(ledger: Ledger) -> dict[str, float]:
    """Return how many acknowledged turns are blocked, how many took another's place, how many were asked again."""
    known = ledger.asked
    asked = [known[name] for name in {answer.request_id for answer in ledger.answers}]
    kinds = {"blocked": sum(one.refused for one in asked), "replacing": sum(one.replaces is not None for one in asked)}
    return {**kinds, "asked_again": ledger.asked_again}


def _unanswered(ledger: Ledger, request_id: str) -> str:
    return f"request {request_id}: {ledger.refusals.get(request_id, 'no answer at all')}"


def _compared(settings: Settings, ledger: Ledger, prefix: str, began: float) -> tuple[Findings, tuple[str, ...]]:
    """Compare what was acknowledged with what is stored; beside it what a store that is a file finds wrong with it."""

    async def read(store: wiring.Store) -> tuple[Findings, tuple[str, ...]]:
        stored = await read_back(store, Owner(), ledger, prefix, since=began - _SKEW)
        check = getattr(store, "check", None)
        return compare(ledger, stored), () if check is None else await check()

    store = wiring.open_store(settings)
    try:
        return asyncio.run(read(store))
    finally:
        store.close()


def _told(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _TOLD} | {"home": str(settings.home)}


def _new_prefix() -> str:
    """Return what begins the ids of one measurement: a table may hold those of others."""
    return f"bench-{secrets.token_hex(4)}"


@dataclass(slots=True)
class _Home:
    """A folder for a store of one's own; `keep` leaves it for those who look for what went wrong."""

    folder: Path
    keep: bool = False


@contextlib.contextmanager
def _own_home(settings: Settings, progress: Progress) -> Iterator[_Home]:
    home = _Home(Path(tempfile.mkdtemp(prefix="chatkit-bench-")))
    try:
        yield home
    finally:
        if home.keep:
            progress(f"kept for a look at it: {home.folder}")
        else:
            shutil.rmtree(home.folder)


@contextlib.contextmanager
def _tidied(settings: Settings, ledger: Ledger, prefix: str, home: _Home, progress: Progress) -> Iterator[list[str]]:
    """Give a list for what is wrong, and remove what the block left in a table of others, also when it breaks off.

    What is wrong is shown, and stays for a look at it. The folder with the log is kept then, and when it breaks off.
    """
    wrong: list[str] = []
    began = time.time()
    ended = False
    try:
        yield wrong
        ended = True
    finally:
        for line in wrong[:_SHOWN]:
            progress(line)
        home.keep = home.keep or bool(wrong) or not ended
        if settings.store == "dynamodb":
            left = f"left in the table {settings.dynamodb_table!r}: sessions of requests {prefix}-…"
            if wrong and ended:
                progress(f"{left}, for a look at it")
            else:
                _remove(settings, ledger, prefix, began, progress, left)


def _remove(settings: Settings, ledger: Ledger, prefix: str, began: float, progress: Progress, left: str) -> None:
    """Remove the sessions of a measurement from a table; `left` is said of it unless that was done."""

    async def remove(store: wiring.Store) -> None:
        for session_id in await read_back(store, Owner(), ledger, prefix, since=began - _SKEW):
            await store.delete(Owner(), session_id)

    try:
        store = wiring.open_store(settings)
        try:
            asyncio.run(remove(store))
        finally:
            store.close()
        left = ""
    except ChatkitError as error:
        left = f"{left}, for {error}"
    finally:
        if left:
            progress(left)
