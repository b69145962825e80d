"""Files read in a process of their own: one that is hostile, endless or breaks a library costs only itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.retrieval.document import Document, Section, Unreadable
from chatkit.retrieval.entries import Skipped, SourceFile
from chatkit.retrieval.parsing import MAX_FILE_BYTES, MAX_TEXT, Begun, LeftOut, Limits, parse_file

# What one document may cost. An ordinary page of 1 MB takes some 50 ms; browsers' rules need time that grows with the
# square of the depth, and some pages of kilobytes unfold to gigabytes.
CPU_SECONDS = 60
# Longer than this the reader may not be silent, whatever it waits for: a disk that does not answer, for one.
WALL_SECONDS = 300
MEMORY_BYTES = 2 * 2**30
# A reader that has grown beyond this share of what it may use makes room for a new one.
_RENEWED_AT = 4
# Records of one file that may end the reader before the rest of the file is given up.
_MOST_ENDED = 20
_LENGTH = 8
# An answer is one document as JSON: at most some bytes a character. Anything longer is no answer of ours.
_LONGEST_ANSWER = 8 * MAX_TEXT
# `-P` and the first lines: modules come from where this process has them, never from the folder of the documents.
_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = f"""import sys
sys.path[:0] = [] if {_ROOT!r} in sys.path else [{_ROOT!r}]
from {__name__} import main
main()
"""
# All of the environment that a reader needs: not the keys and tokens of whoever builds the index.
_ENVIRONMENT = (
    *("PATH", "HOME", "APPDATA", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "TZ", "LANG", "LC_ALL", "LC_CTYPE"),
    *("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUTF8"),
)


class Reader:
    """Does what `parsing.parse_file` does, in a child process that is started with the first file.

    Use as a context manager, one file at a time. Every document has the time and the memory of the limits.

    Attributes:
        left_out: parts of files that are in no document, such as pages without text, in the order they were met.
    """

    def __init__(
        self,
        *,
        cpu_seconds: int = CPU_SECONDS,
        wall_seconds: float = WALL_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        file_bytes: int = MAX_FILE_BYTES,
        passwords: Sequence[str] = (),
    ) -> None:
        self._seconds, self._memory, self._wall = cpu_seconds, memory_bytes, wall_seconds
        self._file_bytes, self._passwords = file_bytes, tuple(passwords)
        self._child: _Child | None = None
        self._left_out: list[Skipped] = []
        self._disturbed: set[str] = set()

    def __enter__(self) -> "Reader":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the child."""
        self._stop()

    @property
    def left_out(self) -> tuple[Skipped, ...]:
        """What was left out of the files read so far."""
        return tuple(self._left_out)

    @property
    def disturbed(self) -> frozenset[str]:
        """Sources of which something was lost to a fault that may pass: the reader fell silent or was killed."""
        return frozenset(self._disturbed)

    def leave_out(self, source: str, reason: str) -> None:
        """Note what is left out of a source."""
        self._left_out.append(Skipped(source, reason))

    def read(self, file: SourceFile) -> Iterator[Document]:
        """Yield the documents of one file as they are read.

        Raises:
            Unreadable: it cannot be read, costs more than it may, or ends the child. Documents before it are whole.
        """
        passed = 0
        for ended in range(_MOST_ENDED + 1):
            place = _Place(passed)
            try:
                yield from self._from(file, place)
                return
            except _Ended as error:
                if error.may_pass:
                    self._disturbed.add(file.source)
                if place.begun == passed or ended == _MOST_ENDED:
                    raise Unreadable(str(error)) from None
                self.leave_out(file.source, f"record {place.begun} of it {error}")
                passed = place.begun

    def _from(self, file: SourceFile, place: "_Place") -> Iterator[Document]:
        """Yield the documents after those that are passed over, and keep the place."""
        child = self._child = self._child or _Child((str(self._seconds), str(self._memory)), self._wall)
        request = {
            "path": os.path.abspath(file.path),
            "source": file.source,
            "file_bytes": self._file_bytes,
            "passwords": self._passwords,
            "passed": place.begun,
        }
        child.ask(json.dumps(request).encode())
        done = False
        try:
            while not done:
                answer = child.answer()
                if answer is None:
                    raise self._ended(child)
                if "text" in answer:
                    yield _document(file.source, answer)
                elif "begun" in answer:
                    place.begun += 1
                elif "left_out" in answer:
                    self.leave_out(file.source, answer["left_out"])
                elif "too_large" in answer:
                    raise self._too_large("it ran out of memory")
                elif "end" in answer:
                    done = True
                    if "unreadable" in answer:
                        raise Unreadable(answer["unreadable"])
        finally:
            if not done or child.has_grown:
                self._stop()

    def _ended(self, child: "_Child") -> "_Ended":
        """Return the reason for a file that ended the child: past its time, killed, or by a fault of the reader's."""
        if child.was_silent:
            return _Ended(f"cannot be read: nothing was heard of the reader for {self._wall:g} s", may_pass=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(1)  # of itself, so that its own end is told and not that of `_stop`
        code = self._stop()
        named = signal.Signals(-code).name if code is not None and -code in set(signal.Signals) else f"code {code}"
        if named in ("SIGXCPU", "SIGKILL"):
            return self._too_large(f"the reader ended with {named}", may_pass=named == "SIGKILL")
        return _Ended(f"cannot be read: the reader ended with {named}; save it anew, or simplify it")

    def _too_large(self, how: str, *, may_pass: bool = False) -> "_Ended":
        return _Ended(
            f"cannot be read in {self._seconds} s of processor time and {self._memory / 2**30:.3g} GiB of memory "
            f"({how}); split or simplify it",
            may_pass=may_pass,
        )

    def _stop(self) -> int | None:
        child, self._child = self._child, None
        return child.stop() if child is not None else None


class _Ended(Unreadable):
    """The child did not come to the end of a file; where `may_pass`, another time it might."""

    def __init__(self, reason: str, *, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


@dataclass(slots=True)
class _Place:
    """How many records of a file were begun; the last of them may not have been read."""

    begun: int


class _Child:
    """The process, and a watch over its silence."""

    def __init__(self, limits: tuple[str, str], wall_seconds: float) -> None:
        command = [sys.executable, "-P", "-c", _PROGRAM, *limits]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
        self._wall = wall_seconds
        self._waits_since: float | None = None
        self._stopped = threading.Event()
        self.was_silent = self.has_grown = False
        threading.Thread(target=self._watch, name="chatkit-reader", daemon=True).start()

    def ask(self, request: bytes) -> None:
        """Send one request; where the child has ended, its answer will be missing as well."""
        if self.process.stdin is None:
            raise AssertionError("the child was started without pipes")
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(len(request).to_bytes(_LENGTH) + request)
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Return the next message; None when the child has ended, or was ended for its silence."""
        if self.process.stdout is None:
            raise AssertionError("the child was started without pipes")
        self._waits_since = time.monotonic()
        try:
            size = int.from_bytes(head) if len(head := self.process.stdout.read(_LENGTH)) == _LENGTH else -1
            message = self.process.stdout.read(size) if 0 <= size <= _LONGEST_ANSWER else b""
        finally:
            self._waits_since = None
        if size <= 0 or len(message) < size:
            return None
        answer: dict[str, Any] = json.loads(message)
        self.has_grown = "grown" in answer
        return answer

    def stop(self) -> int | None:
        """End the process and return its code."""
        self._stopped.set()
        self.process.kill()
        self.process.communicate()
        return self.process.returncode

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._wall / 4)):
            since = self._waits_since
            if since is not None and time.monotonic() - since > self._wall:
                self.was_silent = True
                self.process.kill()
                return


def _environment() -> dict[str, str]:
    given = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # An empty or relative entry, often left by a profile's `PYTHONPATH=$PYTHONPATH:…`, is the working directory.
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]
    # Libraries that start a thread a core take address space for each, which is what is limited.
    return {**given, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _document(source: str, answer: dict[str, Any]) -> Document:
    sections = tuple(Section(*section) for section in answer["sections"])
    return Document(answer.get("source", source), answer["title"], answer["text"], sections)


def main() -> None:
    """Answer the requests on stdin with messages on stdout, each with its length before it, until stdin ends."""
    cpu_seconds, memory_bytes = map(int, sys.argv[1:])
    _limit_memory(memory_bytes)
    # What a library prints must not stand between the messages.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while size := sys.stdin.buffer.read(_LENGTH):
        request = json.loads(sys.stdin.buffer.read(int.from_bytes(size)))
        _limit_time(cpu_seconds)
        for message in _answer(request):
            if "end" in message and _peak_bytes() * _RENEWED_AT > memory_bytes:
                message["grown"] = True
            try:
                content = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
            except MemoryError:
                content = b'{"too_large": true}'
            out.write(len(content).to_bytes(_LENGTH) + content)
            out.flush()
            _limit_time(cpu_seconds)


def _answer(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    limits = Limits(file_bytes=request["file_bytes"], passwords=request["passwords"], passed=request["passed"])
    reason: str | None = None
    try:
        for found in parse_file(Path(request["path"]), request["source"], limits):
            yield _message(found)
    except Unreadable as error:
        reason = str(error)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    except MemoryError:
        yield {"too_large": True}
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        reason = f"cannot be read: {type(error).__name__} {said}".strip()
    yield {"end": True} if reason is None else {"end": True, "unreadable": reason}


def _message(found: Document | LeftOut | Begun | None) -> dict[str, Any]:
    if found is None:
        return {"alive": True}
    if isinstance(found, Begun):
        return {"begun": True}
    if isinstance(found, LeftOut):
        return {"left_out": found.reason}
    sections = [(section.heading, section.start, section.end, section.page) for section in found.sections]
    return {"source": found.source, "title": found.title, "text": found.text, "sections": sections}


def _limit_memory(most: int) -> None:
    """Let allocations past `most` bytes of address space fail, where the system can; leave no core file."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: int) -> None:
    """End this process when it has computed for `seconds` more."""
    try:
        import resource
    except ModuleNotFoundError:
        return
    soft = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _peak_bytes() -> int:
    """Return the most memory that this program has held, 0 where that is not told.

    What `getrusage` tells begins with the size of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
