"""A serving process with a scripted model that can be killed and started again at once."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatkit import child_python
from chatkit.errors import EngineFailed

# What Python runs; it forks a server for each line it is given, from a process that has imported everything.
PROGRAM = child_python.run_module("chatkit.cli._scripted_serve")
# A message with this word is refused.
REFUSED = "unspeakable"
# A server that says nothing for this long is stuck. Seconds.
_PATIENCE = 60.0


class ScriptedServer:
    """The program that forks servers; `start` and `kill` in turns.

    Args:
        folder: for its log.
        settings: name → value, JSON's values alone, for every setting that shall not have its default.
        program: what Python runs in place of chatkit's own.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, program: Sequence[str] = PROGRAM) -> None:
        self._log = (folder / "serve.log").open("wb")
        self._pid: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, *program, json.dumps(dict(settings))],
            env=child_python.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )

    def start(self) -> tuple[str, int]:
        """Start a server and return host and port once it answers.

        Raises:
            EngineFailed: it did not come up; the message holds its last words.
        """
        if self._process.stdin is None:
            raise AssertionError("the program was started with a pipe")
        try:
            self._process.stdin.write(b"serve\n")
        except OSError:
            raise self._failure("the program that starts it has ended") from None
        said = self._line()
        if said[:1] != ["ready"]:
            raise self._failure(f"it said {' '.join(said) or 'nothing'!r}")
        self._pid = int(said[1])
        return "127.0.0.1", int(said[2])

    def kill(self) -> float:
        """Send SIGKILL, wait until the process is gone, and return when it was sent, monotonic seconds.

        Raises:
            EngineFailed: it had ended by itself.
        """
        pid, self._pid = self._pid, None
        if pid is None:
            raise AssertionError("no server runs")
        sent_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        said = self._line()
        if said != ["ended", str(-signal.SIGKILL)]:
            raise self._failure(f"it had {' '.join(said)} before it was killed")
        return sent_at

    def close(self) -> None:
        """Kill the server that runs, if one does, and end the program."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):  # Ctrl-C in a terminal ends it too
                os.kill(self._pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout, self._log):
            if end is not None:
                end.close()

    def _line(self) -> list[str]:
        """Return the words of the next line; none when it does not come."""
        if self._process.stdout is None:
            raise AssertionError("the program was started with a pipe")
        readable, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        return self._process.stdout.readline().decode().split() if readable else []

    def _failure(self, seen: str) -> EngineFailed:
        words = Path(self._log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return EngineFailed(f"the server with the scripted model failed: {seen}; its last words: {''.join(words)}")
