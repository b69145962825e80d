"""What the transformers engine holds to: one line's length, signs of life, signals, its cache, whole folders."""

import asyncio
import json
import os
import signal
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chatkit.errors import BrokenModel, EngineFailed, ModelError, TooLarge
from chatkit.models import engine
from chatkit.models.chat import ChatModel, ChatOptions, open_chat
from chatkit.models.chat_facts import read_facts
from chatkit.models.chat_load import LoadOptions, load_model
from chatkit.models.chat_runner import Runner
from chatkit.models.chat_scheduler import Limits, Scheduler
from chatkit.models.decoding import load_tokenizer
from chatkit.types import SamplingParams
from tests.models import tiny
from tests.serving import Served

pytestmark = pytest.mark.anyio
FLAGS = ("--engine", "transformers", "--dtype", "float32", "--threads", "1", "--index", "", "--policy", "monitor",
         "--system-prompt", "Be brief.")  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return tiny.make(tmp_path / "llama", "llama")


def opened(folder, **options) -> ChatModel:
    return open_chat(folder, cache=folder / "derived", options=ChatOptions(dtype="float32", threads=1, **options),
                     name="tiny-llama")  # fmt: skip


def edit(folder, name: str = "config.json", **changes) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


async def read(model, text: str, session: str = "", **sampling) -> str:
    chunks = [chunk async for chunk in model.generate(text, SamplingParams(**sampling), session=session)]
    return "".join(chunk.text for chunk in chunks)


class Wide:
    """A runner whose vectors are wide, and all that a scheduler asks of one for them."""

    announce = None
    vocabulary = tiny.VOCABULARY

    def embed(self, rows):
        return torch.tensor([row[:1] for row in rows], dtype=torch.float32).expand(-1, 8192)


def scheduled(runner, send, **limits) -> Scheduler:
    given = {"cache_tokens": 4096, "window": 512, "max_running": 8, "piece": 16} | limits
    return Scheduler(runner, tiny.tokenizer().backend_tokenizer, Limits(**given), send)


async def test_two_thousand_wide_vectors_come_in_short_lines_and_in_order(folder) -> None:
    rows = [[number % 300, *[1] * (number % 7)] for number in range(2048)]
    model, lines = opened(folder), []
    asked = model._asked.add(5, len(rows))
    scheduler = scheduled(Wide(), lambda event: lines.append(json.dumps(event)))
    scheduler.apply({"embed": 5, "ids": rows})
    while not scheduler.idle:
        scheduler.work()
    assert max(map(len, lines)) < engine._LINE_LIMIT / 8
    for line in lines:
        model._hand_out(json.loads(line))
    made = np.frombuffer(asked.whole.result(), dtype=np.float32).reshape(2048, 8192)
    assert made[:, [0, -1]].tolist() == [[row[0], row[0]] for row in rows]


async def test_a_token_the_model_has_not_is_refused_alone() -> None:
    events = []
    scheduler = scheduled(Wide(), events.append)
    scheduler.apply({"embed": 1, "ids": [[1], [tiny.VOCABULARY]]})
    scheduler.apply({"add": 2, "ids": [-1], "config": {}})
    assert [(event["failed"], event["kind"]) for event in events] == [(1, "invalid"), (2, "invalid")]
    assert "token 384 is none of the model's 384" in events[0]["message"]
    assert scheduler.idle


async def test_a_row_cancelled_while_it_is_filled_leaves_nothing_to_others(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][20] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    runner = Runner(load_model(folder, LoadOptions(dtype="float32")))
    runner.check()
    events = []
    scheduler = scheduled(runner, events.append)
    config = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": None,
              "max_new_tokens": 2, "stop_words": [], "eos_ids": [0]}  # fmt: skip
    start = list(range(30, 50))
    scheduler.apply({"add": 1, "ids": [*start, 20, *range(60, 90)], "config": config})
    scheduler.work()
    scheduler.work()
    scheduler.apply({"cancel": 1})
    assert scheduler._prefixes.tokens == 0
    assert all(bool(tensor.isfinite().all()) for tensor in (*runner.cache._keys, *runner.cache._values))
    scheduler.apply({"add": 2, "ids": [*start, 51, 52], "config": config})
    while not scheduler.idle:
        scheduler.work()
    assert not [event for event in events if "failed" in event]
    assert sum(len(row[1]) for event in events for row in event["step"]) == 2


async def test_a_stopped_engine_fails_what_waits_within_seconds(folder, monkeypatch) -> None:
    monkeypatch.setattr(ChatModel, "longest_silence", 3.0)
    model = opened(folder)
    await model.start()
    await asyncio.sleep(4)
    assert model.ready  # idle, but alive
    os.kill(model._process.pid, signal.SIGSTOP)
    with pytest.raises(EngineFailed, match="has stopped"):
        await asyncio.wait_for(read(model, "the fox", max_new_tokens=400), 8)
    assert not model.ready
    assert "has stopped" in str(await asyncio.wait_for(model.stopped(), 5))
    await model.close()


def test_a_signal_to_the_whole_group_lets_a_turn_finish(tmp_path, folder, models_dir) -> None:
    site = Served(tmp_path / "home", models_dir, "--chat-model", str(folder), *FLAGS, "--drain-s", "20").start()
    workers = engine_processes(site)
    body = {"inputs": "rain", "stream": True, "parameters": {"max_new_tokens": 300, "no_retrieval": True}}
    with site.client.stream("POST", "/invocations", json=body) as answer:
        lines = (json.loads(line) for line in answer.iter_lines() if line)
        events = [next(lines)["event"]]
        for number in (*workers, site.process.pid):
            os.kill(number, signal.SIGTERM)
        events += [frame["event"] for frame in lines]
    assert events[-1] == "done"
    assert site.stop() == 0


def test_a_dead_engine_ends_the_service_though_a_client_is_still_sending(tmp_path, folder, models_dir) -> None:
    site = Served(tmp_path / "home", models_dir, "--chat-model", str(folder), *FLAGS, "--drain-s", "60").start()
    try:
        address = site.client.base_url.host, site.client.base_url.port
        with socket.create_connection(address, timeout=5) as sending:
            sending.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n" + b'{"inputs": "')
            assert site.client.get("/ping").status_code == 200  # sent later, so the other is being read
            os.kill(*engine_processes(site), signal.SIGKILL)
            assert site.process.wait(10) not in (0, None)
    finally:
        site.process.kill()
        site.stop()
    assert "the language model has stopped" in site.log


def engine_processes(site) -> list[int]:
    import psutil

    found = psutil.Process(site.process.pid).children(recursive=True)
    return [process.pid for process in found if "chatkit.models.chat_worker" in process.cmdline()]


async def test_a_cache_smaller_than_the_context_shortens_it_and_sessions_take_turns(folder, caplog) -> None:
    edit(folder, max_position_embeddings=2**21)
    model = opened(folder)
    await model.start()
    tokens = 2**30 // (2 * 2 * 2 * 32 * 4)  # layers, keys and values, heads, size, bytes
    assert model.reported["cache_tokens"] == model.context_window == tokens
    assert f"holds {tokens} tokens, fewer than the {2**21} of the model" in caplog.text
    with pytest.raises(TooLarge, match=f"the model holds {tokens}"):
        model.generate("the " * tokens, SamplingParams())
    model._admission.tokens = 256  # as if it were smaller still: two rows
    order = []

    async def ask(session: str) -> None:
        await read(model, f"rain and {session}", session, max_new_tokens=50)
        order.append(session)

    await asyncio.gather(*(ask("a") for _ in range(12)), ask("b"))
    assert order.index("b") < 9  # without turns it would be the last, 12
    await model.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_position_embeddings": "many"}, "max_position_embeddings in .* is 'many', expected a number"),
        ({"text_config": 3}, "text_config in .* is 3, expected an object"),
    ],
)
def test_a_config_of_another_form_is_refused_in_one_line(folder, changes, message) -> None:
    edit(folder, **changes)
    with pytest.raises(BrokenModel, match=message) as caught:
        opened(folder)
    assert "copy the model again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_form_are_refused_with_the_next_step_and_no_folder_is_to_be_removed(folder) -> None:
    good = (folder / "tokenizer.json").read_text()
    for text in ("{}", '{"added_tokens": 3}', '{"added_tokens": [1]}'):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(BrokenModel, match=r"copy tokenizer\.json of the model again") as caught:
            opened(folder)
        assert "remove" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(BrokenModel, match=r"remove .* and start again"):
        load_tokenizer(folder, derived=True)
    (folder / "tokenizer.json").write_text(good)
    weights = folder / "model.safetensors"
    part = weights.rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(BrokenModel, match=r"is a part, and 'model\.safetensors\.index\.json' is missing"):
        opened(folder)
    part.unlink()
    for header in (b"[]", b'{"a": 3}', b"7"):
        weights.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(BrokenModel, match="has no header of safetensors"):
            opened(folder)


async def test_a_model_type_nobody_knows_ends_the_start_as_a_model_error(folder) -> None:
    edit(folder, model_type="no-such-model")
    model = opened(folder)
    with pytest.raises(ModelError, match="no-such-model") as caught:
        await model.start()
    assert not isinstance(caught.value, EngineFailed)
    assert "\n" not in str(caught.value)
    await model.close()


def test_a_config_with_more_layers_than_weights_is_refused(folder) -> None:
    edit(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(ModelError, match=r"9 weights are missing \(first: model\.layers\.2\..*copy the model again"):
        load_model(folder, LoadOptions(dtype="float32"))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_rope_that_goes_by_the_longest_row_is_used_up_to_where_it_begins_to(folder, kind, caplog) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    edit(folder, rope_parameters=rope | {"original_max_position_embeddings": 128})
    assert read_facts(folder).context_window == 128
    assert "the context is 128, not 512" in caplog.text
    edit(folder, rope_parameters=None, rope_scaling={"type": kind, **rope}, original_max_position_embeddings=96)
    assert read_facts(folder).context_window == 96
    edit(folder, rope_scaling={"rope_type": "llama3", "original_max_position_embeddings": 96})
    assert read_facts(folder).context_window == 512
