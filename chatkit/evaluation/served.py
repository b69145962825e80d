"""The whole service as users get it: `chatkit serve` in a process of its own, driven over HTTP by blocking clients."""

import http.client
import json
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import EngineFailed, Unavailable
from chatkit.evaluation.processes import children, cpu_seconds
from chatkit.settings import ENV_PREFIX

_READY = re.compile(r"ready after .* on http://([^:]+):(\d+)")
# A client that waits longer than this has lost its answer. Seconds.
_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """One streamed answer as the client saw it; times are seconds from sending the request.

    Attributes:
        headers_s: the response's status line and headers had come.
        first_delta_s: the first text had come.
        timings: the service's own seconds by stage, since the turn began there.
    """

    text: str
    headers_s: float
    first_delta_s: float
    total_s: float
    prompt_tokens: int
    tokens: int
    timings: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ServedRound:
    """Answers in the order of the messages, the wall time of all, and the processor time of each part."""

    seconds: float
    answers: list[ServedAnswer]
    cpu_s: Mapping[str, float]


class ServedChatkit:
    """A running `chatkit serve` on a free loopback port.

    Args:
        home: an empty folder; holds the session store.
        settings: name → value for every setting that shall not have its default.

    Raises:
        EngineFailed: the service did not come up; the message holds its last words.
    """

    def __init__(self, home: Path, settings: Mapping[str, Any]) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        environ |= {ENV_PREFIX + name.upper(): str(value) for name, value in settings.items()}
        environ[ENV_PREFIX + "HOME"] = str(home)
        self._log = (home / "serve.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chatkit", "serve", "--port", "0", "--index", ""],
            env=environ,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        try:
            self._address = self._wait()
        except BaseException:
            self.close()
            raise

    def _cpu_s(self) -> dict[str, float]:
        """Return the processor time used so far by the engine's process, the service's own, and the clients here."""
        pid = self._process.pid
        engine = sum(cpu_seconds(child) for child in children(pid))
        return {"engine": engine, "service": cpu_seconds(pid), "clients": time.process_time()}

    def _wait(self) -> tuple[str, int]:
        """Return host and port once the service says that it is ready."""
        said = Path(self._log.name)
        while self._process.poll() is None:
            if found := _READY.search(said.read_text(encoding="utf-8")):
                return found[1], int(found[2])
            time.sleep(0.05)
        last = said.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["no message"]
        raise EngineFailed(f"chatkit serve ended with code {self._process.returncode}: {last[0]}")

    def run(self, messages: Sequence[str], *, clients: int, new_tokens: int) -> ServedRound:
        """Send every message as a session's first turn, `clients` of them at any time, and read the streams."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for at in range(len(messages)):
            waiting.put(at)
        connections = [http.client.HTTPConnection(*self._address, timeout=_TIMEOUT) for _ in range(clients)]
        answers: dict[int, ServedAnswer] = {}

        def client(connection: http.client.HTTPConnection) -> None:
            while True:
                try:
                    at = waiting.get_nowait()
                except queue.Empty:
                    return
                answers[at] = _ask(connection, messages[at], new_tokens)

        try:
            for connection in connections:
                connection.connect()
            with ThreadPoolExecutor(clients) as pool:
                before, began = self._cpu_s(), time.perf_counter()
                for done in [pool.submit(client, connection) for connection in connections]:
                    done.result()
                seconds, after = time.perf_counter() - began, self._cpu_s()
        finally:
            for connection in connections:
                connection.close()
        cpu_s = {part: after[part] - before[part] for part in after}
        return ServedRound(seconds, [answers[at] for at in range(len(messages))], cpu_s)

    def close(self) -> None:
        """Stop the service and wait for it."""
        self._process.terminate()
        self._process.wait()
        self._log.close()


def _ask(connection: http.client.HTTPConnection, message: str, new_tokens: int) -> ServedAnswer:
    """Send one streamed turn and read it to its end.

    Raises:
        Unavailable: the service answered with an error.
    """
    body = json.dumps({"inputs": message, "parameters": {"stream": True, "max_new_tokens": new_tokens}}).encode()
    began = time.perf_counter()
    connection.request("POST", "/invocations", body, {"content-type": "application/json"})
    response = connection.getresponse()
    headers_s = time.perf_counter() - began
    first_delta_s = 0.0
    last: dict[str, Any] = {}
    while line := response.readline():
        event = json.loads(line)
        if event.get("event") == "delta" and not first_delta_s:
            first_delta_s = time.perf_counter() - began
        last = event
    total_s = time.perf_counter() - began
    if last.get("event") != "done":
        raise Unavailable(f"the service answered {response.status} {json.dumps(last)[:200]}")
    usage = last["usage"]
    return ServedAnswer(
        text=last["outputs"],
        headers_s=headers_s,
        first_delta_s=first_delta_s or total_s,
        total_s=total_s,
        prompt_tokens=usage["prompt_tokens"],
        tokens=usage["completion_tokens"],
        timings=last["timings"],
    )
