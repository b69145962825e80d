"""The whole service as users get it: `chatkit serve` in a process of its own, driven over HTTP by blocking clients."""

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit import child_python
from chatkit.errors import EngineFailed, Unavailable
from chatkit.evaluation.driving import Driven, drive
from chatkit.evaluation.processes import children, cpu_seconds
from chatkit.setting_checks import ENV_PREFIX

_READY = re.compile(r"ready after .* on http://([^:]+):(\d+)")
_CHATKIT = child_python.run_module("chatkit")
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


ServedRound = Driven[ServedAnswer]


class ServedChatkit:
    """A running `chatkit serve` on a free loopback port.

    Args:
        home: an empty folder; holds the session store.
        settings: name → value for every setting that shall not have its default.
        program: what Python runs in place of chatkit itself.

    Attributes:
        address: host and port.

    Raises:
        EngineFailed: the service did not come up; the message holds its last words.
    """

    def __init__(self, home: Path, settings: Mapping[str, Any], *, program: Sequence[str] = _CHATKIT) -> None:
        given = child_python.environment()
        environ = {name: value for name, value in given.items() if not name.startswith(ENV_PREFIX)}
        environ |= {ENV_PREFIX + name.upper(): str(value) for name, value in settings.items()}
        environ[ENV_PREFIX + "HOME"] = str(home)
        self._log = (home / "serve.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0", "--index", ""],
            env=environ,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        try:
            self.address = self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The service's process; the engine's is its child."""
        return self._process.pid

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

        def ask(connection: http.client.HTTPConnection, message: str) -> ServedAnswer:
            return _ask(connection, message, new_tokens)

        return drive(self.address, messages, ask, self._cpu_s, clients=clients, timeout_s=_TIMEOUT)

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
