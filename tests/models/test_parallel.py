"""The ends of ranks and of their watchdogs: which calls hang, what is told of another rank, and that nobody stays."""

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from chatkit.errors import EngineFailed
from chatkit.models import chat_worker, worker_io
from chatkit.models.chat import ChatModel, ChatOptions, open_chat
from chatkit.types import SamplingParams
from tests.models import tiny
from tests.serving import ROOT

pytestmark = pytest.mark.anyio
# A rank alone, whose call began so many seconds ago; it leaves when it was looked at three times.
RANK = """
import os, sys, time
from torch.distributed import HashStore
from chatkit.models import parallel
ago, longest, gone = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "gone"
looks = []
def say(why):
    if gone:
        raise BrokenPipeError
    print(why, flush=True)
def busy_since():
    looks.append(1)
    return time.monotonic() - ago
parallel.Group(parallel.Place(0, 1, 0, "127.0.0.1", 0), say, HashStore()).meet(busy_since, longest)
while len(looks) < 3:
    time.sleep(0.05)
print("lives", flush=True)
os._exit(0)
"""
# Rank 0 watches another that ends with code 1.
WATCH = """
import os, subprocess, sys, threading, time
from chatkit.models import parallel
other = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
def say(why):
    if sys.argv[1] == "gone":
        raise BrokenPipeError
    print(why, flush=True)
threading.Thread(target=parallel._watch, args=(1, other, say), daemon=True).start()
if sys.argv[1] == "speaks":
    other.wait()
    time.sleep(0.3)
    print("own words", flush=True)
    os._exit(3)
time.sleep(60)
"""
# A worker that hangs, and whose service is gone.
HANGS = """
import os, time
from chatkit.models import worker_io
read, write = os.pipe()
os.close(read)
looks = []
def hangs():
    looks.append(1)
    return "stuck" if len(looks) > 2 else ""
worker_io.keep_saying_alive(worker_io.Events(os.fdopen(write, "w")), hangs)
time.sleep(60)
"""
# Rank 0, which starts the other rank with another program.
FIRST = """
import subprocess, sys
from types import SimpleNamespace
from chatkit.models import chat_worker, parallel
def started(command, **pipes):
    return subprocess.Popen([sys.executable, "-c", {other!r}, command[-1]], **pipes)
parallel.subprocess = SimpleNamespace(Popen=started, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
sys.exit(chat_worker.main())
"""
OTHER = """
import sys, torch
from chatkit.errors import ModelError
from chatkit.models import chat_load, chat_runner, chat_worker
def fail(*arguments):
    raise {failure}
{place} = fail
sys.exit(chat_worker.main())
"""


def ran(script: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    return done.returncode, done.stdout


def test_a_call_hangs_when_it_takes_longer_than_its_rank_was_told() -> None:
    assert ran(RANK, "1000", "1800", "") == (0, "lives\n")
    assert ran(RANK, "1000", "900", "") == (1, "a call of rank 0 has taken 900 s\n")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [(RANK, ("1000", "900", "gone")), (WATCH, ("gone",)), (HANGS, ())],
    ids=("meet", "watch", "alive"),
)
def test_a_watchdog_ends_its_process_also_where_no_service_is_left_to_be_told(script, arguments) -> None:
    assert ran(script, *arguments) == (1, "")


def test_the_end_of_another_rank_is_told_after_rank_0_had_time_for_its_own_words() -> None:
    assert ran(WATCH, "waits") == (1, "rank 1 ended with code 1\n")
    assert ran(WATCH, "speaks") == (3, "own words\n")


@pytest.mark.parametrize(
    ("device", "placed", "seconds"),
    [("cpu", {}, 1800), ("cuda", {"": 0}, 30), ("cuda", {"a": 0, "b": 1}, 30), ("cuda", {"a": 0, "b": "disk"}, 1800)],
)
def test_a_call_may_take_as_long_as_its_weights_are_slow(device, placed, seconds) -> None:
    model = SimpleNamespace(hf_device_map=placed) if placed else SimpleNamespace()
    assert chat_worker.longest_call(SimpleNamespace(device=torch.device(device), model=model)) == seconds


def test_commands_that_end_within_a_line_end_all_the_same() -> None:
    commands = worker_io.commands(io.StringIO('{"cancel":1}\n{"canc'))
    assert [commands.get(timeout=10) for _ in range(2)] == [{"cancel": 1}, None]


def pair(folder, place: str, failure: str) -> ChatModel:
    """Return a model on two ranks, the second of which raises `failure` at `place`."""
    options = ChatOptions(dtype="float32", threads=1, tensor_parallel=2)
    model = open_chat(folder, cache=folder / "derived", options=options, name="tiny")
    script = FIRST.format(other=OTHER.format(place=place, failure=failure))
    model.command = (sys.executable, "-c", script, model.command[-1])
    return model


async def test_what_another_rank_failed_with_is_told_at_the_start_and_later(tmp_path, caplog) -> None:
    folder = tiny.make(tmp_path / "neox")
    model = pair(folder, "chat_load.load_model", "ModelError('no room for the weights here')")
    with pytest.raises(EngineFailed, match="rank 1 failed: no room for the weights here") as caught:
        await model.start()
    assert "\n" not in str(caught.value)
    await model.close()
    model = pair(folder, "chat_runner.Runner.begin", "torch.OutOfMemoryError('CUDA out of memory, 40 MiB')")
    await model.start()
    with pytest.raises(EngineFailed, match="has stopped"):
        [chunk async for chunk in model.generate("the fox", SamplingParams(max_new_tokens=8))]
    await model.stopped()
    assert "rank 1 failed: CUDA out of memory, 40 MiB" in caplog.text
    await model.close()
