"""Tensor parallelism through the HTTP service: the same words at every number of ranks, and a dead rank ends it all."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from chatkit.models import sources
from chatkit.models.chat_convert import dequantized
from tests.models import tiny
from tests.serving import ROOT, Served

PROMPTS = [" ".join([word] * 6) for word in dict.fromkeys(tiny.WORDS.split())][:9]
FLAGS = ("--engine", "transformers", "--dtype", "float32", "--threads", "1", "--index", "", "--policy", "monitor",
         "--gate", "stream_first", "--system-prompt", "Be brief.")  # fmt: skip


def served(home: Path, models_dir: Path, model: str, ranks: int, *flags: str) -> Served:
    return Served(home, models_dir, "--chat-model", model, "--tensor-parallel", str(ranks), *FLAGS, *flags)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny.make(folder / kind, kind) for kind in ("gpt_neox", "llama")}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, folders, models_dir):
    """The tiny GPT-NeoX on two ranks."""
    with served(tmp_path_factory.mktemp("pair"), models_dir, str(folders["gpt_neox"]), 2) as site:
        yield site


def answers(site: Served, tokens: int = 40) -> list[str]:
    asked = [site.ask(text, max_new_tokens=tokens, no_retrieval=True) for text in PROMPTS]
    assert {answer["finish_reason"] for answer in asked} <= {"length", "stop"}
    return [answer["outputs"] for answer in asked]


def processes(site: Served) -> list[psutil.Process]:
    """Return the engine's processes, rank 0 first."""
    found = psutil.Process(site.process.pid).children(recursive=True)
    ranks = [process for process in found if "chatkit.models.chat_worker" in process.cmdline()]
    return sorted(ranks, key=lambda process: process.ppid() != site.process.pid)


def test_tensor_parallel_answers_are_those_of_one_rank(pair, tmp_path, folders, models_dir) -> None:
    two = answers(pair)
    assert len(set(two)) == len(PROMPTS)
    assert min(len(set(tiny.tokenizer().encode(text))) for text in two) >= 5, two
    with served(tmp_path / "one", models_dir, str(folders["gpt_neox"]), 1) as site:
        assert answers(site) == two
        assert len(processes(site)) == 1
    assert len(processes(pair)) == 2


def test_tensor_parallel_ranks_started_by_a_launcher_share_one_service(tmp_path, folders, models_dir) -> None:
    """Two processes with torchrun's variables: rank 0 listens and answers, rank 1 follows and ends with it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    first = served(tmp_path / "first", models_dir, str(folders["llama"]), 2)
    first._environment |= launcher | {"RANK": "0", "LOCAL_RANK": "0"}
    environment = first._environment | {"RANK": "1", "LOCAL_RANK": "1"}
    command = [sys.executable, "-m", "chatkit", "serve", "--chat-model", str(folders["llama"]), *FLAGS]
    follower = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with first as site:
            two = answers(site)
            listening = [c for c in psutil.Process(follower.pid).net_connections("tcp") if c.status == "LISTEN"]
            assert not [connection for connection in listening if connection.laddr.port == site.client.base_url.port]
        assert follower.wait(15) == 0, follower.stderr.read()
    finally:
        follower.kill()
        follower.communicate()
    with served(tmp_path / "one", models_dir, str(folders["llama"]), 1) as site:
        assert answers(site) == two
    assert len(set(two)) == len(PROMPTS)


def test_tensor_parallel_at_three_ranks_gives_the_default_models_own_words(tmp_path, models_dir) -> None:
    """SmolLM2 has 9 heads and 3 key-value heads: 3 ranks share it, 2 are refused before anything is loaded."""
    file = sources.resolve("default", models_dir=models_dir, role="chat")
    dequantized(file, cache=sources.derived_dir(file, models_dir=models_dir))
    asked = PROMPTS[:3]
    with served(tmp_path / "three", models_dir, "default", 3) as site:
        got = [site.ask(text, max_new_tokens=8, no_retrieval=True)["outputs"] for text in asked]
        assert len(processes(site)) == 3
    with served(tmp_path / "one", models_dir, "default", 1) as site:
        assert [site.ask(text, max_new_tokens=8, no_retrieval=True)["outputs"] for text in asked] == got
    refused = Served(tmp_path / "two", models_dir).chatkit(
        "serve", "--port", "0", *FLAGS, "--chat-model", "default", "--tensor-parallel", "2"
    )
    assert refused.returncode != 0
    assert "9 attention heads and 3 key-value heads divide over 1, 3 only" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(("kind", "ranks"), [("gpt_neox", 2), ("default", 3)])
def test_tensor_parallel_logits_are_those_of_the_whole_model(tmp_path, folders, models_dir, kind, ranks) -> None:
    folder = folders.get(kind)
    if folder is None:
        file = sources.resolve("default", models_dir=models_dir, role="chat")
        folder = dequantized(file, cache=sources.derived_dir(file, models_dir=models_dir))
    prompts = [[7 + 3 * n * (place + 1) % 331 for place in range(4 + n)] for n in range(1, 5)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(ranks)]
    command += ["tests/models/tp_logits.py", str(folder), str(tmp_path / "logits.pt"), json.dumps(prompts)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    got = torch.load(tmp_path / "logits.pt", weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        wanted = [model(torch.tensor([ids])).logits[0, -2:] for ids in prompts]
    wanted = torch.cat(wanted)
    assert (got - wanted).abs().max() <= 1e-4 * max(1.0, wanted.abs().max())


def test_tensor_parallel_shares_the_parameters_out(pair, folders) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folders["gpt_neox"], dtype=torch.float32)
    total = sum(parameter.numel() * parameter.element_size() for parameter in whole.parameters())
    embedding = whole.get_input_embeddings().weight.numel() * 4  # transformers' plan leaves it whole on every rank
    sizes = json.loads(pair.log.split("parameter bytes by rank: ")[1].splitlines()[0])
    assert len(sizes) == 2
    assert all((size - embedding) / (total - embedding) == pytest.approx(0.5, rel=0.05) for size in sizes)


def test_tensor_parallel_ranks_stay_in_step_through_twenty_requests_and_cancellations(pair) -> None:
    before = answers(pair, 8)
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        parameters = {"max_new_tokens": 60 if number % 2 else 8, "no_retrieval": True}
        body = {"inputs": PROMPTS[number % 9], "stream": True, "parameters": parameters}
        with (
            httpx.Client(base_url=pair.client.base_url, timeout=100) as client,
            client.stream("POST", "/invocations", json=body) as answer,
        ):
            for line in answer.iter_lines():
                frame = json.loads(line) if line else {}
                if number % 2 and frame.get("event") == "delta":
                    return  # a client that leaves cancels its turn
                if frame.get("event") == "done":
                    got[number] = frame["outputs"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert {number: got[number] for number in range(0, 20, 2)} == {n: before[n % 9] for n in range(0, 20, 2)}
    assert answers(pair, 8) == before


@pytest.mark.parametrize(("lost", "sent"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)])
def test_tensor_parallel_service_ends_with_a_lost_rank(tmp_path, folders, models_dir, lost, sent) -> None:
    site = served(tmp_path, models_dir, str(folders["gpt_neox"]), 2).start()
    ranks = processes(site)
    port = site.client.base_url.port
    body = {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": 400, "no_retrieval": True}}
    failed: list[int] = []
    asking = threading.Thread(target=lambda: failed.append(site.client.post("/invocations", json=body).status_code))
    asking.start()
    time.sleep(0.3)
    ranks[lost].send_signal(sent)
    try:
        assert site.process.wait(10) not in (0, None)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
        assert "the language model has stopped" in site.log
        psutil.wait_procs(ranks[:1], timeout=5)
        assert not ranks[0].is_running()
    finally:
        for rank in ranks:
            if rank.is_running():
                rank.kill()
        asking.join(10)
        site.stop()
    assert failed in ([], [200], [503])
