"""The openai engine against a server that works in its own way: text, ends, counts, cancelling, connections."""

import asyncio
import gc
import json

import pytest

from chatkit.errors import EngineFailed, InvalidRequest, Overloaded
from chatkit.stopping import hold_back
from chatkit.types import Message, SamplingParams
from tests.models.upstream_fake import (
    DONE,
    HEAD,
    HELLO,
    USAGE,
    WHOLE,
    answers,
    event,
    opened,
    prompt,
    read,
    running,
    says,
    stalls,
    until,
)

pytestmark = pytest.mark.anyio
COUNTS = {"prompt_tokens": 9, "completion_tokens": 5}
KEY = "sk-canary-4711"


@pytest.fixture
async def fake():
    async with running() as server:
        yield server


@pytest.fixture
async def model(fake):
    async with opened(fake, secret=KEY) as made:
        yield made


async def test_the_text_the_end_and_the_servers_own_counts_arrive(fake, model) -> None:
    text, chunks = await read(model)
    assert text == "Hello"
    assert [chunk.text for chunk in chunks] == ["Hel", "lo", ""]
    assert chunks[-1].finish_reason == "stop"
    assert (chunks[-1].prompt_tokens, sum(chunk.tokens for chunk in chunks)) == (9, 5)


async def test_only_the_common_fields_are_sent(fake, model) -> None:
    await read(model, top_k=5, repetition_penalty=1.2)
    asked = fake.asked[0]
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "fake-1",
        "messages": [{"role": "user", "content": "Hello?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
    }
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["accept-encoding"] == "identity"
    assert "x-session" not in asked.headers


async def test_what_the_operator_says_the_server_takes_is_sent_too(fake) -> None:
    fields = ("top_k", "repetition_penalty", "max_completion_tokens")
    async with opened(fake, fields=fields, session_headers=("X-Session", "X-Other")) as model:
        words = ("a", "b", "c", "d", "e", "f")
        await read(
            model,
            session="5e55",
            top_k=5,
            repetition_penalty=1.2,
            seed=0,
            max_new_tokens=7,
            temperature=0.5,
            stop_words=words,
        )
        await read(model)
    first, second = fake.asked
    sent = {"top_k": 5, "repetition_penalty": 1.2, "seed": 0, "max_completion_tokens": 7, "temperature": 0.5}
    assert {name: first.body[name] for name in sent} == sent
    assert first.body["stop"] == ["a", "b", "c", "d"]
    assert "max_tokens" not in first.body
    assert first.headers["x-session"] == first.headers["x-other"] == "5e55"
    assert "x-session" not in second.headers
    assert not {"top_k", "repetition_penalty", "seed", "stop"} & set(second.body)


async def test_an_answer_cut_at_every_byte_is_the_same_answer(fake, model) -> None:
    stream = event("naïve ") + event("漢字 ") + event("🙂") + event(finish="stop") + USAGE + DONE
    fake.script = [says(*(stream[at : at + 1] for at in range(len(stream))))]
    assert (await read(model))[0] == "naïve 漢字 🙂"
    stream = stream.replace(b"\n", b"\r\n")
    fake.script = [says(*(stream[at : at + 3] for at in range(0, len(stream), 3)))]
    assert (await read(model))[0] == "naïve 漢字 🙂"


async def test_a_character_that_comes_as_two_halves_in_two_events_comes_out_whole(fake, model) -> None:
    halves = [
        b'data: {"choices": [{"delta": {"content": "' + half + b'"}}]}\n\n' for half in (b"a\\ud83d", b"\\ude42b")
    ]
    fake.script = [says(*halves, event(finish="stop") + DONE), says(halves[0] + event(finish="stop") + DONE)]
    _, chunks = await read(model)
    assert [chunk.text for chunk in chunks] == ["a", "🙂b", ""]
    assert (await read(model))[0] == "a\ufffd"
    fake.script = [says(halves[1] + event(finish="stop") + DONE)]
    assert (await read(model))[0] == "\ufffdb"


async def test_comments_garbage_lines_and_events_without_a_choice_change_nothing(fake, model) -> None:
    noise = b": ping\n\nwhatever\n\x00\xff\n" + event(id="x") + b'data: {"choices": [null]}\n\n' + b"event: ping\n\n"
    fake.script = [says(noise, event("Hel"), noise, event("lo") + noise, event(finish="stop"), noise, USAGE, DONE)]
    assert (await read(model))[0] == "Hello"


@pytest.mark.parametrize(
    ("stream", "tokens"),
    [
        (HELLO + DONE, 2),  # never counted
        (HELLO, 2),  # and without a [DONE]
        (HELLO + USAGE, 5),
        (HELLO[:-1], 2),  # the empty line after the last event is missing
        (event("Hel", usage=None) + event("lo") + event(finish="stop", usage=COUNTS), 5),
        (event("Hel") + event("lo") + DONE, 2),  # no reason for the end
    ],
)
async def test_an_end_told_in_any_of_the_known_ways_is_an_end(fake, model, stream, tokens) -> None:
    fake.script = [says(stream)]
    text, chunks = await read(model)
    assert (text, chunks[-1].finish_reason) == ("Hello", "stop")
    assert sum(chunk.tokens for chunk in chunks) == tokens
    assert chunks[-1].prompt_tokens == (9 if tokens == 5 else model.count_tokens(prompt(model)))


async def test_an_end_of_the_connection_that_is_no_end_of_the_answer_is_not_waited_for(fake, model) -> None:
    async def behave(peer) -> None:
        await peer.raw(HEAD)
        await peer.part(HELLO)
        await peer.gone()

    fake.script = [behave]
    text, chunks = await asyncio.wait_for(read(model), 15)
    assert (text, chunks[-1].finish_reason) == ("Hello", "stop")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("MAX_TOKENS", "length"),
        ("eos_token", "stop"),
    ],
)
async def test_the_servers_reasons_for_the_end_have_their_names_here(fake, model, said, meant) -> None:
    fake.script = [says(event("x") + event(finish=said) + DONE)]
    assert (await read(model))[1][-1].finish_reason == meant


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
async def test_json_instead_of_a_stream_is_read_to_its_end_however_many_lines_it_has(fake, model, indent, end) -> None:
    whole = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": COUNTS}
    body = json.dumps(whole, indent=indent) + end
    fake.script = [answers(200, body, **{"content-type": "application/json; charset=utf-8"})]
    text, chunks = await read(model)
    assert (text, sum(c.tokens for c in chunks), chunks[-1].prompt_tokens) == ("Hello", 5, 9)


async def test_json_without_end_is_given_up_and_json_by_lines_is_read_as_it_comes(fake, model) -> None:
    fake.script = [answers(200, " " * (2 << 20), **{"content-type": "application/json"})]
    with pytest.raises(EngineFailed, match="could not answer"):
        await read(model)
    lines = b"".join(part.removeprefix(b"data: ") for part in (event("Hel"), event("lo"), event(finish="stop")))
    fake.script = [answers(200, lines.decode(), **{"content-type": "application/x-ndjson"})]
    assert (await read(model))[0] == "Hello"


@pytest.mark.parametrize(
    "choices",
    [
        [{"index": 0, "delta": {"content": [{"type": "text", "text": "Hel"}, {"type": "image"}, {"text": "lo"}]}}],
        [{"index": 0, "delta": {"content": None, "refusal": "Hello"}}],
        [{"index": 1, "delta": {"content": "other"}}, {"index": 0, "delta": {"content": "Hello"}}],
        [{"delta": {"content": "Hello", "tool_calls": [], "function_call": None}}],
    ],
    ids=["parts", "refusal", "second-choice-first", "no-tools"],
)
async def test_whatever_an_answer_says_its_text_in_comes_out(fake, model, choices) -> None:
    stream = b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n"
    fake.script = [says(stream, event(finish="stop"), DONE)]
    assert (await read(model))[0] == "Hello"


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"tool_calls": [{"function": {"name": "canary"}}]}},
        {"delta": {}, "finish_reason": "tool_calls"},
    ],
)
async def test_a_tool_call_is_a_failure_that_names_it(fake, model, choice) -> None:
    fake.script = [says(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n", DONE)]
    with pytest.raises(
        EngineFailed, match=r"answers with a tool call \(tool_calls\), and no tools are used here"
    ) as caught:
        await read(model)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "counts",
    [
        {"completion_tokens": 10**30, "prompt_tokens": 9},
        {"completion_tokens": 5, "prompt_tokens": 4097},
        {"completion_tokens": True, "prompt_tokens": 9},
        {"completion_tokens": 5, "prompt_tokens": True},
        {"completion_tokens": 256 + 17, "prompt_tokens": 9},
        {"completion_tokens": -1, "prompt_tokens": 9},
        {"completion_tokens": 5.0, "prompt_tokens": 9},
    ],
    ids=str,
)
async def test_a_count_that_cannot_be_is_not_believed(fake, model, counts) -> None:
    fake.script = [says(HELLO + event(usage=counts) + DONE)]
    _, chunks = await read(model, max_new_tokens=256)
    assert (sum(c.tokens for c in chunks), chunks[-1].prompt_tokens) == (2, model.count_tokens(prompt(model)))


async def test_a_count_at_its_limit_is_believed(fake, model) -> None:
    fake.script = [says(HELLO + event(usage={"completion_tokens": 256 + 16, "prompt_tokens": 4096}) + DONE)]
    _, chunks = await read(model, max_new_tokens=256)
    assert (sum(c.tokens for c in chunks), chunks[-1].prompt_tokens) == (272, 4096)


async def test_thoughts_are_counted_and_not_told(fake, model) -> None:
    thought = b'data: {"choices": [{"index": 0, "delta": {"reasoning_content": "hmm"}}]}\n\n'
    fake.script = [says(thought * 3 + HELLO + DONE)]
    text, chunks = await read(model)
    assert (text, sum(chunk.tokens for chunk in chunks)) == ("Hello", 5)


async def test_a_server_that_ignores_the_limit_is_stopped(fake, model) -> None:
    fake.script = [says(*(event("x") for _ in range(500)), DONE)]
    text, chunks = await read(model, max_new_tokens=10)
    assert len(text) < 50
    assert chunks[-1].finish_reason == "length"


async def test_an_answer_may_take_longer_than_every_limit_while_its_tokens_come(fake) -> None:
    async def slow(peer) -> None:
        await peer.raw(HEAD)
        for _ in range(14):
            await asyncio.sleep(0.15)
            await peer.part(b": still here\n\n")
        for _ in range(14):
            await asyncio.sleep(0.15)
            await peer.part(event("x"))
        await peer.part(event(finish="stop") + DONE)
        await peer.part(b"")

    fake.script = [slow]
    async with opened(fake, first_s=2.0, stall_s=2.0) as model:
        assert (await read(model))[0] == "x" * 14


async def test_a_server_that_will_not_be_asked_for_its_count_is_not_asked_again(fake, model) -> None:
    refusal = answers(422, {"detail": [{"loc": ["body", "stream_options"], "msg": "extra fields not permitted"}]})
    fake.script = [refusal, says(HELLO + DONE)]
    assert (await read(model))[0] == "Hello"
    assert (await read(model))[0] == "Hello"
    assert ["stream_options" in asked.body for asked in fake.asked] == [True, False, False]


async def test_a_refusal_that_only_names_the_count_is_not_taken_for_one_of_it(fake, model) -> None:
    fake.script = [answers(400, "stream_options are fine, the rest is not")]
    with pytest.raises(InvalidRequest):
        await read(model)
    fake.script = [says(WHOLE)]
    assert (await read(model))[1][-1].prompt_tokens == 9
    assert ["stream_options" in asked.body for asked in fake.asked] == [True, False, True]


async def test_what_the_server_counts_is_not_counted_here_too(fake, model, monkeypatch) -> None:
    counted = []
    monkeypatch.setattr(model, "_counter", lambda text: counted.append(text) or 7)
    assert (await read(model))[1][-1].prompt_tokens == 9
    assert counted == []
    fake.script = [says(HELLO + DONE)]
    assert (await read(model))[1][-1].prompt_tokens == 7
    assert len(counted) == 1


async def test_cancelling_closes_the_connection_at_once_and_the_answer_ends_aborted(fake, model) -> None:
    async def endless(peer) -> None:
        await peer.raw(HEAD)
        while True:
            await peer.part(event("x"))
            await asyncio.sleep(0.01)

    fake.script = [endless]
    generation = model.generate(prompt(model), SamplingParams(max_new_tokens=32768))
    chunks = aiter(generation)
    assert (await anext(chunks)).text == "x"
    fake.left.clear()
    generation.cancel()
    generation.cancel()
    assert [chunk.finish_reason async for chunk in chunks][-1] == "aborted"
    await asyncio.wait_for(fake.left.wait(), 10)
    await until(lambda: not model.live)
    assert model.ready


async def test_a_stop_word_closes_the_connection_too(fake, model) -> None:
    async def endless(peer) -> None:
        await peer.raw(HEAD)
        while True:
            await peer.part(event("one two "))
            await asyncio.sleep(0.01)

    fake.script = [endless]
    fake.left.clear()
    generation = model.generate(prompt(model), SamplingParams(stop_words=("e tw",)))
    chunks = [chunk async for chunk in hold_back(generation, ("e tw",))]
    assert ("".join(chunk.text for chunk in chunks), chunks[-1].finish_reason) == ("on", "stop")
    await asyncio.wait_for(fake.left.wait(), 10)


async def test_a_hundred_cancelled_at_any_moment_leave_nothing_behind(fake, model) -> None:
    fake.script = [says(*([event("x")] * 20), event(finish="stop"), DONE)]

    async def some(steps: int) -> None:
        generation = model.generate(prompt(model), SamplingParams())
        for _ in range(steps):
            await asyncio.sleep(0)
        generation.cancel()
        async for _ in generation:
            pass

    await asyncio.gather(*(some(steps) for steps in range(100)))
    await until(lambda: not model.live and fake.open <= 64 + 1)
    fake.script = [says(WHOLE)]
    answered = await asyncio.gather(*(read(model) for _ in range(100)))
    assert {text for text, _ in answered} == {"Hello"}
    gc.collect()


async def test_answers_one_after_another_share_a_connection(fake, model) -> None:
    for _ in range(5):
        await read(model)
        await until(lambda: not model.live)
    assert fake.connections <= 2  # one more looks at the list of models at times


async def test_one_more_than_may_run_is_refused_at_once(fake) -> None:
    fake.script = [stalls]
    async with opened(fake, most_live=2) as model:
        kept = [model.generate(prompt(model), SamplingParams()) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 generations are running"):
            model.generate(prompt(model), SamplingParams())
        for generation in kept:
            generation.cancel()
        await until(lambda: not model.live)
        fake.script = [says(WHOLE)]
        assert (await read(model))[0] == "Hello"


async def test_a_prompt_of_another_format_is_refused(model) -> None:
    with pytest.raises(InvalidRequest, match="not in the form of messages"):
        model.generate("Hello?", SamplingParams())
    assert model.generate(model.format.render([Message("user", "x")]), SamplingParams()).cancel() is None
