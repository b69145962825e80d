"""`bench retrieval`: an index of many vectors against an exact search, and hnswlib and usearch at the same recall."""

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import chatkit
from chatkit import child_python
from chatkit.errors import BadIndex, EngineFailed, InvalidRequest
from chatkit.evaluation.peers import HOME
from chatkit.evaluation.processes import machine_cpu_seconds, tree_cpu_seconds
from chatkit.evaluation.report import Report
from chatkit.evaluation.vector_hardness import compare
from chatkit.evaluation.vector_set import SYNTHETIC, VectorSet, make_set
from chatkit.evaluation.vector_sides import PEERS, VectorPeer, open_peer
from chatkit.retrieval import writing
from chatkit.retrieval.chunking import Chunk
from chatkit.retrieval.kinds import choose
from chatkit.retrieval.manifest import EncoderEntry, FusionEntry, Manifest
from chatkit.retrieval.passages import PassageWriter
from chatkit.retrieval.vector_writer import VectorWriter, recall_of
from chatkit.retrieval.vectors import Vectors, import_faiss
from chatkit.settings import Settings

_K = 10
# Vectors that are handed to the index at a time.
_SLICE = 50_000
# Queries that an exact search answers in a round: each reads all vectors.
_EXACT = 20
# Characters of a passage.
_TEXT = 800
# A round in which everything else on the machine used more cores than this is left out where there are others.
_QUIET = 0.1


@dataclass(frozen=True, slots=True)
class RetrievalBench:
    """What is measured.

    Attributes:
        vectors: how many.
        texts: BEIR folders, corpora or folders of text that the real ones are made of.
        queries: at most.
        rounds: of each side.
        kind: of `chatkit.retrieval.kinds`; chosen from size and recall where empty.
        recall: that the index is tuned for.
        peers: hnswlib, usearch.
        home: where `benchmarks/peers/make.py` has put them.
        keep: a folder for what is made, found again by the next run.
    """

    vectors: int = 100_000
    texts: tuple[Path, ...] = ()
    queries: int = 500
    rounds: int = 3
    kind: str = ""
    recall: float = 0.98
    peers: tuple[str, ...] = ()
    home: Path = field(default_factory=lambda: HOME)
    keep: Path | None = None

    def __post_init__(self) -> None:
        """Check every bound."""
        if self.vectors < 1000 or self.queries < 10 or self.rounds < 1:
            raise InvalidRequest(
                f"--vectors is {self.vectors}, --queries {self.queries} and --rounds {self.rounds}, "
                "expected at least 1000, 10 and 1"
            )
        if unknown := [name for name in self.peers if name not in PEERS]:
            raise InvalidRequest(f"--peers holds {unknown[0]!r}, expected names such as {','.join(PEERS)}")


def bench_retrieval(settings: Settings, bench: RetrievalBench, tell: Callable[[str], None]) -> Report:
    """Measure; every query is asked alone, one after the other, on one thread, each side in its turn.

    Raises:
        ChatkitError: the encoder, the texts or a peer is not there, or a peer ended.
    """
    with contextlib.ExitStack() as stack:
        folder = bench.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatkit-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        made = make_set(settings, bench.texts, bench.vectors, bench.queries, folder, tell)
        truth = _truth(made, folder, tell)
        version, built_s = _version(bench, made, folder, tell)
        manifest = Manifest.read(version)
        load = _workers(version, made, folder, tell)
        ours = stack.enter_context(contextlib.closing(Vectors.open(version, manifest)))
        found = np.concatenate([ours.search(each[np.newaxis], _K)[1] for each in made.questions])
        recall = recall_of(found, truth)
        tell(f"{manifest.vectors.kind} {dict(manifest.vectors.search)}: recall {recall:.4f}")
        peers = {name: stack.enter_context(_peer(bench, name, made, truth, folder, tell)) for name in bench.peers}
        efforts = {name: peer.reach(recall) for name, peer in peers.items()}
        rows = list(_measure(made, ours, peers, bench.rounds, tell))
        figures = {
            "recall@10": round(recall, 4),
            **_speeds(rows, efforts),
            **_sizes(manifest, made, load),
            **_peer_figures(made, efforts),
            **_mixture(made, truth, found),
            **compare(made, folder),
        }
        return Report("bench retrieval", _settings(bench, made, manifest, peers, built_s, efforts), figures, rows)


def _truth(made: VectorSet, folder: Path, tell: Callable[[str], None]) -> NDArray[np.int64]:
    """Return the true nearest rows, (n, 10)."""
    asked = hashlib.sha256(made.questions.tobytes()).hexdigest()[:8]
    kept = folder / f"truth-{made.key}-{asked}.npy"
    if kept.exists():
        return np.asarray(np.load(kept, allow_pickle=False))
    tell("searching exactly for every question")
    best = np.full((len(made.questions), _K), -np.inf, np.float32)
    rows = np.zeros((len(made.questions), _K), np.int64)
    for start in range(0, made.count, _SLICE):
        scores = made.questions @ made.rows()[start : start + _SLICE].T
        part = np.argpartition(-scores, _K - 1, axis=1)[:, :_K]
        all_scores = np.concatenate([best, np.take_along_axis(scores, part, axis=1)], axis=1)
        all_rows = np.concatenate([rows, part + start], axis=1)
        order = np.argsort(-all_scores, axis=1)[:, :_K]
        best, rows = np.take_along_axis(all_scores, order, axis=1), np.take_along_axis(all_rows, order, axis=1)
    np.save(kept, rows)
    return rows


def _version(
    bench: RetrievalBench, made: VectorSet, folder: Path, tell: Callable[[str], None]
) -> tuple[Path, float | None]:
    """Return the folder of a whole version with these vectors, and the seconds that its vectors took."""
    kind = choose(bench.vectors, made.dim, bench.recall, kind=bench.kind)
    version = folder / f"index-{made.key}-{kind.factory.replace(',', '-')}-{bench.recall}"
    seconds = version.with_name(f"{version.name}.seconds")
    try:
        Manifest.read(version).verify(version, hashes=False)
        return version, float(seconds.read_text(encoding="utf-8")) if seconds.exists() else None
    except BadIndex:
        version.mkdir(exist_ok=True)
    started = time.perf_counter()
    writer, passages = VectorWriter(version, made.dim, kind), PassageWriter(version)
    with contextlib.closing(writer), contextlib.closing(passages):
        if kind.train_rows:
            sample = np.sort(np.random.default_rng(2).permutation(made.count)[: kind.train_rows])
            writer.train(made.rows()[sample])
        for start in range(0, made.count, _SLICE):
            writer.add(made.rows()[start : start + _SLICE])
            tell(f"added {min(start + _SLICE, made.count)} of {made.count} vectors to {kind.name}")
        files, entry = writer.finish(bench.recall)
        took = time.perf_counter() - started
        passages.add(_chunks(made))
        files += [*passages.finish(), writing.write_sources(version, [])]
    _manifest(made, entry, writing.entries(version, files)).write(version)
    seconds.write_text(f"{took:.1f}", encoding="utf-8")
    return version, round(took, 1)


def _chunks(made: VectorSet) -> Iterator[Chunk]:
    """Yield a passage for every vector, three to a document; those of synthetic vectors have the words of real ones."""
    for row in range(made.count):
        source, text = f"document-{row // 3}.txt", made.texts[row % len(made.texts)][:_TEXT]
        yield Chunk(source, source, f"Document {row // 3}", "", 0, 0, len(text), text)


def _manifest(made: VectorSet, entry: Any, files: Any) -> Manifest:
    return Manifest(
        name="bench",
        encoder=EncoderEntry("bench", "bench", made.dim),
        vectors=entry,
        lexical=None,
        fusion=FusionEntry(),
        chunker="bench",
        chunking={},
        documents=-(-made.count // 3),
        passages=made.count,
        duplicates=0,
        near_duplicates=0,
        skipped=0,
        sources_sha256=made.key,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_by=f"chatkit {chatkit.__version__}",
        files=files,
    )


def _workers(version: Path, made: VectorSet, folder: Path, tell: Callable[[str], None]) -> dict[str, float]:
    """Return what the second of two workers reports: seconds to open, and megabytes of its own beside the first."""
    asked = folder / "asked.npy"
    np.save(asked, made.questions)
    command = [sys.executable, *child_python.run_module("chatkit.evaluation.vector_worker"), str(version), str(asked)]
    environ = child_python.environment()
    told: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        for number in ("first", "second"):
            worker = stack.enter_context(
                subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line:
                raise EngineFailed(f"the {number} worker ended with code {worker.wait()} before it had answered")
            told = json.loads(line)
            tell(f"{number} worker: opened in {told['load_s']:.3f} s, {told['mb']:.0f} MB of its own")
    return told


def _peer(
    bench: RetrievalBench,
    name: str,
    made: VectorSet,
    truth: NDArray[np.int64],
    folder: Path,
    tell: Callable[[str], None],
) -> contextlib.AbstractContextManager[VectorPeer]:
    tell(f"{name}: building or loading")
    return open_peer(name, bench.home, made, truth, folder)


def _measure(
    made: VectorSet, ours: Vectors, peers: Mapping[str, VectorPeer], rounds: int, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield the queries a second of every side, round by round; all but one rest meanwhile."""
    faiss = import_faiss()
    threads = faiss.omp_get_max_threads()
    flat = faiss.IndexFlatIP(made.dim)
    for start in range(0, made.count, _SLICE):
        flat.add(made.rows()[start : start + _SLICE])
    faiss.omp_set_num_threads(1)
    try:
        for number in range(rounds):
            few = np.roll(made.questions, -number * _EXACT, axis=0)[:_EXACT]
            started, before = time.perf_counter(), _others_s()
            row: dict[str, Any] = {"round": number}
            row["flat"] = _per_second(few, lambda query: flat.search(query, _K))
            row["chatkit"] = _per_second(made.questions, lambda query: ours.search(query, _K))
            row |= {name: peer.per_second() for name, peer in peers.items()}
            row["flat_together"] = _together(flat, made.questions)
            row["chatkit_together"] = _together(ours, made.questions)
            others = max(0.0, (_others_s() - before) / (time.perf_counter() - started))
            tell(", ".join(f"{name} {value:.1f}/s" for name, value in row.items() if name != "round"))
            yield row | {"others_cores": round(others, 3)}
    finally:
        faiss.omp_set_num_threads(threads)


def _per_second(queries: NDArray[np.float32], search: Callable[[NDArray[np.float32]], Any]) -> float:
    search(queries[:1])
    started = time.perf_counter()
    for query in queries:
        search(query[np.newaxis])
    return len(queries) / (time.perf_counter() - started)


def _others_s() -> float:
    """Return the processor seconds of everything on this machine but this process and what it has started."""
    return machine_cpu_seconds() - tree_cpu_seconds(os.getpid())


def _together(index: Any, queries: NDArray[np.float32]) -> float:
    """Return queries a second where they are asked together: an exact search then is one product of matrices."""
    started = time.perf_counter()
    index.search(queries, _K)
    return len(queries) / (time.perf_counter() - started)


def _speeds(rows: Sequence[Mapping[str, Any]], peers: Iterable[str]) -> dict[str, float]:
    quiet = [row for row in rows if row["others_cores"] <= _QUIET]
    counted = quiet or rows

    def median(side: str, other: str = "", digits: int = 1) -> float:
        return round(float(statistics.median(row[side] / (row[other] if other else 1) for row in counted)), digits)

    return {
        "ratio_to_flat_qps": median("chatkit", "flat"),
        "ratio_to_flat_qps_together": median("chatkit_together", "flat_together"),
        **{f"ratio_to_{name}_qps": median("chatkit", name, 3) for name in peers},
        "qps": median("chatkit"),
        "flat_qps": median("flat"),
        "quiet_rounds": float(len(quiet)),
    }


def _sizes(manifest: Manifest, made: VectorSet, load: Mapping[str, float]) -> dict[str, float]:
    size = sum(entry.size for name, entry in manifest.files.items() if name.startswith("vectors."))
    return {
        "bytes_per_vector": round(size / made.count, 1),
        "load_s": round(load["load_s"], 3),
        "second_worker_mb": round(load["mb"], 1),
    }


def _peer_figures(made: VectorSet, efforts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, effort in efforts.items():
        figures[f"{name}.recall@10"] = round(effort["recall"], 4)
        figures[f"{name}.bytes_per_vector"] = round(effort["bytes"] / made.count, 1)
    return figures


def _mixture(made: VectorSet, truth: NDArray[np.int64], found: NDArray[np.int64]) -> dict[str, float]:
    """Return which share of the true neighbours is of real rows, and the recall of these and of the others."""
    real = truth < made.real
    hit = (truth[:, :, np.newaxis] == found[:, np.newaxis, :]).any(axis=2)
    figures = {"real_neighbours": round(float(real.mean()), 4)}
    for name, mask in (("real", real), ("synthetic", ~real)):
        if mask.any():
            figures[f"{name}_neighbours.recall"] = round(float(hit[mask].mean()), 4)
    return figures


def _settings(
    bench: RetrievalBench,
    made: VectorSet,
    manifest: Manifest,
    peers: Mapping[str, VectorPeer],
    built_s: float | None,
    efforts: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    synthetic = made.count - made.real
    return {
        "vectors": made.count,
        "real": made.real,
        "synthetic": f"{synthetic}: each {SYNTHETIC}" if synthetic else "none",
        "dim": made.dim,
        "queries": f"{len(made.questions)} {made.questions_are}, one at a time on one thread",
        "kind": manifest.vectors.kind,
        "factory": manifest.vectors.factory,
        "search": dict(manifest.vectors.search),
        "tuned_for": bench.recall,
        "build_s": built_s if built_s is not None else "not known",
        "faiss": import_faiss().__version__,
        **{name: f"{peer.described}, ef {efforts[name]['effort']}" for name, peer in peers.items()},
    }
