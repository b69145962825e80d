"""The local engine with the real default model: repeatable, cancellable, bounded, and honest about its own death."""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack

import pytest

from chatkit.engines import open_model
from chatkit.errors import EngineFailed, InvalidRequest, Overloaded
from chatkit.models import engine, local, sources
from chatkit.models.admission import Admission
from chatkit.settings import Settings
from chatkit.stopping import hold_back
from chatkit.types import Message, SamplingParams

pytestmark = pytest.mark.anyio
THREADS = 1
SUBJECTS = ("cats", "dogs", "rain", "snow", "cars", "trees", "bread", "tea")


@pytest.fixture(scope="module")
async def model(models_dir):
    async with AsyncExitStack() as stack:
        yield await open_model(Settings(models_dir=models_dir, threads=THREADS), stack)


def prompt(model, text: str = "Name three colours.") -> str:
    return model.format.render([Message("user", text)])


async def read(model, text: str, *, words=(), **sampling):
    """Return text, tokens and the last chunk of one generation."""
    params = SamplingParams(stop_words=tuple(words), **sampling)
    chunks = [chunk async for chunk in hold_back(model.generate(text, params), words)]
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return "".join(c.text for c in chunks), sum(c.tokens for c in chunks), chunks[-1]


async def until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    for _ in iter(condition, True):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_the_model_says_what_it_is_and_counts_control_tokens_as_one(model) -> None:
    assert model.ready
    assert model.context_window == 8192
    assert model.count_tokens("<|im_start|>user\nHi<|im_end|>") == 5
    assert model.count_tokens("") == 0


async def test_greedy_is_repeatable_and_usage_is_counted(model) -> None:
    text = prompt(model)
    first, second = [await read(model, text, max_new_tokens=12) for _ in range(2)]
    assert first == second
    assert first[1] == 12
    assert first[2].finish_reason == "length"
    assert first[2].prompt_tokens == model.count_tokens(text)
    assert model.count_tokens(first[0]) == 12


async def test_a_seed_repeats_a_sampled_answer_and_no_seed_does_not(model) -> None:
    sampling = {"max_new_tokens": 16, "temperature": 1.2}
    seeded = [(await read(model, prompt(model), seed=7, **sampling))[0] for _ in range(2)]
    assert seeded[0] == seeded[1]
    free = {(await read(model, prompt(model), **sampling))[0] for _ in range(4)}
    assert len(free) > 1


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1e-300},
        {"temperature": 1e-9},
        {"temperature": 2.0, "top_p": 1e-6},
        {"temperature": 2.0, "top_k": 1_000_000, "seed": 2**63 - 1},
        {"repetition_penalty": 0.1},
        {"repetition_penalty": 2.0},
    ],
)
async def test_every_value_within_the_bounds_gives_an_answer(model, sampling) -> None:
    _text, tokens, last = await read(model, prompt(model), max_new_tokens=4, **sampling)
    assert tokens <= 4
    assert last.finish_reason in ("length", "stop")
    assert model.ready


async def test_a_stop_word_ends_the_answer_and_is_never_in_it(model) -> None:
    plain, _, _ = await read(model, prompt(model), max_new_tokens=20)
    word = plain.split()[3]
    text, tokens, last = await read(model, prompt(model), words=[word], max_new_tokens=20)
    assert last.finish_reason == "stop"
    assert text == plain[: plain.index(word)]
    assert 0 < tokens < 20
    assert last.prompt_tokens == model.count_tokens(prompt(model))


async def test_an_answer_the_model_ends_itself_stops_without_its_control_token(model) -> None:
    text, tokens, last = await read(model, prompt(model, "Say only the word yes."), max_new_tokens=200)
    assert last.finish_reason == "stop"
    assert "<|" not in text
    assert 0 < tokens < 200


async def test_characters_of_several_tokens_come_out_whole(model) -> None:
    wanted = "naïve 漢字 🙂🎉 é"
    generation = engine.EngineGeneration(model, -1, 0)
    ids = model.tokenizer.encode(wanted, add_special_tokens=False).ids
    assert len(model.tokenizer.encode("漢", add_special_tokens=False).ids) > 1
    for token in ids[:-1]:
        generation.put(([token], None))
    generation.put((ids[-1:], "stop"))
    chunks = [chunk async for chunk in generation]
    assert "".join(chunk.text for chunk in chunks) == wanted
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert [chunk.tokens for chunk in chunks] == [1] * len(ids)


async def test_cancelling_stops_the_engine_and_ends_with_aborted(model) -> None:
    generation = model.generate(prompt(model, "Tell a long story."), SamplingParams(max_new_tokens=2000))
    chunks = aiter(generation)
    await anext(chunks)
    generation.cancel()
    generation.cancel()
    assert [chunk.finish_reason async for chunk in chunks][-1] == "aborted"
    await asyncio.sleep(0.3)
    made = model.tokens_made
    await asyncio.sleep(0.3)
    assert model.tokens_made == made
    assert (await read(model, prompt(model), max_new_tokens=2))[1] == 2


async def test_an_iterator_that_is_left_stops_the_engine_too(model) -> None:
    chunks = aiter(model.generate(prompt(model, "Tell a long story."), SamplingParams(max_new_tokens=2000)))
    await anext(chunks)
    await chunks.aclose()
    await asyncio.sleep(0.3)
    made = model.tokens_made
    await asyncio.sleep(0.2)
    assert model.tokens_made == made


async def test_eight_at_once_say_what_each_says_alone(model) -> None:
    texts = [prompt(model, f"Write about {word}.") for word in SUBJECTS]
    alone = [(await read(model, text, max_new_tokens=12))[0] for text in texts]
    together = await asyncio.gather(*(read(model, text, max_new_tokens=12) for text in texts))
    assert [answer[0] for answer in together] == alone
    assert len(set(alone)) > 4


async def test_a_full_queue_is_overloaded_at_once_and_recovers(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "_admission", Admission(1, 1))
    running = [model.generate(prompt(model), SamplingParams(max_new_tokens=500)) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 generations are running or waiting"):
        model.generate(prompt(model), SamplingParams())
    for generation in running:
        generation.cancel()
    assert (await read(model, prompt(model), max_new_tokens=1))[1] == 1


async def test_a_prompt_the_engine_refuses_fails_alone(model) -> None:
    with pytest.raises(InvalidRequest, match="cannot take this prompt") as caught:
        await read(model, "")
    assert "\n" not in str(caught.value)
    assert model.ready
    assert (await read(model, prompt(model), max_new_tokens=1))[1] == 1


async def test_a_request_the_engine_cannot_read_fails_alone(model) -> None:
    odd = SamplingParams()
    object.__setattr__(odd, "stop_words", ("\ud800",))  # SamplingParams itself refuses it
    other = asyncio.create_task(read(model, prompt(model), max_new_tokens=5))
    with pytest.raises(InvalidRequest, match="cannot take this prompt"):
        [chunk async for chunk in model.generate(prompt(model), odd)]
    assert (await other)[1] == 5
    assert model.ready


async def test_a_killed_engine_fails_everything_that_waits_and_is_not_ready_any_more(models_dir) -> None:
    file = sources.resolve("default", models_dir=models_dir, role="chat")
    cache = sources.derived_dir(file, models_dir=models_dir)
    model = local.open_local(file, cache=cache, options=local.LocalOptions(threads=THREADS))
    assert not model.ready
    with pytest.raises(EngineFailed, match="not been started"):
        model.generate("x", SamplingParams())
    await model.start()
    started = model.tokens_made
    waiting = [asyncio.create_task(read(model, prompt(model), max_new_tokens=2000)) for _ in range(3)]
    await until(lambda: model.tokens_made > started)
    os.kill(model._process.pid, signal.SIGKILL)
    failures = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert [type(failure) for failure in failures] == [EngineFailed] * 3
    assert "has stopped" in str(failures[0])
    assert len({id(failure) for failure in failures}) == 3
    assert not model.ready
    with pytest.raises(EngineFailed, match="has stopped"):
        model.generate(prompt(model), SamplingParams())
    await model.close()


async def test_a_line_cut_short_by_the_engines_death_is_a_failure_too(models_dir, monkeypatch) -> None:
    file = sources.resolve("default", models_dir=models_dir, role="chat")
    cache = sources.derived_dir(file, models_dir=models_dir)
    model = local.open_local(file, cache=cache, options=local.LocalOptions(threads=THREADS))
    script = "import sys\nprint('{\"ready\":true}', flush=True)\nsys.stdin.readline()\nprint('{\"step\": [[0', end='')"
    real = asyncio.create_subprocess_exec

    async def dying(program, *arguments, **pipes):
        return await real(program, "-c", script, **pipes)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", dying)
    await model.start()
    with pytest.raises(EngineFailed, match="has stopped"):
        await asyncio.wait_for(read(model, prompt(model)), 5)
    assert not model.ready
    await model.close()


async def test_an_engine_that_cannot_start_says_why_in_one_line(models_dir, tmp_path, monkeypatch) -> None:
    file = sources.resolve("default", models_dir=models_dir, role="chat")
    cache = sources.derived_dir(file, models_dir=models_dir)
    model = local.open_local(file, cache=cache, options=local.LocalOptions(device="NONE"))
    with pytest.raises(EngineFailed, match="ended with code 1: ") as caught:
        await model.start()
    assert "\n" not in str(caught.value)
    assert not model.ready
    await model.close()
