"""What needs a GPU: recorded steps give the same tokens. And the speed script, tiny, on whatever is there."""

import json
import subprocess
import sys

import pytest
import torch

from chatkit.models.chat_graphs import Graphs
from chatkit.models.chat_load import LoadOptions, load_model
from chatkit.models.chat_runner import Runner
from tests.models import tiny
from tests.serving import ROOT


def test_the_speed_script_runs_anywhere_at_a_tiny_size() -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    for name in ("decode_tokens_per_s@1", "decode_tokens_per_s@16", "decode_tokens_per_s@16.of_bandwidth",
                 "generate_tokens_per_s@16", "prefill_tokens_per_s", "prefill.of_flops", "bandwidth_gb_s"):  # fmt: skip
        assert figures[name] > 0, name


def greedy(runner: Runner, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    runner.resize(len(prompts), 512)
    rows = []
    for ids in prompts:
        runner.begin(None, 0)
        rows.append([int(runner.fill(ids).argmax())])
    for _ in range(tokens):
        for row, token in zip(rows, runner.step([row[-1] for row in rows]).argmax(-1).tolist(), strict=True):
            row.append(token)
    return rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
def test_recorded_steps_give_the_same_tokens_on_a_gpu(tmp_path) -> None:
    model = load_model(tiny.make(tmp_path / "neox"), LoadOptions(dtype="float32"))
    prompts = [[7 + n * place % 300 for place in range(20 * n)] for n in range(1, 5)]
    plain, recorded = Runner(model), Runner(model)
    for runner in (plain, recorded):
        runner.check()
    recorded.replay = Graphs(recorded.decode, recorded.cache).step
    assert greedy(recorded, prompts, 300) == greedy(plain, prompts, 300)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="there is no NVIDIA GPU here")
def test_layers_over_the_gpus_limit_go_to_the_machines_memory(tmp_path) -> None:
    folder = tiny.make(tmp_path / "neox")
    options = LoadOptions(dtype="float32", gpu_memory={0: 0.001}, cpu_memory=4.0, offload_dir=str(tmp_path / "off"))
    model = load_model(folder, options)
    assert "cpu" in set(map(str, model.hf_device_map.values()))
    Runner(model).check()
