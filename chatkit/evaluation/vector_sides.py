"""hnswlib and usearch beside an index: each a process in an environment that has it."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import EngineFailed, NotFound
from chatkit.evaluation.peers import MAKE
from chatkit.evaluation.vector_set import VectorSet

PEERS = {"hnswlib": "float32, M 16, ef_construction 200", "usearch": "bfloat16, connectivity 16, expansion_add 200"}
# What `benchmarks/peers/make.py` calls the environment that has both.
MADE_AS = "vectors"


class VectorPeer:
    """A process that holds an index of all vectors and waits for orders.

    Attributes:
        described: version, form and build time, in words.
    """

    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path, queries: int, told: str) -> None:
        """Wait until its index is there."""
        self._name, self._process, self._log, self._queries = name, process, log, queries
        ready = self._answer()
        self._bytes = ready["bytes"]
        self.described = told if ready["seconds"] is None else f"{told}; built in {ready['seconds']:.0f} s"

    def reach(self, recall: float) -> Mapping[str, float]:
        """Take the least effort with that recall; return `effort`, `recall` and `bytes` of the index."""
        return self._ask(f"recall {recall}") | {"bytes": self._bytes}

    def per_second(self) -> float:
        """Return queries a second, one after the other."""
        return self._queries / self._ask("run")["seconds"]

    def _ask(self, order: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["none"]
            raise EngineFailed(f"{self._name} ended with code {code}, its last words: {words[0]:.300}")
        told: dict[str, float] = json.loads(line)
        return told


@contextmanager
def open_peer(name: str, home: Path, made: VectorSet, truth: NDArray[np.int64], folder: Path) -> Iterator[VectorPeer]:
    """Build the index of a peer, or load the one that is kept in `folder`.

    Raises:
        NotFound: neither the environment made for it nor this one has it.
        EngineFailed: it ended.
    """
    python, its_version = find_peer(name, home)
    script = Path(__file__).with_name("vector_peer.py")
    with tempfile.TemporaryDirectory(prefix="chatkit-bench-") as work:
        asked, wanted, log = (Path(work) / part for part in ("asked.npy", "truth.npy", "log"))
        np.save(asked, made.questions)
        np.save(wanted, truth)
        kept = folder / f"{name}-{its_version}-{made.key}.index"
        threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        places = [name, str(made.file), str(made.dim), str(asked), str(wanted), str(kept), threads]
        with (
            log.open("wb") as words,
            subprocess.Popen(
                # -P: beside the script lie modules of chatkit, which it must not find first.
                [python, "-P", "-W", "ignore", str(script), *places],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": threads},
            ) as process,
        ):
            try:
                yield VectorPeer(name, process, log, len(made.questions), f"{its_version}, {PEERS[name]}")
            finally:
                process.kill()


def find_peer(name: str, home: Path) -> tuple[str, str]:
    """Return the Python that has the peer, and its version.

    Raises:
        NotFound: there is none.
    """
    home = home.expanduser()
    try:
        told: dict[str, Any] = json.loads((home / f"{MADE_AS}.json").read_text(encoding="utf-8"))
        if Path(told["command"][0]).exists():
            return told["command"][0], told["versions"][name]
    except (FileNotFoundError, KeyError):
        pass
    if importlib.util.find_spec(name) is not None:
        return sys.executable, version(name)
    raise NotFound(f"there is no {name} in {str(home)!r} nor in this environment; make it with: {MAKE} {MADE_AS}")
