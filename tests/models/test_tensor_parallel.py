"""Tensor parallelism through the HTTP service: the same words at every number of ranks, and a dead rank ends it all."""

import asyncio
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
import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatkit.models import sources
from chatkit.models.chat_convert import dequantized
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
from tests.models import tiny
from tests.serving import ROOT, Served

PROMPTS = [f"What is {word}?" for word in dict.fromkeys(tiny.WORDS.split())][:9]
FLAGS = ("--engine", "transformers", "--dtype", "float32", "--threads", "1", "--index", "", "--policy", "monitor",
         "--gate", "stream_first", "--system-prompt", "")  # fmt: skip


def served(home: Path, models_dir: Path, model: str, ranks: int, *flags: str) -> Served:
    return Served(home, models_dir, "--chat-model", model, "--tensor-parallel", str(ranks), *FLAGS, *flags)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, models_dir) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    file = sources.resolve("default", models_dir=models_dir, role="chat")
    default = dequantized(file, cache=sources.derived_dir(file, models_dir=models_dir))
    return {"default": default} | {kind: tiny.make(folder / kind, kind) for kind in ("gpt_neox", "llama")}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, folders, models_dir):
    """The tiny GPT-NeoX on two ranks."""
    with served(tmp_path_factory.mktemp("pair"), models_dir, str(folders["gpt_neox"]), 2) as site:
        yield site


def answers(site: Served, tokens: int = 40) -> list[str]:
    asked = [site.ask(text, max_new_tokens=tokens, no_retrieval=True) for text in PROMPTS]
    assert {answer["finish_reason"] for answer in asked} <= {"length", "stop"}
    return [answer["outputs"] for answer in asked]


def check_they_differ(texts: list[str], folder: Path) -> None:
    """Words that are all the same, or one word again and again, would prove little."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(set(texts)) == len(PROMPTS) == 9, texts
    assert min(len(set(tokenizer.encode(text))) for text in texts) >= 5, texts


def vectors(site: Served) -> np.ndarray:
    """Return the vectors that the chat model itself makes of the prompts."""
    name = site.client.get("/v1/models").json()["data"][0]["id"]
    answer = site.client.post("/v1/embeddings", json={"model": name, "input": PROMPTS}).json()
    return np.array([row["embedding"] for row in answer["data"]])


def processes(site: Served) -> list[psutil.Process]:
    """Return the engine's processes, rank 0 first."""
    found = psutil.Process(site.process.pid).children(recursive=True)
    ranks = [process for process in found if "chatkit.models.chat_worker" in process.cmdline()]
    return sorted(ranks, key=lambda process: process.ppid() != site.process.pid)


def test_tensor_parallel_answers_are_those_of_one_rank(pair, tmp_path, folders, models_dir) -> None:
    two = answers(pair)
    check_they_differ(two, folders["gpt_neox"])
    shared = vectors(pair)
    with served(tmp_path / "one", models_dir, str(folders["gpt_neox"]), 1) as site:
        assert answers(site) == two
        whole = vectors(site)
        assert len(processes(site)) == 1
    assert np.abs(shared - whole).max() <= 1e-5
    assert np.abs(whole - whole[0]).max(1)[1:].min() > 1e-2  # each text has its own
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
    check_they_differ(two, folders["llama"])


def test_tensor_parallel_at_three_ranks_gives_the_default_models_own_words(tmp_path, folders, models_dir) -> None:
    """SmolLM2 has 9 heads and 3 key-value heads: 3 ranks share it, 2 are refused before anything is loaded."""
    with served(tmp_path / "three", models_dir, "default", 3) as site:
        three = answers(site, 8)
        assert len(processes(site)) == 3
    with served(tmp_path / "one", models_dir, "default", 1) as site:
        assert answers(site, 8) == three
    check_they_differ(three, folders["default"])
    refused = Served(tmp_path / "two", models_dir).chatkit(
        "serve", "--port", "0", *FLAGS, "--chat-model", "default", "--tensor-parallel", "2"
    )
    assert refused.returncode != 0
    assert "9 attention heads and 3 key-value heads divide over 1, 3 only" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(("kind", "ranks"), [("gpt_neox", 2), ("llama", 2), ("default", 3)])
def test_tensor_parallel_logits_are_those_of_the_whole_model(tmp_path, folders, kind, ranks) -> None:
    folder = folders[kind]
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
    # Sums of float32 in another order: measured 2e-5 for the tiny ones, and 5e-5 for SmolLM2, whose logits reach 33.
    most = 1e-5 * wanted.abs().max() if kind == "default" else 1e-4
    assert (got - wanted).abs().max() <= most


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


def pending(home: Path) -> bool:
    """Whether the turn of `session-lost` is accepted and has no end."""
    store = SQLiteStore(home / "sessions.sqlite3")
    try:
        turns = asyncio.run(store.load(Owner(), "session-lost", limit=9)).turns
    finally:
        store.close()
    return [turn.status for turn in turns] == ["pending"]


@pytest.mark.parametrize(("lost", "sent"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)])
def test_tensor_parallel_service_ends_with_a_lost_rank(tmp_path, folders, models_dir, lost, sent) -> None:
    site = served(tmp_path, models_dir, str(folders["gpt_neox"]), 2).start()
    ranks = processes(site)
    port = site.client.base_url.port
    parameters = {"max_new_tokens": 400, "no_retrieval": True, "session_id": "session-lost"}
    ended: list[int | str] = []

    def ask() -> None:
        try:
            body = {"inputs": PROMPTS[0], "parameters": parameters}
            ended.append(site.client.post("/invocations", json=body).status_code)
        except httpx.TransportError:
            ended.append("broken")

    asking = threading.Thread(target=ask)
    try:
        ranks[lost].send_signal(signal.SIGSTOP)  # whatever is asked from here on cannot be answered
        asking.start()
        deadline = time.monotonic() + 3
        while not pending(site.home):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks[lost].send_signal(sent)
        assert site.process.wait(10) not in (0, None)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
        assert "the language model has stopped" in site.log
        psutil.wait_procs(ranks[:1], timeout=5)
        assert not ranks[0].is_running()
        asking.join(10)
        assert ended in ([503], ["broken"])
    finally:
        for rank in ranks:
            if rank.is_running():
                rank.kill()
        site.process.kill()
        asking.join(10)
        site.stop()
