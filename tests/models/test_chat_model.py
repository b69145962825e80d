"""The transformers engine in its process, with a tiny real model: it says what `generate` says, whoever else asks."""

import asyncio
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from chatkit.errors import BrokenModel, ConfigError, EngineFailed, InvalidRequest, ModelError, Overloaded, Unavailable
from chatkit.models import chat
from chatkit.models.admission import Admission
from chatkit.models.chat import ChatOptions, open_chat, parse_memory
from chatkit.models.parallel import check_ranks, place_of
from chatkit.stopping import hold_back
from chatkit.types import Message, SamplingParams
from tests.models import tiny

pytestmark = pytest.mark.anyio
SUBJECTS = tiny.WORDS.split()[:10]
OPTIONS = ChatOptions(dtype="float32", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama whose embedding of `<|system|>` is not a number: prompts with that token go wrong, no others."""
    folder = tiny.make(tmp_path_factory.mktemp("models") / "llama", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tiny.MARKERS.index("<|system|>")] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
async def model(folder):
    made = open_chat(folder, cache=folder / "derived", options=OPTIONS, name="tiny-llama")
    await made.start()
    yield made
    await made.close()


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def prompt(model, text: str) -> str:
    return model.format.render([Message("user", text)])


async def read(model, text: str, *, words=(), **sampling):
    """Return text, tokens and the last chunk of one generation."""
    params = SamplingParams(stop_words=tuple(words), **sampling)
    chunks = [chunk async for chunk in hold_back(model.generate(text, params), words)]
    return "".join(c.text for c in chunks), sum(c.tokens for c in chunks), chunks[-1]


def generated(reference, model, text: str, **settings) -> str:
    ids = torch.tensor([model.tokenizer.encode(text, add_special_tokens=False).ids])
    made = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **settings)
    return model.tokenizer.decode(made[0, ids.shape[1] :].tolist())


async def until_quiet(model) -> None:
    """Wait until the engine makes no more tokens."""
    made = -1
    while made != model.tokens_made:
        made = model.tokens_made
        await asyncio.sleep(0.3)


async def test_greedy_text_is_that_of_generate_alone_and_ten_at_once(model, reference) -> None:
    texts = [prompt(model, f"the {word} and the fox") for word in SUBJECTS]
    wanted = [generated(reference, model, text, max_new_tokens=16) for text in texts]
    assert len(set(wanted)) >= 8
    alone = [await read(model, text, max_new_tokens=16) for text in texts]
    assert [text.strip("\ufffd") in want for (text, _, _), want in zip(alone, wanted, strict=True)] == [True] * 10
    together = await asyncio.gather(*(read(model, text, max_new_tokens=16) for text in texts))
    assert [answer[0] for answer in together] == [answer[0] for answer in alone]
    last = alone[0][2]
    assert (alone[0][1], last.finish_reason, last.prompt_tokens) == (16, "length", model.count_tokens(texts[0]))


async def test_repetition_penalty_is_that_of_generate(model, reference) -> None:
    text = prompt(model, "the fox jumps over the fox")
    wanted = generated(reference, model, text, max_new_tokens=12, repetition_penalty=1.7)
    assert wanted != generated(reference, model, text, max_new_tokens=12)
    got, _, _ = await read(model, text, max_new_tokens=12, repetition_penalty=1.7)
    assert got.strip("\ufffd") in wanted


async def test_temperature_alone_samples_and_top_k_of_one_is_greedy_again(model) -> None:
    text = prompt(model, "owls")
    greedy = (await read(model, text, max_new_tokens=10))[0]
    assert (await read(model, text, max_new_tokens=10, temperature=2.0, seed=1))[0] != greedy
    assert (await read(model, text, max_new_tokens=10, temperature=2.0, top_k=1))[0] == greedy
    assert (await read(model, text, max_new_tokens=10, temperature=2.0, top_p=1e-6))[0] == greedy


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 1e-300}, {"temperature": 2.0, "top_k": 1_000_000, "seed": 2**63 - 1}, {"repetition_penalty": 0.1}],
)
async def test_every_value_within_the_bounds_gives_an_answer(model, sampling) -> None:
    _, tokens, last = await read(model, prompt(model, "x"), max_new_tokens=4, **sampling)
    assert (tokens, last.finish_reason) == (4, "length")


async def test_a_stop_word_ends_the_answer_early_and_is_never_in_it(model) -> None:
    text = prompt(model, "books about rain")
    plain, _, _ = await read(model, text, max_new_tokens=24)
    word = plain[8:11]
    got, tokens, last = await read(model, text, words=[word], max_new_tokens=24)
    assert (last.finish_reason, got) == ("stop", plain[: plain.index(word)])
    assert tokens < 24
    await until_quiet(model)
    before = model.tokens_made
    async for chunk in model.generate(text, SamplingParams(max_new_tokens=24, stop_words=(word,))):
        last = chunk
    assert (last.finish_reason, model.tokens_made - before) == ("stop", tokens)  # the engine itself stopped there


async def test_cancelling_stops_the_engine_and_others_go_on(model) -> None:
    other = asyncio.create_task(read(model, prompt(model, "snow"), max_new_tokens=40))
    generations = [model.generate(prompt(model, word), SamplingParams(max_new_tokens=400)) for word in SUBJECTS]
    for generation in generations:
        chunks = aiter(generation)
        await anext(chunks)
        generation.cancel()
        assert [chunk.finish_reason async for chunk in chunks][-1] == "aborted"
    assert (await other)[1] == 40
    await until_quiet(model)
    alone = await read(model, prompt(model, "snow"), max_new_tokens=40)
    assert alone[0] == (await other)[0]


async def test_a_full_queue_is_overloaded_at_once(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "_admission", Admission(1))
    running = model.generate(prompt(model, "x"), SamplingParams(max_new_tokens=300))
    with pytest.raises(Overloaded, match="1 generations are running or waiting"):
        model.generate(prompt(model, "x"), SamplingParams())
    running.cancel()


async def test_prompts_the_engine_cannot_take_fail_alone_in_one_line(model) -> None:
    for text, message in (("", "the prompt is empty"), ("the " * 100_000, "tokens, the model holds 512")):
        with pytest.raises(InvalidRequest, match=message) as caught:
            await read(model, text)
        assert "\n" not in str(caught.value)
    assert model.ready
    assert (await read(model, prompt(model, "x"), max_new_tokens=2))[1] == 2


async def test_an_answer_ends_where_the_models_window_does(model) -> None:
    text = prompt(model, "the " * 400)
    tokens = model.count_tokens(text)
    _, made, last = await read(model, text, max_new_tokens=500)
    assert (made, last.finish_reason) == (tiny.WINDOW - tokens, "length")


async def test_numbers_that_are_none_fail_their_request_and_touch_no_other(model) -> None:
    good = prompt(model, "the lazy dog")
    wanted = (await read(model, good, max_new_tokens=20))[0]
    bad = model.format.render([Message("system", "x"), Message("user", "the lazy dog " * 20)])
    for _ in range(2):
        beside = asyncio.create_task(read(model, good, max_new_tokens=20))
        with pytest.raises(Unavailable, match="no numbers") as caught:
            await read(model, bad, max_new_tokens=20)
        assert not isinstance(caught.value, EngineFailed)
        assert (await beside)[0] == wanted
    assert (await read(model, good, max_new_tokens=20))[0] == wanted


async def test_later_turns_of_a_session_read_only_what_is_new(model) -> None:
    messages, cold = [], 0
    for turn in range(10):
        messages.append(Message("user", f"tell me {SUBJECTS[turn]} of the books about rain"))
        text = model.format.render(messages)
        before = model.tokens_read
        answer, _, _ = await read(model, text, max_new_tokens=8)
        await until_quiet(model)
        cold = model.count_tokens(text)
        warm = model.tokens_read - before
        messages.append(Message("assistant", answer))
    assert cold > 150
    assert warm <= cold * 0.25


async def test_vectors_are_the_mean_of_the_last_hidden_states(model, folder) -> None:
    texts = [f"{word} and rain " * (n + 1) for n, word in enumerate(SUBJECTS)]
    busy = asyncio.create_task(read(model, prompt(model, "snow"), max_new_tokens=60))
    vectors = await model.embedder.encode(texts)
    await busy
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = tiny.tokenizer()
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0).numpy()
        assert np.abs(vector - mean / np.linalg.norm(mean)).max() < 1e-4
    assert vectors.shape == (10, model.embedder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (await model.embedder.encode([])).shape == (0, model.embedder.dim)
    assert model.embedder.name == model.name
    with pytest.raises(InvalidRequest, match="text 1"):
        await model.embedder.encode(["x", ""])


async def test_a_killed_engine_fails_everything_that_waits_and_says_that_it_stopped(folder) -> None:
    made = open_chat(folder, cache=folder / "derived", options=OPTIONS, name="tiny-llama")
    assert made.ends_service
    await made.start()
    waiting = [asyncio.create_task(read(made, prompt(made, "x"), max_new_tokens=500)) for _ in range(2)]
    vectors = asyncio.create_task(made.embedder.encode(["rain"] * 3000))
    await asyncio.sleep(0.1)
    os.kill(made._process.pid, signal.SIGKILL)
    failures = await asyncio.wait_for(asyncio.gather(*waiting, vectors, return_exceptions=True), 10)
    assert [type(failure) for failure in failures] == [EngineFailed] * 3
    assert "has stopped" in str(await asyncio.wait_for(made.stopped(), 5))
    await made.close()


def broken(folder, tmp_path, **files: object):
    """Return a copy of the model with some files written anew, or removed where None."""
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("derived"))
    for name, content in files.items():
        file = copy / name.replace("_json", ".json")
        if content is None:
            file.unlink()
        else:
            file.write_text(json.dumps(json.loads(file.read_text()) | content))
    return copy


def refusal(folder, kind=BrokenModel, options=OPTIONS) -> str:
    with pytest.raises(kind) as caught:
        open_chat(folder, cache=folder / "derived", options=options, name="x")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_not_whole_is_refused_before_anything_starts(folder, tmp_path) -> None:
    assert "has no config.json" in refusal(broken(folder, tmp_path / "1", config_json=None))
    cut = broken(folder, tmp_path / "2")
    weights = cut / "model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size // 2)
    assert f"has {size // 2} bytes, expected {size}" in refusal(cut)
    (cut / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    assert "model-00002-of-00002.safetensors' is missing" in refusal(cut)
    empty = broken(folder, tmp_path / "3")
    (empty / "model.safetensors").rename(empty / "pytorch_model.bin")
    assert "a pickle" in refusal(empty, ModelError)
    half = broken(folder, tmp_path / "4")
    (half / "tokenizer.json").write_text('{"version": "1.0", "mod')
    assert "is no JSON" in refusal(half)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path) -> None:
    small = broken(folder, tmp_path, config_json={"vocab_size": 300})
    assert "has ids up to 333, the model 300 tokens" in refusal(small)


def test_the_name_of_a_gguf_file_chooses_the_prompt_format(folder, tmp_path, monkeypatch) -> None:
    file = tmp_path / "GPT-NeoXT-Chat-Base-20B.Q4_0.gguf"
    file.touch()
    monkeypatch.setattr(chat, "dequantized", lambda path, cache: folder)  # which is called by the file's size and time
    model = open_chat(file, cache=tmp_path, options=OPTIONS, name="x")
    assert model.format.render([Message("user", "hello")]) == "<human>: hello\n<bot>:"


def test_ranks_that_do_not_divide_the_heads_are_refused_with_those_that_would() -> None:
    check_ranks(3, heads=9, key_value_heads=3)
    with pytest.raises(ConfigError, match="9 attention heads and 3 key-value heads divide over 1, 3 only"):
        check_ranks(2, heads=9, key_value_heads=3)


def test_tensor_parallel_excludes_what_places_whole_layers(folder) -> None:
    options = ChatOptions(tensor_parallel=2, gpu_memory={0: 20})
    assert "does not go with gpu_memory" in refusal(folder, ConfigError, options)


def test_limits_are_read_as_the_ancestor_wrote_them() -> None:
    assert parse_memory("0:20,1:30.5") == {0: 20.0, 1: 30.5}
    assert parse_memory("") == {}
    for text in ("20", "0:", "a:1", "0:-1", "0:1:2"):
        with pytest.raises(ConfigError, match="expected GiB by GPU number"):
            parse_memory(text)


def test_a_launchers_variables_say_which_rank_this_is() -> None:
    assert place_of({}) is None
    assert place_of({"RANK": "0", "WORLD_SIZE": "1"}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "77"}
    place = place_of(torchrun)
    assert (place.rank, place.ranks, place.local_rank, place.address, place.port) == (3, 4, 1, "10.0.0.1", 77)
    mpirun = place_of({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"})
    assert (mpirun.rank, mpirun.ranks, mpirun.local_rank, mpirun.address) == (1, 2, 1, "127.0.0.1")
    with pytest.raises(ConfigError, match="is no number"):
        place_of({"RANK": "one", "WORLD_SIZE": "2"})
