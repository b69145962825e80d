"""One suite for every engine: what a turn relies on, whatever runs the model.

An engine joins by a row in ENGINES. The `openai` engine is asked against a real `chatkit serve`, and against other
servers where these variables name one: CHATKIT_TEST_VLLM_URL and CHATKIT_TEST_LLAMA_CPP_URL, addresses that end in /v1.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatkit.engines import open_model
from chatkit.errors import EngineFailed, InvalidRequest, TooLarge
from chatkit.prompts import build_prompt
from chatkit.protocols import LanguageModel
from chatkit.settings import Settings
from chatkit.stopping import hold_back
from chatkit.types import Chunk, Message, SamplingParams
from tests.serving import Served

pytestmark = pytest.mark.anyio
STORY = "Tell a very long story about a ship."
SUBJECTS = ("cats", "rain", "bread")


@dataclass
class Engine:
    """An engine under test.

    `work` grows while it generates for anybody, `quiet` is the growth of an idle one. `exact`: greedy answers do not
    depend on what else runs, nor do those drawn with a seed.
    """

    model: LanguageModel
    work: Callable[[], float] | None = None
    quiet: float = 0.0
    exact: bool = True


@asynccontextmanager
async def local(models_dir: Path, home: Path) -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        model = await open_model(Settings(models_dir=models_dir, threads=1), stack)
        yield Engine(model, lambda: model.tokens_made)


def transformers(**options: object) -> Callable[[Path, Path], object]:
    """Return an engine of the real default model, dequantised once; with `tensor_parallel` shared by ranks."""

    @asynccontextmanager
    async def opened(models_dir: Path, home: Path) -> AsyncIterator[Engine]:
        async with AsyncExitStack() as stack:
            settings = Settings(models_dir=models_dir, engine="transformers", threads=1, **options)
            model = await open_model(settings, stack)
            yield Engine(model, lambda: model.tokens_made)

    return opened


@asynccontextmanager
async def openai(models_dir: Path, home: Path) -> AsyncIterator[Engine]:
    flags = ("--threads", "1", "--index", "", "--system-prompt", "", "--policy", "monitor", "--gate", "stream_first")
    server = await asyncio.to_thread(Served(home, models_dir, *flags).start)
    try:
        pid, url = server.process.pid, str(server.client.base_url.join("/v1"))
        async with upstream(url, upstream_context=8192) as engine:
            engine.work, engine.quiet = (lambda: processor_seconds(pid)), 0.1
            yield engine
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def upstream(url: str, exact: bool = True, **settings: object) -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        yield Engine(await open_model(Settings(engine="openai", upstream_url=url, **settings), stack), exact=exact)


def named_by(variable: str) -> Callable[[Path, Path], object]:
    return lambda models_dir, home: upstream(os.environ[variable], exact=False)


ENGINES = {
    "local": local,
    "openai": openai,
    "transformers": transformers(),
    "tensor_parallel": transformers(tensor_parallel=3, dtype="float32"),
}
for name, variable in (("openai-vllm", "CHATKIT_TEST_VLLM_URL"), ("openai-llama.cpp", "CHATKIT_TEST_LLAMA_CPP_URL")):
    if os.environ.get(variable):
        ENGINES[name] = named_by(variable)


@pytest.fixture(scope="module", params=ENGINES)
async def engine(request, models_dir, tmp_path_factory):
    async with ENGINES[request.param](models_dir, tmp_path_factory.mktemp("upstream")) as opened:
        yield opened


@pytest.fixture
def model(engine) -> LanguageModel:
    return engine.model


def processor_seconds(pid: int) -> float:
    """Return what a process and all below it have computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below = Path(f"/proc/{pid}/task").glob("*/children")
    return own + sum(processor_seconds(int(child)) for file in below for child in file.read_text().split())


def prompt(model, text: str = "Name three colours.") -> str:
    return model.format.render([Message("user", text)])


async def read(model, text: str, *, words=(), session: str = "", **sampling) -> tuple[str, int, Chunk]:
    """Return text, tokens and the last chunk of one generation, cut as the service cuts it."""
    params = SamplingParams(stop_words=tuple(words), **sampling)
    chunks = [chunk async for chunk in hold_back(model.generate(text, params, session=session), words)]
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return "".join(c.text for c in chunks), sum(c.tokens for c in chunks), chunks[-1]


async def test_it_is_ready_and_says_what_it_is(model) -> None:
    assert model.ready
    assert model.name
    assert model.context_window >= 2048
    assert model.count_tokens("") == 0
    short, long = prompt(model, "Hi"), prompt(model, "Hi " * 100)
    assert 0 < model.count_tokens(short) < model.count_tokens(long)


async def test_greedy_says_the_same_again_and_counts_what_it_made(model) -> None:
    first, second = [await read(model, prompt(model), max_new_tokens=12, session="5e55") for _ in range(2)]
    assert first == second
    assert first[0].strip()
    assert first[1] == 12
    assert first[2].finish_reason == "length"
    assert 0 < first[2].prompt_tokens < 100


async def test_a_longer_answer_begins_with_the_shorter_one_so_no_piece_is_lost_between_chunks(model) -> None:
    short, _, _ = await read(model, prompt(model), max_new_tokens=8)
    long, tokens, last = await read(model, prompt(model), max_new_tokens=24)
    assert long.startswith(short)
    assert len(long) > len(short)
    assert (tokens, last.finish_reason) == (24, "length")


async def test_an_answer_the_model_ends_itself_stops_without_its_control_token(model) -> None:
    text, tokens, last = await read(model, prompt(model, "Say only the word yes."), max_new_tokens=200)
    assert last.finish_reason == "stop"
    assert "<|" not in text
    assert 0 < tokens < 200


async def test_a_stop_word_that_begins_and_ends_within_tokens_cuts_exactly_there(model) -> None:
    plain, _, _ = await read(model, prompt(model), max_new_tokens=24)
    words = plain.split()
    word = f"{words[2][-2:]} {words[3][:2]}"  # from the middle of one word into the middle of the next
    assert word in plain
    text, tokens, last = await read(model, prompt(model), words=["never said", word], max_new_tokens=24)
    assert text == plain[: plain.index(word)]
    assert last.finish_reason == "stop"
    assert 0 < tokens <= 24


async def test_a_stop_word_that_ends_in_a_space_or_line_end_leaves_nothing_of_itself(model) -> None:
    asked = prompt(model, "Write a numbered list of five fruits, one a line.")
    plain, _, _ = await read(model, asked, max_new_tokens=40)
    line = plain.index("\n") + 1
    space = plain.index(" ", 5) + 1
    for word in (plain[space - 3 : space], plain[line - 4 : line]):
        text, _, last = await read(model, asked, words=[word], max_new_tokens=40)
        assert (text, last.finish_reason) == (plain[: plain.index(word)], "stop")


async def test_more_stop_words_than_a_server_takes_all_cut(model) -> None:
    plain, _, _ = await read(model, prompt(model), max_new_tokens=24)
    word = plain.split()[3]
    unsaid = [f"never {number}" for number in range(6)]
    text, _, last = await read(model, prompt(model), words=[*unsaid, word], max_new_tokens=24)
    assert (text, last.finish_reason) == (plain[: plain.index(word)], "stop")


async def test_characters_of_several_bytes_come_whole(model) -> None:
    texts = []
    for text in ("Repeat this line exactly: 漢字 🙂🎉 naïve é ü 漢字 🙂🎉", "Write hello in Japanese and in Russian."):
        generation = model.generate(prompt(model, text), SamplingParams(max_new_tokens=40))
        texts += [chunk.text async for chunk in generation]
    assert any(not text.isascii() for text in texts), texts
    assert not any("\ufffd" in text for text in texts), texts


async def test_a_seed_repeats_a_sampled_answer_and_none_varies_it(model) -> None:
    sampling = {"max_new_tokens": 16, "temperature": 1.2}
    seeded = [(await read(model, prompt(model), seed=7, **sampling))[0] for _ in range(2)]
    assert seeded[0] == seeded[1]
    free = {(await read(model, prompt(model), **sampling))[0] for _ in range(4)}
    assert len(free) > 1


async def test_a_seed_repeats_while_others_run(engine, model) -> None:
    if not engine.exact:
        pytest.skip("what else runs takes part in this server's numbers")
    sampling = {"max_new_tokens": 12, "temperature": 1.2, "top_k": 40, "top_p": 0.95}
    alone = (await read(model, prompt(model), seed=7, **sampling))[0]
    others = [read(model, prompt(model, f"Write about {it}."), temperature=1.0, max_new_tokens=20) for it in SUBJECTS]
    beside, *_ = await asyncio.gather(read(model, prompt(model), seed=7, **sampling), *others)
    assert beside[0] == alone


async def test_two_at_once_say_what_each_says_alone(engine, model) -> None:
    asked = [prompt(model, "Write about cats."), prompt(model, "Write about rain.")]
    alone = [(await read(model, text, max_new_tokens=16))[0] for text in asked]
    together = await asyncio.gather(*(read(model, text, max_new_tokens=16) for text in asked))
    assert [text[:4].lower() for text in alone] == [text[:4].lower() for text, _, _ in together]
    assert alone[0] != alone[1]
    if engine.exact:
        assert [answer[0] for answer in together] == alone


async def test_cancelling_ends_with_aborted_and_stops_the_work(engine) -> None:
    generation = engine.model.generate(prompt(engine.model, STORY), SamplingParams(max_new_tokens=4000))
    chunks = aiter(generation)
    assert (await anext(chunks)).finish_reason is None
    generation.cancel()
    generation.cancel()
    assert [chunk.finish_reason async for chunk in chunks][-1] == "aborted"
    await stops_working(engine)
    assert (await read(engine.model, prompt(engine.model), max_new_tokens=2))[1] == 2


async def test_an_iterator_that_is_left_stops_the_work_too(engine) -> None:
    chunks = aiter(engine.model.generate(prompt(engine.model, STORY), SamplingParams(max_new_tokens=4000)))
    await anext(chunks)
    await chunks.aclose()
    await stops_working(engine)
    assert engine.model.ready


async def stops_working(engine: Engine) -> None:
    """Wait for half a second in which the engine does nothing; 4,000 tokens would take it far longer than the wait."""
    if engine.work is None:
        pytest.skip("nothing tells how much this server works")
    deadline = time.monotonic() + 15
    while True:
        before = engine.work()
        await asyncio.sleep(0.5)
        if engine.work() - before <= engine.quiet:
            return
        assert time.monotonic() < deadline, "the engine goes on"


async def test_a_message_over_the_window_is_refused_before_the_engine_sees_it(model) -> None:
    window = model.context_window
    with pytest.raises(TooLarge, match="tokens") as caught:
        build_prompt(
            model.format,
            model.count_tokens,
            system="",
            turns=(),
            passages=(),
            text="word " * window,
            window=window,
            reserve=64,
        )
    assert "\n" not in str(caught.value)


async def test_a_prompt_over_the_window_is_refused_in_one_line_and_harms_nobody(model) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read(model, prompt(model, "word " * (model.context_window + 100)), max_new_tokens=4)
    assert "\n" not in str(caught.value)
    assert model.ready
    assert (await read(model, prompt(model), max_new_tokens=1))[1] == 1


async def test_after_its_close_nothing_starts_and_nothing_hangs(model) -> None:  # the last one: it ends the engine
    running = asyncio.create_task(read(model, prompt(model, STORY), max_new_tokens=4000))
    await asyncio.sleep(0.2)
    await model.close()
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(running, 20)
    assert not model.ready
    with pytest.raises(EngineFailed, match="shutting down"):
        model.generate(prompt(model), SamplingParams())
