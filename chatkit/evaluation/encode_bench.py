"""`bench encode`: the encoder against sentence-transformers, on the same passages, weights and threads, in turns."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import EngineFailed, InvalidRequest, NotFound
from chatkit.evaluation.passages import read_passages
from chatkit.evaluation.peers import HOME, MAKE
from chatkit.evaluation.processes import machine_cpu_seconds
from chatkit.evaluation.report import Report
from chatkit.models import sources
from chatkit.settings import Settings
from chatkit.wiring import open_encoder

PEER = "sentence-transformers"
NATIVE, INT8 = "native", "int8"
# A round in which everything else on the machine used more cores than this is left out where there are others.
_QUIET = 0.1

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncodeBench:
    """What is measured.

    Attributes:
        passages: file or folder as `read_passages` takes it.
        limit: most passages.
        rounds: of each side; medians are reported.
        home: where `benchmarks/peers/make.py` has put the peer; this environment's own is taken where it is not there.
    """

    passages: Path | None = None
    limit: int = 500
    rounds: int = 3
    home: Path = HOME

    def __post_init__(self) -> None:
        """Check the bound that nobody else does."""
        if self.rounds < 1:
            raise InvalidRequest(f"--rounds is {self.rounds}, expected at least 1")


class Side(Protocol):
    """One way to encode all passages."""

    def encode(self) -> tuple[float, float]:
        """Encode them all and return seconds and processor seconds."""
        ...

    def vectors(self) -> Vectors:
        """Return the vectors of the last time."""
        ...


def bench_encode(settings: Settings, bench: EncodeBench, tell: Callable[[str], None]) -> Report:
    """Measure and return the report.

    Raises:
        NotFound: there are no passages, or no sentence-transformers.
        EngineFailed: the peer ended, with its last words.
    """
    passages = read_passages(bench.passages, bench.limit)
    peer = find_peer(bench.home)
    settings = replace(settings, encoder_backend="openvino", threads=settings.threads or _cores())
    with ExitStack() as stack:
        tell(f"opening three encoders for {len(passages)} passages …")
        ours = {name: stack.enter_context(_ours(settings, name, passages)) for name in (NATIVE, INT8)}
        sides: dict[str, Side] = {**ours, PEER: stack.enter_context(_theirs(settings, peer, passages))}
        rows = list(_measure(sides, bench.rounds, tell))
        found = {name: side.vectors() for name, side in sides.items()}
        tokens = ours[NATIVE].tokens()
    told = {
        "passages": len(passages),
        "tokens_mean": round(tokens / len(passages), 1),
        "rounds": bench.rounds,
        "threads": settings.threads,
        "encoder": sources.name_of(settings.encoder, "encoder", settings.profile),
        "peer": peer["versions"],
        "peer_precision": "float32, its defaults: batches of 32, sorted by length",
    }
    return Report("bench encode", told, _figures(rows, found, len(passages)), rows)


def _measure(sides: Mapping[str, Side], rounds: int, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Run every side in every round, in an order that turns; one row each."""
    names = list(sides)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            before = machine_cpu_seconds()
            seconds, used = sides[name].encode()
            others = max(0.0, machine_cpu_seconds() - before - used) / seconds
            tell(f"round {number + 1} of {rounds}: {name} {seconds:.1f} s")
            yield {"round": number, "side": name, "seconds": seconds, "cpu_seconds": used, "others_cores": others}


def _figures(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Vectors], passages: int) -> dict[str, float]:
    by_round: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_round.setdefault(row["round"], {})[row["side"]] = row
    quiet = [each for each in by_round.values() if all(row["others_cores"] <= _QUIET for row in each.values())]
    counted = quiet or list(by_round.values())
    figures: dict[str, float] = {}
    for name, prefix in ((NATIVE, ""), (INT8, "int8.")):
        for kind, ending in (("seconds", ""), ("cpu_seconds", "_cpu")):
            ratios = [each[PEER][kind] / each[name][kind] for each in counted]
            figures[f"{prefix}ratio_to_sentence_transformers{ending}"] = statistics.median(ratios)
        cosines = _cosines(found[name], found[PEER])
        figures[f"{prefix}min_cosine"] = float(cosines.min())
        figures[f"{prefix}mean_cosine"] = float(cosines.mean())
        figures[f"{prefix}passages_per_s"] = passages / statistics.median(each[name]["seconds"] for each in counted)
    figures["sentence_transformers.passages_per_s"] = passages / statistics.median(
        each[PEER]["seconds"] for each in counted
    )
    figures["quiet_rounds"] = float(len(quiet))
    return figures


def _cosines(left: Vectors, right: Vectors) -> Vectors:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: Vectors = (left * right).sum(axis=1) / lengths
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Ours:
    def __init__(self, encoder: Any, passages: Sequence[str]) -> None:
        self._encoder, self._passages = encoder, passages
        self._found = encoder.encode_now(passages[:8])  # the first pass allocates

    def encode(self) -> tuple[float, float]:
        started, used = time.perf_counter(), time.process_time()
        self._found = self._encoder.encode_now(self._passages)
        return time.perf_counter() - started, time.process_time() - used

    def vectors(self) -> Vectors:
        found: Vectors = self._found
        return found

    def tokens(self) -> int:
        """Return the tokens that are read, all passages together."""
        most = self._encoder.max_tokens
        return sum(min(length, most) for length in self._encoder.count_tokens_of(self._passages))


@contextmanager
def _ours(settings: Settings, precision: Any, passages: Sequence[str]) -> Iterator["_Ours"]:
    encoder = open_encoder(replace(settings, encoder_precision=precision), bulk=True)
    try:
        yield _Ours(encoder, passages)
    finally:
        encoder.close()


class _Theirs:
    def __init__(self, process: "subprocess.Popen[str]", out: Path, log: Path) -> None:
        self._process, self._out, self._log = process, out, log
        self._answer()

    def encode(self) -> tuple[float, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("encode\n")
        self._process.stdin.flush()
        told = self._answer()
        return told["seconds"], told["cpu_seconds"]

    def vectors(self) -> Vectors:
        self.close()  # the file is whole once it has ended
        found: Vectors = np.load(self._out, allow_pickle=False)
        return found

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["none"]
            raise EngineFailed(f"{PEER} ended with code {self._process.returncode}, its last words: {words[0]:.300}")
        told: dict[str, float] = json.loads(line)
        return told


@contextmanager
def _theirs(settings: Settings, peer: Mapping[str, Any], passages: Sequence[str]) -> Iterator[Side]:
    folder = sources.resolve(settings.encoder, models_dir=settings.models, role="encoder", profile=settings.profile)
    script = Path(__file__).with_name("encode_peer.py")
    with tempfile.TemporaryDirectory(prefix="chatkit-bench-") as work:
        given, out, log = (Path(work) / name for name in ("passages.json", "vectors.npy", "log"))
        given.write_text(json.dumps(passages), encoding="utf-8")
        places = [str(folder), str(given), str(out), str(settings.threads)]
        with (
            log.open("wb") as words,
            subprocess.Popen(
                # -P: beside the script lie modules of chatkit, which it must not find first.
                [*peer["command"], "-P", "-W", "ignore", str(script), *places],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(settings.threads)},
            ) as process,
        ):
            try:
                yield _Theirs(process, out, log)
            finally:
                process.kill()


def find_peer(home: Path) -> Mapping[str, Any]:
    """Return what runs sentence-transformers: the environment made for it, or this one where it has it.

    Raises:
        NotFound: neither has it.
    """
    home = home.expanduser()
    try:
        told: dict[str, Any] = json.loads((home / f"{PEER}.json").read_text(encoding="utf-8"))
        if Path(told["command"][0]).exists():
            return told
    except FileNotFoundError:
        pass
    if importlib.util.find_spec("sentence_transformers") is not None:
        from importlib.metadata import version

        return {"command": [sys.executable], "versions": {name: version(name) for name in (PEER, "torch")}}
    raise NotFound(f"there is no {PEER} in {str(home)!r} nor in this environment; make it with: {MAKE} {PEER}")
