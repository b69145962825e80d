"""No child process reads a module of the working directory: every way of starting one, in a folder full of traps."""

import ast
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import chatkit
from chatkit import child_python
from chatkit.errors import BrokenModel, EngineFailed
from chatkit.evaluation import retrieval_bench
from chatkit.evaluation.bare import BarePipeline
from chatkit.evaluation.races import RaceBench
from chatkit.evaluation.scripted import ScriptedServer
from chatkit.evaluation.served import ServedChatkit
from chatkit.evaluation.session_bench import bench_races
from chatkit.models.chat import ChatOptions, open_chat
from chatkit.models.chat_convert import dequantized
from chatkit.models.judge_process import JudgeOptions, ProcessJudge
from chatkit.models.local import LocalOptions, open_local
from chatkit.settings import load_settings
from tests.models import tiny, tiny_gguf
from tests.moderation import tiny_judges

ROOT = Path(chatkit.__file__).resolve().parent
# Modules that one child or another imports: of Python, of libraries, and the package itself.
NAMES = (
    "random",
    "json",
    "dataclasses",
    "numpy",
    "torch",
    "transformers",
    "openvino",
    "openvino_genai",
    "faiss",
    "click",
)
TRAP = "import os\nopen({!r}, 'a').write(__name__ + chr(10))\nos._exit(66)\n"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The working directory, with a module of every name that says so when it is read; PYTHONPATH names it too."""
    folder = tmp_path / "work"
    (folder / "chatkit").mkdir(parents=True)
    for file in (
        *(folder / f"{name}.py" for name in NAMES),
        folder / "chatkit/__init__.py",
        folder / "sitecustomize.py",
    ):
        file.write_text(TRAP.format(str(tmp_path / "sprung")))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", *filter(None, paths), "."]))
    monkeypatch.chdir(folder)
    yield folder
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()


def test_the_trap_springs_where_python_is_told_dash_m(tmp_path, trap):
    done = subprocess.run([sys.executable, "-m", "chatkit", "--version"], capture_output=True, check=False)
    assert done.returncode == 66
    (tmp_path / "sprung").unlink()


def test_a_module_is_run_with_its_arguments_as_the_main_one(trap):
    command = [sys.executable, *child_python.run_module("chatkit"), "search", "what?", "-k", "0", "--index", "none"]
    done = subprocess.run(command, env=child_python.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "k is 0" in done.stderr
    assert "chatkit" in command[: command.index("search")]  # whoever lists processes sees what each is


def test_the_local_engine_starts(tmp_path, trap):
    model = open_local(
        tiny_gguf.write(tmp_path / "tiny.gguf", "llama"), cache=tmp_path, options=LocalOptions(threads=1)
    )
    asyncio.run(start_and_close(model))


def test_the_engine_of_chat_models_starts_with_its_other_rank(tmp_path, trap):
    folder = tiny.make(tmp_path / "llama", "llama")
    options = ChatOptions(dtype="float32", threads=1, tensor_parallel=2)
    asyncio.run(start_and_close(open_chat(folder, cache=tmp_path, options=options, name="tiny")))


async def start_and_close(model):
    await model.start()
    await model.close()


def test_a_judging_model_starts(tmp_path, trap):
    judge = ProcessJudge(
        tiny_judges.make(tmp_path / "judge", "gptj"), JudgeOptions(device="cpu", threads=1), name="tiny"
    )
    judge.start()
    asyncio.run(judge.close())


def test_a_file_is_written_out_for_transformers(tmp_path, trap):
    file = tmp_path / "damaged.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(BrokenModel, match="cannot be read by transformers"):
        dequantized(file, cache=tmp_path)


def test_the_writers_of_a_race_start(tmp_path, trap, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bench = RaceBench(processes=1, writers=1, turns=2, shared=0)
    assert bench_races(load_settings(), bench, lambda line: None).report.figures["stored"] == 2


def test_the_scripted_service_starts(tmp_path, trap):
    server = ScriptedServer(tmp_path, {"home": str(tmp_path / "home")})
    try:
        assert server.start()[0] == "127.0.0.1"
    finally:
        server.close()


def test_the_bare_pipeline_and_the_service_of_a_bench_say_what_they_lack(trap, models_dir):
    options = {"model": str(trap), "device": "CPU", "threads": 0, "kv_cache_gb": 1, "max_running": 1}
    with pytest.raises(EngineFailed, match="bare pipeline ended"):
        BarePipeline({**options, "prefix_cache": False})
    with pytest.raises(EngineFailed, match=r"chatkit serve ended with code 2: error: .*policy"):
        ServedChatkit(trap, {"models_dir": models_dir, "policy": "none such"})


def test_the_workers_of_a_bench_of_vectors_say_what_they_lack(tmp_path, trap):
    made = SimpleNamespace(questions=np.zeros((1, 4), np.float32))
    with pytest.raises(EngineFailed, match="the first worker ended with code 1"):
        retrieval_bench._workers(tmp_path / "missing", made, tmp_path, print)


def test_every_module_is_started_so(trap):
    """A way that is added later is seen here: nothing in the package tells Python `-m`."""
    found = {
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "-m"
    }
    assert found == set()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ("", None),
        (os.pathsep, None),
        (".", None),
        (os.pathsep.join(["", "/a", "lib", "/b/.."]), "/a:/b/.."),
    ],
)
def test_only_absolute_places_of_modules_are_handed_on(monkeypatch, given, kept):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given)
    told = child_python.environment()
    assert told.pop("PYTHONPATH", None) == kept
    assert told == {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_package_that_is_not_installed_is_found_where_this_process_has_it(tmp_path, trap):
    told = {name: value for name, value in child_python.environment().items() if name != "PYTHONPATH"}
    seen = "import chatkit, json, sys; print(json.dumps([chatkit.__file__, sys.argv]))"
    program = list(child_python.run_module("chatkit"))
    program[2] = program[2].partition("import runpy")[0] + seen
    done = subprocess.run([sys.executable, *program, "x"], env=told, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [chatkit.__file__, ["-c", "chatkit", "x"]]
