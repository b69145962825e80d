"""A judging model in a process of its own, so that its passes never stop the service's event loop: the service's side.

Checks are answered one after the other. A process that dies, or is silent for too long, is started anew by a later
check; meanwhile checks fail, which is never read as safe.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatkit import child_python
from chatkit.errors import BrokenModel, ChatkitError, ConfigError, EngineFailed, MissingExtra, ModelError, TooLarge
from chatkit.judging import Question

log = logging.getLogger(__name__)

# Loading some gigabytes from a slow disk. Seconds.
_START_S = 600.0
# A process that has failed is not started again before that. Seconds.
_AGAIN_AFTER_S = 30.0
# The process ends by itself when its stdin closes; after this it is killed. Seconds.
_STOP_S = 5.0
_KINDS: dict[str, type[ChatkitError]] = {kind.code: kind for kind in (BrokenModel, ConfigError, ModelError)}


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """How the model runs.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, …; `auto` takes the GPUs where there are any, several by accelerate's map.
        dtype, quantize: as of the `transformers` engine.
        threads: of the CPU; 0 takes all cores.
        answer_s: seconds after which a check has not been answered.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    threads: int = 0
    answer_s: float = 20.0


class ProcessJudge:
    """A model of transformers in a child process; satisfies judging.LikelihoodJudge.

    Args:
        folder: the model's.
        samples: pairs of questions of which the beginning that they share is read once.

    Attributes:
        name: what the model is called.
        version: what tells its files from others.
        forwards: passes of the model so far, as it told last.
    """

    def __init__(
        self, folder: Path, options: JudgeOptions, *, name: str, samples: Sequence[tuple[Question, Question]] = ()
    ) -> None:
        self.name = name
        self.version = _version(folder)
        self.forwards = 0
        told = asdict(options) | {"model": str(folder)}
        told["samples"] = [[_as_json(first), _as_json(second)] for first, second in samples]
        self._command = (sys.executable, *child_python.run_module("chatkit.models.judge_worker"), json.dumps(told))
        self._answer_s = options.answer_s
        self._numbers = itertools.count()
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._started_at = 0.0
        self._closed = False
        # One thread asks: a check that was given up while it waits is then never sent.
        self._one = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")

    def start(self) -> None:
        """Start the process and wait until the model is loaded.

        Raises:
            ModelError: the model cannot be used (BrokenModel where its files are damaged).
            ConfigError: a setting does not fit this machine; MissingExtra where torch is not installed.
            EngineFailed: the process ended otherwise, or takes too long.
        """
        self._started_at = time.monotonic()
        self._events = queue.SimpleQueue()
        self._process = subprocess.Popen(
            self._command,
            env=child_python.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=_read, args=(self._process, self._events), name="judge-events", daemon=True).start()
        self._next(_START_S)

    async def likelihoods(self, questions: Sequence[Question], answers: Sequence[str]) -> list[list[float]]:
        """Return (questions, answers) log-probabilities; see judging.LikelihoodJudge.

        Raises:
            TooLarge: a question is longer than the model reads.
            EngineFailed: the model does not answer.
        """
        number = next(self._numbers)
        asked = {"ask": number, "questions": [_as_json(one) for one in questions], "answers": list(answers)}
        if self._closed:
            raise EngineFailed("the moderation model is shut down")
        return await asyncio.get_running_loop().run_in_executor(self._one, self._ask, asked)

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        await asyncio.to_thread(self._stop)

    def _ask(self, command: dict[str, Any]) -> list[list[float]]:
        process = self._running()
        try:
            if process.stdin is None:
                raise AssertionError("the process was started without pipes")
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
        except OSError:
            self._stop_process()
            raise EngineFailed("the moderation model's process has ended") from None
        event = self._next(self._answer_s)
        while event.get("answer", event.get("failed")) != command["ask"]:  # of a check that took too long
            event = self._next(self._answer_s)
        if "failed" in event:
            raise (TooLarge if event["kind"] == TooLarge.code else EngineFailed)(event["message"])
        self.forwards = event["forwards"]
        likelihoods: list[list[float]] = event["likelihoods"]
        return likelihoods

    def _running(self) -> "subprocess.Popen[str]":
        process = self._process
        if process is not None and process.poll() is None:
            return process
        if self._closed or time.monotonic() - self._started_at < _AGAIN_AFTER_S:
            raise EngineFailed("the moderation model's process has ended; it is started again in a while")
        log.error("the moderation model's process has ended; it is started again")
        self.start()
        return self._running()

    def _next(self, seconds: float) -> dict[str, Any]:
        """Return the next event that is no mere sign of life.

        Raises:
            EngineFailed: none came in time, or the process has ended.
            ModelError, ConfigError: what the process ended with at its start.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = self._events.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                self._stop_process()
                raise EngineFailed(f"the moderation model has not answered for {seconds:.0f} s") from None
            if event is None:
                self._stop_process()
                raise EngineFailed("the moderation model's process has ended")
            if "fatal" in event:
                self._stop_process()
                raise _why(event)
            if "alive" not in event:
                return event

    def _stop(self) -> None:
        self._one.shutdown(wait=False, cancel_futures=True)
        self._stop_process(wait_s=_STOP_S)

    def _stop_process(self, *, wait_s: float = 0.0) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if wait_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
        process.kill()
        process.wait()


def _read(process: "subprocess.Popen[str]", events: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    """Hand out what the process says, in a thread of its own; None is its end."""
    if process.stdout is None:
        raise AssertionError("the process was started without pipes")
    with process.stdout:
        for line in process.stdout:
            with contextlib.suppress(ValueError):  # the process was ended within a line
                events.put(json.loads(line))
    events.put(None)


def _why(event: dict[str, Any]) -> ChatkitError:
    if event.get("code") == MissingExtra.code:
        return ConfigError(event["fatal"])
    return _KINDS.get(event.get("code", ""), EngineFailed)(event["fatal"])


def _as_json(question: Question) -> dict[str, Any]:
    if question.prompt:
        return {"prompt": question.prompt}
    messages = [[message.role, message.content] for message in question.messages]
    return {"messages": messages, "arguments": dict(question.arguments)}


def _version(folder: Path) -> str:
    """Return the first digits of a digest over the names, sizes and beginnings of a model's files."""
    import hashlib

    digest = hashlib.sha256()
    for file in [*sorted(folder.glob("*.safetensors")), folder / "config.json"]:
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(1 << 20))
    return digest.hexdigest()[:12]
