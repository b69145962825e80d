"""A real `chatkit serve` in a process of its own, for tests of the whole."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent


class Served:
    """`chatkit serve` on a free loopback port; use as a context manager, `stop` and `start` again to restart it.

    Attributes:
        log: what it wrote to stderr so far.
    """

    def __init__(self, home: Path, models_dir: Path, *flags: str) -> None:
        self.home = home
        self.log = ""
        self._flags = flags
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("CHATKIT_")}
        self._environment |= {"CHATKIT_HOME": str(home), "CHATKIT_MODELS_DIR": str(models_dir)}
        self.process: subprocess.Popen[str] | None = None

    def chatkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of chatkit on the same home folder."""
        return subprocess.run(
            [sys.executable, "-m", "chatkit", *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self) -> "Served":
        """Start and wait until it is ready."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chatkit", "serve", "--port", "0", *self._flags],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        found = threading.Event()
        self._follower = threading.Thread(target=self._follow, args=(found,), daemon=True)
        self._follower.start()
        if not found.wait(60) or self.process.poll() is not None:
            raise AssertionError(f"chatkit serve did not get ready: {self.log}")
        addresses = re.findall(r"http://\S+", self.log)  # the log goes on over a restart, the last one counts
        assert addresses, self.log
        self.client = httpx.Client(base_url=addresses[-1], timeout=120)
        return self

    def _follow(self, found: threading.Event) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if "ready after" in line:
                found.set()
        found.set()

    def stop(self) -> int:
        """Ask it to stop as an operator would and return its exit code."""
        assert self.process is not None
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self._follower.join(5)
        if self.process.stderr:
            self.process.stderr.close()
        return code

    def __enter__(self) -> "Served":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, text: str, **parameters: object) -> dict:
        """Send one turn and return the answer."""
        answer = self.client.post("/invocations", json={"inputs": text, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, text: str, **parameters: object) -> list[dict]:
        """Send one streamed turn and return its frames."""
        body = {"inputs": text, "stream": True, "parameters": parameters}
        with self.client.stream("POST", "/invocations", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            return [httpx.Response(200, content=line).json() for line in answer.iter_lines() if line]
