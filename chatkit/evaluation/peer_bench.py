"""`bench engine --peers`: the whole service against other engines' servers over HTTP, in turns, by the same client."""

import contextlib
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import EngineFailed, InvalidRequest
from chatkit.evaluation import bench
from chatkit.evaluation.bare import BarePipeline
from chatkit.evaluation.peers import HOME, Peer, PeerServer, read_peer
from chatkit.evaluation.processes import machine_cpu_seconds, tree_cpu_seconds
from chatkit.evaluation.report import Report, Spread
from chatkit.evaluation.served import ServedChatkit
from chatkit.evaluation.sides import BareSide, HttpSide, Side, SideRound, chatkit_body, idle_cores, order, peer_body
from chatkit.evaluation.workload import PromptFrame, Workload
from chatkit.models import sources
from chatkit.settings import Settings

BARE = "bare"
CHATKIT = "chatkit"
# Servers that use more cores than this while nothing is asked of them are stopped between their rounds.
_SPINS = 0.05
_IDLE_S = 2.0
# Beyond the prompt and the answer a server's context holds a few tokens to spare.
_SPARE = 16


@dataclass(frozen=True, slots=True)
class PeerBench:
    """What is measured: `peers` by name, each number of clients with each length of answer.

    Attributes:
        peers: "bare" among them is the pipeline without HTTP.
        home: where the peers' files are.
    """

    peers: tuple[str, ...]
    clients: tuple[int, ...] = (1, 8, 16)
    prompt_tokens: int = 215
    new_tokens: tuple[int, ...] = (64,)
    rounds: int = 5
    home: Path = HOME

    def __post_init__(self) -> None:
        """Check every bound."""
        if not self.new_tokens:
            raise InvalidRequest("new-tokens is empty, expected numbers of at least 2")
        for length in self.new_tokens:
            bench.EngineBench(self.clients, self.prompt_tokens, length, self.rounds)
        if not self.peers or len(set(self.peers)) < len(self.peers):
            raise InvalidRequest(f"--peers is {','.join(self.peers)!r}, expected names such as vllm-cpu, each once")


def bench_peers(settings: Settings, wanted: PeerBench, progress: bench.Progress) -> Report:
    """Measure; all servers are loaded all the time, one works, the others idle or are stopped.

    The gate is on and never blocks, sessions are stored in SQLite, retrieval and prefix caches are off. A peer that
    fails is left out from there on; `settings.failed` of the report has its last words.

    Raises:
        ChatkitError: chatkit did not start or answer, a peer was not made, or the prompts cannot be that short.
    """
    settings = bench.measured_settings(settings)
    frame = PromptFrame(settings)
    gguf = sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
    home = wanted.home.expanduser()
    peers = [read_peer(name, home, gguf) for name in wanted.peers if name != BARE]
    failed: dict[str, str] = {}
    with _sides(settings, frame, wanted, peers, failed, progress) as sides:
        runs = Rounds(sides, frame.prompts(wanted.prompt_tokens, seed=0), failed, progress)
        for new_tokens, clients in itertools.product(wanted.new_tokens, wanted.clients):
            runs.measure(clients, new_tokens, wanted.rounds)
        described = _described(settings, wanted, sides, peers) | {"idle_cores": runs.idle, "failed": failed}
    return Report("bench engine", described, peer_figures(runs.rows, wanted.new_tokens[0]), runs.rows)


class Rounds:
    """Rounds over some sides, the first of which all others are compared with.

    Attributes:
        rows: one for each side of each round.
        idle: the cores that each side used while nothing was asked of it, when it was warm.
    """

    def __init__(
        self, sides: Sequence[Side], prompts: Iterator[Workload], failed: dict[str, str], progress: bench.Progress
    ) -> None:
        self._sides = list(sides)
        self._prompts, self._failed, self._progress = prompts, failed, progress
        self._spinning: set[str] = set()
        self.rows: list[dict[str, Any]] = []
        self.idle: dict[str, float] = {}

    def measure(self, clients: int, new_tokens: int, rounds: int) -> None:
        """Warm every side up for these shapes, then take turns; alone, the first side is not measured."""
        self._round(clients, new_tokens, None, clients)
        if not self.idle:
            self.idle = {name: round(cores, 3) for name, cores in idle_cores(self._sides, seconds=_IDLE_S).items()}
            self._spinning = {name for name, cores in self.idle.items() if cores > _SPINS}
            for side in self._sides:
                self._rest(side)
        for number in range(rounds if len(self._sides) > 1 else 0):
            self._round(clients, new_tokens, number, bench.turns_of(clients))

    def _round(self, clients: int, new_tokens: int, number: int | None, turns: int) -> None:
        work = list(itertools.islice(self._prompts, turns))
        rows = []
        for side in order(self._sides, number or 0):
            before, began = self._cpu_s(), time.perf_counter()
            try:
                done = side.run(work, clients, new_tokens)
            except EngineFailed as error:
                self._fail(side, error)
                continue
            took = time.perf_counter() - began
            others = max(0.0, self._cpu_s() - before) / took
            self._rest(side)
            rows.append(_row(side.name, clients, new_tokens, number or 0, done) | {"others_cores": round(others, 3)})
        if number is None:
            return
        own = next(row for row in rows if row["side"] == self._sides[0].name)
        for row in rows:
            if row is not own:
                row["ratio"] = own["tokens_per_s"] / row["tokens_per_s"]
        self.rows += rows
        self._progress(_line(rows, own))

    def _cpu_s(self) -> float:
        """Return what has been used by neither a side nor the clients."""
        own = time.process_time() + sum(tree_cpu_seconds(side.pid) for side in self._sides)
        return machine_cpu_seconds() - own

    def _rest(self, side: Side) -> None:
        if side.name in self._spinning:
            side.pause()

    def _fail(self, side: Side, error: EngineFailed) -> None:
        if side is self._sides[0]:
            raise error
        self._sides.remove(side)
        self._failed[side.name] = str(error)
        self._progress(f"left out from here on: {error}")


def _row(side: str, clients: int, new_tokens: int, number: int, done: SideRound) -> dict[str, Any]:
    tokens = sum(done.tokens)
    return {
        "side": side,
        "clients": clients,
        "new_tokens": new_tokens,
        "round": number,
        "turns": len(done.tokens),
        "tokens": tokens,
        "full_answers": sum(count == new_tokens for count in done.tokens) / len(done.tokens),
        "counted_by": done.counted_by,
        "prompts_counted": done.prompts_counted,
        "seconds": round(done.seconds, 4),
        "tokens_per_s": tokens / done.seconds,
        "first_delta_ms": round(done.first_delta_s * 1000, 2),
        "cpu_s": round(done.cpu_s, 2),
        "cpu_ms_per_token": round(done.cpu_s / max(1, tokens) * 1000, 3),
        "memory_mb": round(done.rss_bytes / 1e6, 1),
    }


def _line(rows: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> str:
    told = [f"{row['side']} {row['tokens_per_s']:.1f} (ratio {row['ratio']:.2f})" for row in rows if row is not own]
    return (
        f"{own['clients']:>3} clients, {own['new_tokens']} new tokens, round {own['round'] + 1}: "
        f"{own['side']} {own['tokens_per_s']:.1f} tokens/s, {', '.join(told)}; "
        f"others {max(row['others_cores'] for row in rows):.2f} cores"
    )


def peer_figures(rows: Sequence[Mapping[str, Any]], first_length: int) -> dict[str, float]:
    """Return the named figures: medians over the rounds, with the extremes of the ratios.

    A figure ends `@C`, with another length of answer than the first `@C/LENGTH`. A ratio is left out where other
    processes disturbed its round on either side, unless all were; `quiet_rounds_PEER@C` says how many are in.
    """
    figures: dict[str, float] = {}
    for length, clients in dict.fromkeys((row["new_tokens"], row["clients"]) for row in rows):
        tail = f"@{clients}" + ("" if length == first_length else f"/{length}")
        here = [row for row in rows if (row["new_tokens"], row["clients"]) == (length, clients)]
        own = {row["round"]: row for row in here if "ratio" not in row}
        _one_side(figures, "", tail, list(own.values()))
        for name in dict.fromkeys(row["side"] for row in here if "ratio" in row):
            rounds = [row for row in here if row["side"] == name]
            quiet = [row for row in rounds if bench.quiet(row) and bench.quiet(own[row["round"]])]
            figures[f"quiet_rounds_{name}{tail}"] = len(quiet)
            ratio = Spread.of([row["ratio"] for row in quiet or rounds])
            figures[f"ratio_to_{name}{tail}"] = round(ratio.median, 4)
            figures[f"ratio_to_{name}_low{tail}"] = round(ratio.low, 4)
            figures[f"ratio_to_{name}_high{tail}"] = round(ratio.high, 4)
            _one_side(figures, f"{name}_", tail, rounds)
    return figures


def _one_side(figures: dict[str, float], prefix: str, tail: str, rounds: Sequence[Mapping[str, Any]]) -> None:
    quiet = [row for row in rounds if bench.quiet(row)] or rounds
    speed = Spread.of([row["tokens_per_s"] for row in quiet])
    figures[f"{prefix}tokens_per_s{tail}"] = round(speed.median, 2)
    figures[f"{prefix}tokens_per_s_low{tail}"] = round(speed.low, 2)
    figures[f"{prefix}tokens_per_s_high{tail}"] = round(speed.high, 2)
    for name in ("first_delta_ms", "cpu_ms_per_token", "memory_mb", "full_answers"):
        figures[f"{prefix}{name}{tail}"] = round(statistics.median(row[name] for row in quiet), 3)


@contextlib.contextmanager
def _sides(
    settings: Settings,
    frame: PromptFrame,
    wanted: PeerBench,
    peers: Sequence[Peer],
    failed: dict[str, str],
    progress: bench.Progress,
) -> Iterator[list[Side]]:
    """Start every side, chatkit first; the session store and the logs are in a temporary folder."""

    def recount(text: str) -> int:
        return len(frame.tokenizer.encode(text, add_special_tokens=False).ids)

    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatkit-bench-")))
        progress("starting chatkit …")
        served = ServedChatkit(home, bench.served_settings(settings))
        stack.callback(served.close)
        sides: list[Side] = [HttpSide(CHATKIT, served, chatkit_body, recount, precision=bench.precision_of(settings))]
        if BARE in wanted.peers:
            pipeline = BarePipeline(bench.engine_options(settings, frame))
            stack.callback(pipeline.close)
            sides.append(BareSide(pipeline, frame.facts.eos_ids, bench.precision_of(settings)))
        for peer in peers:
            progress(f"starting {peer.name} …")
            try:
                server = PeerServer(peer, _places(settings, wanted), home / f"{peer.name}.log")
            except EngineFailed as error:
                failed[peer.name] = str(error)
                progress(f"left out: {error}")
                continue
            stack.callback(server.close)
            body = peer_body(peer, frame.system)
            sides.append(HttpSide(peer.name, server, body, recount, precision=peer.precision))
        yield sides


def _places(settings: Settings, wanted: PeerBench) -> dict[str, object]:
    """Return what the commands of peers are filled with: as much of the machine as chatkit has."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    threads = settings.threads or len(cpus)
    return {
        "slots": max(wanted.clients),
        "context": wanted.prompt_tokens + max(wanted.new_tokens) + _SPARE,
        "threads": threads,
        "cpus": ",".join(map(str, cpus[:threads])),
        "kv_cache_gb": max(1, math.ceil(settings.kv_cache_gb)),
    }


def _described(settings: Settings, wanted: PeerBench, sides: Sequence[Side], peers: Sequence[Peer]) -> dict[str, Any]:
    one = bench.EngineBench(wanted.clients, wanted.prompt_tokens, wanted.new_tokens[0], wanted.rounds)
    return bench.described(settings, one) | {
        "new_tokens": list(wanted.new_tokens),
        "precision": {side.name: side.precision for side in sides},
        "exact_length": {peer.name: peer.exact for peer in peers},
        "versions": {peer.name: dict(peer.versions) for peer in peers},
        "door": "POST /v1/chat/completions, events, loopback; chatkit with a session_id, so that the turn is stored",
    }
