"""Pages read in a process of their own: one that is nested a million deep, or breaks the parser, costs only itself."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from chatkit.retrieval import html
from chatkit.retrieval.document import Section, Unreadable

# What one page may cost. An ordinary page of 1 MB takes some 50 ms; browsers' rules need time that grows with the
# square of the depth, and some pages of kilobytes unfold to gigabytes.
CPU_SECONDS = 20
MEMORY_BYTES = 4 * 2**30
_LENGTH = 8


class PageReader:
    """Does what `html.read` does, in a child process that is started with the first page; use as a context manager."""

    def __init__(self, *, cpu_seconds: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limits = (str(cpu_seconds), str(memory_bytes))
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PageReader":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the child."""
        self._stop()

    def read(self, content: bytes) -> html.Page:
        """Return the page.

        Raises:
            Unreadable: as `html.read` does, and when the page costs more than it may or ends the child.
        """
        child = self._child = self._child or _start(self._limits)
        if child.stdin is None or child.stdout is None:
            raise AssertionError("the child was started without pipes")
        try:
            child.stdin.write(len(content).to_bytes(_LENGTH))
            child.stdin.write(content)
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: the answer is missing as well
        size = child.stdout.read(_LENGTH)
        answer = child.stdout.read(int.from_bytes(size))
        if len(size) < _LENGTH or len(answer) < int.from_bytes(size):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)  # of itself, so that its own end is told and not that of `_stop`
            raise self._ended(self._stop())
        table = json.loads(answer)
        if table.get("too_large"):
            self._stop()
            raise self._too_large("it ran out of memory")
        return _page(table)

    def _ended(self, code: int | None) -> Unreadable:
        """Return the reason for a page that ended the child: past its time, killed, or by a fault of the reader's."""
        named = signal.Signals(-code).name if code is not None and -code in set(signal.Signals) else f"code {code}"
        if named in ("SIGXCPU", "SIGKILL"):
            return self._too_large(f"the reader ended with {named}")
        return Unreadable(f"cannot be read: the reader ended with {named}; simplify the page")

    def _too_large(self, how: str) -> Unreadable:
        seconds, memory = self._limits
        return Unreadable(
            f"cannot be read in {seconds} s of processor time and {int(memory) / 2**30:.0f} GiB of memory ({how}); "
            "simplify the page"
        )

    def _stop(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()
        child.communicate()
        return child.returncode


def _start(limits: tuple[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", __name__, *limits]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _page(table: dict[str, Any]) -> html.Page:
    if "unreadable" in table:
        raise Unreadable(table["unreadable"])
    sections = tuple(Section(**section) for section in table["sections"])
    return html.Page(table["title"], table["text"], sections)


def main() -> None:
    """Answer pages from stdin on stdout, each with its length before it, until stdin ends."""
    cpu_seconds, memory_bytes = map(int, sys.argv[1:])
    _limit_memory(memory_bytes)
    while size := sys.stdin.buffer.read(_LENGTH):
        content = sys.stdin.buffer.read(int.from_bytes(size))
        _limit_time(cpu_seconds)
        answer = _answer(content)
        sys.stdout.buffer.write(len(answer).to_bytes(_LENGTH) + answer)
        sys.stdout.buffer.flush()


def _answer(content: bytes) -> bytes:
    try:
        return json.dumps(asdict(html.read(content))).encode()
    except Unreadable as error:
        table: dict[str, Any] = {"unreadable": str(error)}
    except MemoryError:
        table = {"too_large": True}
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        table = {"unreadable": f"cannot be read: {type(error).__name__} {said}".strip()}
    return json.dumps(table).encode()


def _limit_memory(most: int) -> None:
    """Let allocations past `most` bytes of address space fail, where the system can."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _limit_time(seconds: int) -> None:
    """End this process when it has computed for `seconds` more."""
    try:
        import resource
    except ModuleNotFoundError:
        return
    soft = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
