"""The bare OpenVINO pipeline in a plain loop and a process of its own: what the service is measured against.

Started as `python -m chatkit.evaluation.bare OPTIONS`; a round is a line of JSON on stdin, its answers one on stdout.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from chatkit import child_python
from chatkit.errors import EngineFailed
from chatkit.models.local_worker import generation_config, open_pipeline


@dataclass(slots=True)
class BareAnswer:
    """One answer: the token ids, and for each the seconds from adding the request until the step that made it."""

    ids: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BareRound:
    """Answers in the order of the prompts, the wall time of all, and the processor time of the process."""

    seconds: float
    cpu_s: float
    answers: list[BareAnswer]


class BarePipeline:
    """The process, loaded and waiting; `options` are those of the engine's own worker.

    Raises:
        EngineFailed: the process ended.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *child_python.run_module("chatkit.evaluation.bare"), json.dumps(options)],
            env=child_python.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.load_s: float = self._read()["load_s"]

    @property
    def pid(self) -> int:
        """The pipeline's process."""
        return self._process.pid

    def run(self, prompts: Sequence[list[int]], *, clients: int, config: dict[str, Any]) -> BareRound:
        """Answer all prompts, `clients` of them at any time."""
        if self._process.stdin is None:
            raise AssertionError("the process was started with pipes")
        self._process.stdin.write(json.dumps({"prompts": list(prompts), "clients": clients, "config": config}) + "\n")
        self._process.stdin.flush()
        told = self._read()
        return BareRound(told["seconds"], told["cpu_s"], [BareAnswer(**answer) for answer in told["answers"]])

    def _read(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self.close()
            raise EngineFailed(
                f"the bare pipeline ended with code {self._process.returncode}; chatkit serve shows what is wrong"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._process.wait()


def _answer_all(pipeline: Any, numbers: "itertools.count[int]", told: dict[str, Any]) -> dict[str, Any]:
    """Run one round: add, step, read, and nothing else between the clock's two readings."""
    import numpy
    import openvino

    config = generation_config(told["config"])
    inputs = [openvino.Tensor(numpy.array([ids], dtype=numpy.int64)) for ids in told["prompts"]]
    answers = [BareAnswer() for _ in inputs]
    waiting = deque(range(len(inputs)))
    running: dict[int, tuple[Any, float]] = {}
    cpu, began = time.process_time(), time.perf_counter()
    while waiting or running:
        while waiting and len(running) < told["clients"]:
            at = waiting.popleft()
            running[at] = (pipeline.add_request(next(numbers), inputs[at], config), time.perf_counter())
        pipeline.step()
        now = time.perf_counter()
        for at, (handle, added) in list(running.items()):
            if not handle.can_read():
                continue
            for output in handle.read().values():
                answers[at].ids += output.generated_ids
                answers[at].at += [now - added] * len(output.generated_ids)
                if output.finish_reason.name != "NONE":
                    del running[at]
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": seconds, "cpu_s": cpu_s, "answers": [{"ids": a.ids, "at": a.at} for a in answers]}


def _serve(events: IO[str]) -> None:
    began = time.perf_counter()
    pipeline = open_pipeline(json.loads(sys.argv[1]))
    events.write(json.dumps({"load_s": time.perf_counter() - began}) + "\n")
    events.flush()
    numbers = itertools.count()
    for line in sys.stdin:
        events.write(json.dumps(_answer_all(pipeline, numbers, json.loads(line))) + "\n")
        events.flush()


if __name__ == "__main__":
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not reach the answers
    _serve(stdout)
