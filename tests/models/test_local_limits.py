"""What the local engine holds to: its cache, its queue, its devices; on tiny models of every architecture it reads."""

import asyncio
import json
import os
import queue
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from chatkit.errors import BrokenModel, EngineFailed, Overloaded, TooLarge
from chatkit.models import gguf, kv_cache, local, local_worker
from chatkit.models.worker_io import Events
from chatkit.types import Message, SamplingParams
from tests.models import tiny_gguf

pytestmark = pytest.mark.anyio
# The worker, telling on stderr when it begins to warm up and what the cache takes thereafter.
WATCHED = """
import sys
from chatkit.models import local_worker
real = local_worker.Worker.warm_up
def watched(self):
    print("ready", file=sys.stderr)
    real(self)
    print("warm", self._pipeline.get_metrics().max_cache_usage > 0, file=sys.stderr)
local_worker.Worker.warm_up = watched
sys.exit(local_worker.main())
"""
# Bytes of a token of the tiny model: 2 layers of 2 heads of 32, eight bits and their scales.
TOKEN = 320


def tiny(folder: Path, options: local.LocalOptions, architecture: str = "llama", **shape) -> local.LocalModel:
    file = tiny_gguf.write(folder / "tiny.gguf", architecture, **shape)
    return local.open_local(file, cache=folder / "cache", options=options)


def gib(tokens: int) -> float:
    """Return the setting that holds `tokens` of the tiny model."""
    return tokens * TOKEN / 2**30


def words(model: local.LocalModel, tokens: int) -> str:
    """Return a prompt of that many tokens."""
    text = "x" * tokens
    assert model.count_tokens(text) == tokens
    return text


async def read(model: local.LocalModel, text: str, *, session: str = "", **sampling) -> tuple[str, int]:
    """Return how the answer ended and its length."""
    chunks = [chunk async for chunk in model.generate(text, SamplingParams(**sampling), session=session)]
    return chunks[-1].finish_reason, sum(chunk.tokens for chunk in chunks)


@pytest.fixture
async def small(tmp_path):
    """A tiny model whose cache holds 256 tokens."""
    model = tiny(tmp_path, local.LocalOptions(threads=1, kv_cache_gb=gib(256), max_running=8, max_queue=40))
    await model.start()
    yield model
    await model.close()


@pytest.mark.parametrize(
    ("architecture", "head_size", "kind"),
    [
        ("llama", 32, GGMLQuantizationType.Q4_0),
        ("qwen2", 32, GGMLQuantizationType.Q8_0),
        ("qwen3", 32, GGMLQuantizationType.F16),
        ("qwen3", 64, GGMLQuantizationType.Q8_0),
    ],
)
async def test_each_architecture_that_is_read_is_converted_and_answers(tmp_path, architecture, head_size, kind) -> None:
    model = tiny(tmp_path, local.LocalOptions(threads=1), architecture, head_size=head_size, kind=kind)
    await model.start()
    text = model.format.render([Message("user", "hello the")])
    first, second = [await read(model, text, max_new_tokens=6) for _ in range(2)]
    await model.close()
    assert first == second
    assert first[0] in ("length", "stop")
    assert first[1] > 0
    assert model.context_window == tiny_gguf.WINDOW
    assert model.name == f"Tiny {architecture}"


@pytest.mark.parametrize("architecture", ["gemma3", "phi3", "qwen3moe"])
def test_another_architecture_is_refused_before_any_work_with_what_is_read(tmp_path, architecture) -> None:
    with pytest.raises(BrokenModel, match=f"architecture '{architecture}', the local engine reads llama, qwen2, qwen3"):
        tiny(tmp_path, local.LocalOptions(), architecture)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".convert.lock"]


def test_a_model_without_a_template_is_refused_unless_its_format_is_named(tmp_path) -> None:
    with pytest.raises(BrokenModel, match="CHATKIT_PROMPT_FORMAT"):
        tiny(tmp_path, local.LocalOptions(), template="")
    model = tiny(tmp_path, local.LocalOptions(prompt_format="llama2"), template="")
    text = model.format.render([Message("user", "hello")])
    assert text == "<|im_start|>[INST] hello [/INST]"
    start = model.tokenizer.token_to_id("<|im_start|>")
    assert model.tokenizer.encode(text, add_special_tokens=False).ids[0] == start


def test_the_name_of_a_models_source_chooses_its_format(tmp_path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    opened = [
        local.open_local(file, cache=tmp_path / "cache", options=local.LocalOptions(), name=name).format.render(
            [Message("user", "hello")]
        )
        for name in ("GPT-NeoXT-Chat-Base-20B", "Tiny")
    ]
    assert opened == ["<human>: hello\n<bot>:", "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"]


@pytest.mark.parametrize(
    ("architecture", "shape", "precision"),
    [
        ("llama", {}, "fast"),
        ("llama", {"kind": GGMLQuantizationType.F16}, "fast"),
        ("llama", {}, "exact"),
        ("qwen2", {"layers": 3, "kv_heads": 4}, "fast"),
        ("qwen3", {"head_size": 64}, "fast"),
        ("qwen3", {"head_size": 64}, "exact"),
    ],
)
def test_the_cache_takes_the_bytes_that_are_reckoned(tmp_path, architecture, shape, precision) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", architecture, **shape)
    folder, facts = gguf.converted(file, cache=tmp_path / "cache")
    options = {"model": str(folder), "device": "CPU", "threads": 1, "kv_blocks": 8, "max_running": 4}
    pipeline = local_worker.open_pipeline({**options, "precision": precision, "prefix_cache": True})
    with open(tmp_path / "events", "w") as events:
        local_worker.Worker(pipeline, queue.SimpleQueue(), Events(events)).warm_up()
    block = kv_cache.block_bytes(
        layers=facts.layers, kv_heads=facts.kv_heads, head_size=facts.head_size, precision=precision
    )
    assert pipeline.get_metrics().cache_size_in_bytes == 8 * block


def test_a_cache_that_holds_less_than_the_model_shortens_the_window_and_says_so(tmp_path, caplog) -> None:
    model = tiny(tmp_path, local.LocalOptions(kv_cache_gb=gib(256)))
    assert model.cache_tokens == model.context_window == 256
    assert "holds 256 tokens, fewer than the 512 of the model; raise CHATKIT_KV_CACHE_GB" in caplog.text


async def test_a_burst_that_is_larger_than_the_cache_is_answered_to_the_last(small) -> None:
    texts = [f"{n:02d}" + words(small, 60) for n in range(24)]
    ended = await asyncio.gather(*(read(small, text, max_new_tokens=34) for text in texts))
    assert {reason for reason, _ in ended} <= {"length", "stop"}
    alone = [await read(small, text, max_new_tokens=34) for text in texts[:4]]
    assert alone == ended[:4]


async def test_an_answer_ends_where_the_window_does_and_a_prompt_that_fills_it_is_refused(small) -> None:
    for prompt_tokens, asked in ((200, 56), (200, 400), (255, 9)):
        small._eos_ids = (small.tokenizer.token_to_id("the"),)  # so that the answer does not end sooner
        ended = await read(small, words(small, prompt_tokens), max_new_tokens=asked)
        assert ended == ("length", min(asked, 256 - prompt_tokens))
    with pytest.raises(TooLarge, match="the prompt has 256 tokens, the model holds 256 with the answer; send less"):
        small.generate(words(small, 256), SamplingParams(max_new_tokens=1))
    assert small.ready


async def test_a_flood_of_one_session_does_not_starve_another(small) -> None:
    ended: list[str] = []

    async def ask(session: str) -> None:
        await read(small, words(small, 100), session=session, max_new_tokens=120)
        ended.append(session)

    flood = [asyncio.create_task(ask("flood")) for _ in range(20)]
    await asyncio.sleep(0)
    other = [asyncio.create_task(ask("other")) for _ in range(2)]
    await asyncio.gather(*flood, *other)
    places = [place for place, session in enumerate(ended) if session == "other"]
    assert places[0] <= 3  # one runs, then they take turns
    assert places[1] <= 5


async def test_what_waits_is_bounded_and_what_was_given_up_says_so(small) -> None:
    tasks = [asyncio.create_task(read(small, words(small, 150), session="flood", max_new_tokens=60)) for _ in range(48)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="48 generations are running or waiting"):
        small.generate(words(small, 10), SamplingParams(max_new_tokens=1), session="flood")
    other = asyncio.create_task(read(small, words(small, 10), session="other", max_new_tokens=1))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="other sessions are waiting"):
        await tasks[-1]
    assert (await other)[1] == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (await read(small, words(small, 10), max_new_tokens=1))[1] == 1


async def test_one_that_is_cancelled_while_it_waits_never_reaches_the_engine(small) -> None:
    running = small.generate(words(small, 100), SamplingParams(max_new_tokens=120))
    waiting = small.generate(words(small, 100), SamplingParams(max_new_tokens=120))
    waiting.cancel()
    assert [chunk.finish_reason async for chunk in waiting] == ["aborted"]
    total = sum([chunk.tokens async for chunk in running])
    assert small.tokens_made == total


async def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path) -> None:
    model = tiny(tmp_path, local.LocalOptions(device="GPU.7", kv_cache_gb=1))
    assert model.cache_tokens > 0
    with pytest.raises(EngineFailed, match=r"device is 'GPU.7', expected AUTO or one of those present: CPU") as caught:
        await model.start()
    assert "CHATKIT_DEVICE" in str(caught.value)
    await model.close()


@pytest.mark.parametrize(("device", "precision"), [("AUTO", "fast"), ("AUTO", "exact"), ("CPU", "exact")])
async def test_other_ways_to_run_answer_too(tmp_path, device, precision) -> None:
    model = tiny(tmp_path, local.LocalOptions(device=device, precision=precision, threads=1))
    await model.start()
    assert (await read(model, words(model, 20), max_new_tokens=3))[1] > 0
    await model.close()


async def test_the_engine_says_that_it_is_ready_and_then_warms_up(tmp_path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    folder, _facts = gguf.converted(file, cache=tmp_path / "cache")
    options = {"model": str(folder), "device": "CPU", "threads": 1, "kv_blocks": 8, "max_running": 4}
    command = [sys.executable, "-c", WATCHED, json.dumps({**options, "prefix_cache": True})]
    done = await asyncio.to_thread(subprocess.run, command, input="", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, '{"ready":true}\n'), done.stderr
    assert done.stderr.split() == ["ready", "warm", "True"]


def resident(model: local.LocalModel) -> int:
    """Return the bytes of memory that the engine's process holds."""
    return int(Path(f"/proc/{model._process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_engines_memory_grows_by_its_cache_and_no_further(tmp_path) -> None:
    mib = 1 << 20
    options = local.LocalOptions(threads=1, kv_cache_gb=96 / 1024, max_running=4)
    model = tiny(tmp_path, options, "qwen3", layers=8, kv_heads=4, head_size=256)
    assert 4000 < model.cache_tokens < 6000
    await model.start()
    await read(model, words(model, 500), max_new_tokens=1)
    before = resident(model)
    sizes = []
    for turn in range(4):  # each fills the cache once, since every prompt is kept for its prefix
        for n in range(12):
            await read(model, f"{turn}{n:02d}" + words(model, 500), max_new_tokens=1)
        sizes.append(resident(model) - before)
    await model.close()
    assert 60 * mib < sizes[0]
    assert sizes[-1] < (96 + 32) * mib, [size // mib for size in sizes]


async def test_a_stopped_engine_is_given_up_and_an_idle_one_is_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(local.LocalModel, "longest_silence", 3.0)
    model = tiny(tmp_path, local.LocalOptions(threads=1))
    await model.start()
    await asyncio.sleep(4)
    assert model.ready
    os.kill(model._process.pid, signal.SIGSTOP)
    with pytest.raises(EngineFailed, match="has stopped"):
        await asyncio.wait_for(read(model, "xx", max_new_tokens=50), 8)
    assert not model.ready  # what /ping goes by
    await model.close()
