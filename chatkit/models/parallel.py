"""Tensor parallelism: which ranks there are, how they find each other, and how the death of one ends them all.

Rank 0 decides and announces; the others follow, call for call. A thread of every rank meets the others' every half
second: a rank that is gone breaks the meeting at once, one that hangs fails to come, and then all of them end.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from chatkit import child_python
from chatkit.errors import ConfigError

# Where ranks of this machine meet when mpirun says nothing; torchrun does.
_HERE = "127.0.0.1"
_PORT = "29511"
# How often ranks meet, and how long one may be late. Seconds.
_MEETING = 0.5
_LATE = 4.0
# What fails on another rank may fail on rank 0 as well, which names it by its kind: it has this long to. Seconds.
_OWN_WORDS = 1.0
# Ranks load gigabytes before the first meeting; between commands nothing happens for as long as nobody asks.
_FOREVER = timedelta(days=365)
_JOINING = timedelta(minutes=30)
# What launchers call rank, number of ranks, and rank on this machine: torchrun, then Open MPI.
_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
# Ranks that this process, rank 0, has started.
_children: "list[subprocess.Popen[bytes]]" = []


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of several, and where they meet."""

    rank: int
    ranks: int
    local_rank: int
    address: str
    port: int


def place_of(environ: Mapping[str, str]) -> Place | None:
    """Return the place that torchrun or mpirun gave this process; None when neither started it.

    Raises:
        ConfigError: a variable of theirs is no number.
    """
    for rank, ranks, local in _VARIABLES:
        if rank in environ and ranks in environ:
            try:
                place = Place(
                    rank=int(environ[rank]),
                    ranks=int(environ[ranks]),
                    local_rank=int(environ.get(local, environ[rank])),
                    address=environ.get("MASTER_ADDR", _HERE),
                    port=int(environ.get("MASTER_PORT", _PORT)),
                )
            except ValueError as error:
                raise ConfigError(f"{rank}, {ranks}, {local} or MASTER_PORT is no number: {error}") from error
            return place if place.ranks > 1 else None
    return None


def check_ranks(ranks: int, heads: int, key_value_heads: int) -> None:
    """Refuse a number of ranks that the attention heads do not divide over.

    Raises:
        ConfigError: naming the numbers that would do.
    """
    fitting = [n for n in range(1, key_value_heads + 1) if heads % n == 0 and key_value_heads % n == 0]
    if ranks not in fitting:
        raise ConfigError(
            f"tensor_parallel is {ranks}, but {heads} attention heads and {key_value_heads} key-value heads "
            f"divide over {', '.join(map(str, fitting))} only; set CHATKIT_TENSOR_PARALLEL to one of these"
        )


class Group:
    """This rank's ties to the others.

    Args:
        place: of this rank.
        ended: called once, with a line that says why, when another rank is gone or hangs; the process ends after it.
    """

    def __init__(self, place: Place, ended: Callable[[str], None], store: Any = None) -> None:
        import torch
        import torch.distributed as dist

        self.place = place
        self._ended = ended
        self._dist = dist
        self._torch = torch
        self._over = threading.Event()
        os.environ |= {"LOCAL_RANK": str(place.local_rank), "RANK": str(place.rank), "WORLD_SIZE": str(place.ranks)}
        if store is None:
            os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(place.local_rank)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.ranks, timeout=_JOINING)
        self._orders = dist.new_group(backend="gloo", timeout=_FOREVER)
        self._meetings = dist.new_group(backend="gloo", timeout=_FOREVER)

    def meet(self, busy_since: Callable[[], float | None], longest: float) -> None:
        """Start to watch the others; all ranks call it once they have loaded.

        Args:
            busy_since: returns when the call that runs on this rank began; None while there is none.
            longest: seconds after which such a call hangs.
        """
        threading.Thread(target=self._meet, args=(busy_since, longest), name="ranks", daemon=True).start()

    def _meet(self, busy_since: Callable[[], float | None], longest: float) -> None:
        own = f"rank {self.place.rank}"
        try:
            while not self._over.wait(_MEETING):
                self._dist.barrier(self._meetings, async_op=True).wait(timeout=timedelta(seconds=_LATE))
                since = busy_since()
                if since is not None and time.monotonic() - since > longest:
                    _end(self._ended, f"a call of {own} has taken {longest:.0f} s")
        except RuntimeError as error:
            if not self._over.is_set():
                _end(self._ended, f"{own} lost another of the {self.place.ranks} ranks ({error})"[:300])

    def gather(self, number: int) -> list[int]:
        """Return every rank's number, in their order."""
        own = self._torch.tensor([number])
        all_ = [self._torch.zeros_like(own) for _ in range(self.place.ranks)]
        self._dist.all_gather(all_, own, group=self._orders)
        return [int(each) for each in all_]

    def announce(self, name: str, arguments: Any) -> None:
        """Tell the other ranks what rank 0 is about to do."""
        raw = bytearray(json.dumps([name, arguments]).encode())
        self._dist.broadcast(self._torch.tensor([len(raw)]), 0, group=self._orders)
        self._dist.broadcast(self._torch.frombuffer(raw, dtype=self._torch.uint8), 0, group=self._orders)

    def follow(self, target: Any) -> None:
        """Call on `target` what rank 0 announces, until it announces the end."""
        while True:
            length = self._torch.zeros(1, dtype=self._torch.int64)
            self._dist.broadcast(length, 0, group=self._orders)
            raw = self._torch.empty(int(length), dtype=self._torch.uint8)
            self._dist.broadcast(raw, 0, group=self._orders)
            name, arguments = json.loads(raw.numpy().tobytes())
            if name == "leave":
                self._over.set()
                return
            getattr(target, name)(*arguments)

    def leave(self) -> None:
        """Let the other ranks go."""
        self._over.set()
        with contextlib.suppress(RuntimeError):  # one of them is gone already
            self.announce("leave", [])


def start_followers(
    ranks: int, command: Callable[[Place], Sequence[str]], died: Callable[[str], None]
) -> tuple[Place, Any]:
    """Start the other ranks on this machine; return rank 0's place and the store where all of them meet.

    They end when this process does: their stdin is a pipe that it holds.

    Args:
        command: returns what starts the rank at a place.
        died: called when one ends by itself, with a line; this process ends after it.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(_HERE, 0, ranks, is_master=True, wait_for_workers=False, timeout=_JOINING)
    for rank in range(1, ranks):
        place = Place(rank, ranks, rank, _HERE, store.port)
        process = subprocess.Popen(
            command(place), env=child_python.environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        _children.append(process)
        threading.Thread(target=_watch, args=(rank, process, died), daemon=True).start()
    return Place(0, ranks, 0, _HERE, store.port), store


def join(place: Place) -> Any:
    """Return the store of a started rank, which ends as soon as rank 0's process is gone and leaves signals to it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    return TCPStore(place.address, place.port, place.ranks, is_master=False, timeout=_JOINING)


def _watch(rank: int, process: "subprocess.Popen[bytes]", died: Callable[[str], None]) -> None:
    code = process.wait()
    if code > 0:
        time.sleep(_OWN_WORDS)
    if code != 0:
        _end(died, f"rank {rank} ended with code {code}" if code > 0 else f"rank {rank} was ended by signal {-code}")


def _end(say: Callable[[str], None], why: str) -> None:
    """End this process and the ranks that it has started, one that hangs too, also when nobody is there to be told."""
    try:
        say(why)
    finally:
        for child in _children:
            child.kill()
        os._exit(1)
