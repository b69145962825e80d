"""The openai engine against a server that misbehaves: nothing hangs, nothing leaks, and all of it recovers."""

import asyncio
import json
import logging

import pytest

from chatkit.errors import EngineFailed, InvalidRequest, Overloaded, TooLarge
from chatkit.models import upstream_auth, upstream_breaker, upstream_exchange, upstream_wire
from chatkit.types import SamplingParams
from tests.models.upstream_fake import (
    DONE,
    HEAD,
    WHOLE,
    answers,
    event,
    opened,
    prompt,
    read,
    running,
    says,
    stalls,
)

pytestmark = pytest.mark.anyio
KEY = "sk-canary-4711"
SECRET_WORDS = "the canary sings in the mine at noon"


@pytest.fixture
async def fake():
    async with running() as server:
        yield server


@pytest.fixture
async def model(fake):
    async with opened(fake, secret=KEY) as made:
        yield made


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The waits before another try, as they would have been; none is waited."""
    asked: list[float] = []

    def noted(attempt: int, after: float | None) -> float:
        asked.append(upstream_breaker.wait_before(attempt, after, jitter=lambda: 0.0))
        return 0.0 if asked[-1] <= upstream_exchange.WAIT_BUDGET else asked[-1]

    monkeypatch.setattr(upstream_exchange, "wait_before", noted)
    return asked


async def fails(model, kind, words: str, **sampling) -> None:
    """Check that a generation ends with the error, in one fixed line, within the time any machine needs."""
    with pytest.raises(kind, match=words) as caught:
        await asyncio.wait_for(read(model, SECRET_WORDS, **sampling), 15)
    assert type(caught.value) is kind
    for leak in (KEY, "canary", "boom", "127.0.0.1", "\n"):
        assert leak not in str(caught.value)


@pytest.mark.parametrize(
    "behaviour",
    [
        says(event("Hel"), ends=False),
        says(event("Hel"), event("lo")[:20], ends=False),
        says(event("Hel")),  # an orderly end of the connection, but none of the answer
        says(event("Hel"), event("lo")[:20]),
        says(event("Hel"), b"data: not json\n\n"),
        says(event("Hel"), b"data: [1]\n\n"),
        says(event("Hel"), b"data: " + b"[" * 200_000 + b"\n\n"),
        says(event("Hel"), event(finish="error") + DONE),
        says(event("Hel"), b'data: {"error": {"message": "boom", "code": 400}}\n\n' + DONE),
        says(event("Hel"), b"data: " + b"x" * (2 << 20)),
    ],
    ids=[
        "cut",
        "cut-in-event",
        "no-end",
        "no-end-in-event",
        "garbage",
        "no-object",
        "nested",
        "error",
        "error-object",
        "huge",
    ],
)
async def test_an_answer_that_breaks_off_is_a_failure_after_what_was_said_and_not_tried_again(
    fake, model, behaviour
) -> None:
    fake.script = [behaviour, says(WHOLE)]
    generation = model.generate(prompt(model), SamplingParams())
    chunks = aiter(generation)
    assert (await anext(chunks)).text == "Hel"
    with pytest.raises(EngineFailed, match="try again shortly") as caught:
        await asyncio.wait_for(anext(chunks), 15)
    assert "boom" not in str(caught.value)
    assert len(fake.asked) == 1
    assert model.ready
    assert (await read(model))[0] == "Hello"


async def test_silence_before_the_first_token_or_between_two_ends_the_answer(fake) -> None:
    async def half(peer) -> None:
        await peer.raw(HEAD)
        await peer.part(event("Hel"))
        await peer.gone()

    async def headers_only(peer) -> None:
        await peer.raw(HEAD)
        await peer.gone()

    async def slow_headers(peer) -> None:
        for byte in HEAD * 100:  # never silent for long, and never done
            await peer.raw(bytes([byte]))
            await asyncio.sleep(0.02)

    for behaviour, limits, words in (
        (stalls, {"first_s": 0.3}, "did not answer in time"),
        (headers_only, {"first_s": 0.3}, "did not answer in time"),
        (slow_headers, {"first_s": 0.3}, "did not answer in time"),
        (half, {"stall_s": 0.3}, "stopped in the middle"),
    ):
        fake.script = [behaviour]
        async with opened(fake, model="m", context=512, **limits) as model:
            fake.left.clear()
            await fails(model, EngineFailed, words)
            await asyncio.wait_for(fake.left.wait(), 10)  # its connection is closed, so it stops


async def test_an_event_without_a_token_starts_no_clock_between_tokens(fake) -> None:
    role = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'

    async def reads_long(peer) -> None:
        await peer.raw(HEAD)
        await peer.part(role)
        await asyncio.sleep(0.5)
        await peer.part(WHOLE)
        await peer.part(b"")

    async def never_ends(peer) -> None:
        await peer.raw(HEAD)
        await peer.part(role)
        await peer.gone()

    fake.script = [reads_long, never_ends]
    async with opened(fake, stall_s=0.1) as model:
        assert (await read(model))[0] == "Hello"
    async with opened(fake, first_s=0.3) as model:
        await fails(model, EngineFailed, "did not answer in time")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_server_is_asked_again_until_it_answers(fake, model, waits, status) -> None:
    fake.script = [answers(status), answers(status, retry_after="1"), says(WHOLE)]
    assert (await read(model))[0] == "Hello"
    assert len(fake.asked) == 3
    assert waits == [0.25, 1.0]
    assert fake.asked[0].body == fake.asked[2].body


@pytest.mark.parametrize(("status", "kind"), [(429, Overloaded), (503, EngineFailed)])
async def test_a_server_that_stays_busy_is_given_up(fake, model, waits, status, kind) -> None:
    fake.script = [answers(status, "boom")]
    await fails(model, kind, "try again shortly")
    assert len(fake.asked) == upstream_exchange.TRIES
    assert waits == [0.25, 0.5, 1.0, 2.0]


async def test_a_wait_longer_than_a_caller_would_wait_is_not_waited(fake, model, waits) -> None:
    fake.script = [answers(429, retry_after="3600"), says(WHOLE)]
    await fails(model, Overloaded, "busy")
    assert len(fake.asked) == 1


async def test_a_connection_that_ends_before_the_answer_begins_is_tried_again(fake, model) -> None:
    async def hangs_up(peer) -> None:
        peer.cut()

    fake.script = [hangs_up, hangs_up, says(WHOLE)]
    assert (await read(model))[0] == "Hello"
    assert len(fake.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, {"error": {"message": "boom", "type": "BadRequestError"}}, InvalidRequest, "refuses this request"),
        (422, "boom", InvalidRequest, "refuses this request"),
        (413, "boom", TooLarge, "longer than"),
        (400, {"error": {"code": "context_length_exceeded", "message": "boom"}}, TooLarge, "longer than"),
        (400, {"message": "This model's maximum context length is 4096 tokens. boom"}, TooLarge, "longer than"),
        (400, {"error": {"type": "exceed_context_size_error", "message": "boom"}}, TooLarge, "longer than"),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096. boom", TooLarge, "longer than"),
        (401, "boom", EngineFailed, "the operator has to look at the settings of the language model's server$"),
        (403, "boom", EngineFailed, "the operator has to look at the settings of the language model's server$"),
        (404, "boom", EngineFailed, "the operator has to look at the settings of the language model's server$"),
        (424, "boom", EngineFailed, "could not answer"),
        (500, "boom", EngineFailed, "could not answer"),
        (204, "", EngineFailed, "could not answer"),
        (500, "boom " * 1_000_000, EngineFailed, "could not answer"),
    ],
)
async def test_a_refusal_becomes_an_error_of_ours_in_fixed_words(fake, model, status, body, kind, words) -> None:
    fake.script = [answers(status, body)]
    await fails(model, kind, words)
    assert len(fake.asked) == 1
    fake.script = [says(WHOLE)]
    assert (await read(model))[0] == "Hello"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "boom", "type": "BadRequestError", "code": 400}, InvalidRequest),
        ({"message": "maximum context length, boom", "code": 400}, TooLarge),
        ({"message": "boom", "type": "server_error", "code": "too_large"}, TooLarge),
        ({"message": "boom", "type": "server_error", "code": "overloaded"}, Overloaded),
        ({"message": "boom", "code": 429}, Overloaded),
        ({"message": "boom", "code": None}, EngineFailed),
        ("boom", EngineFailed),
    ],
)
async def test_an_error_under_status_200_is_an_error(fake, model, error, kind) -> None:
    fake.script = [says(event(error=error), DONE), says(WHOLE)]
    await fails(model, kind, "language model's server")
    assert len(fake.asked) == 1


async def test_a_redirect_is_not_followed(fake, model) -> None:
    fake.script = [answers(307, location=f"{fake.url}/elsewhere")]
    await fails(model, EngineFailed, "the operator has to look at the settings")
    assert [asked.path for asked in fake.asked] == ["/v1/chat/completions"]


async def test_a_packed_answer_is_not_unpacked(fake, model) -> None:
    fake.script = [answers(200, "boom", **{"content-encoding": "gzip"})]
    await fails(model, EngineFailed, "could not answer")


@pytest.mark.parametrize(
    ("status", "body", "logged"),
    [
        (
            400,
            {"error": {"message": SECRET_WORDS, "type": "BadRequestError", "code": 400}},
            "type BadRequestError, code 400",
        ),
        (400, json.dumps({"error": {"message": "Мой пароль канарейка"}}), "a message of 20 characters"),
        (400, {"error": {"message": "canary", "type": "the canary", "code": True}}, "400: a message of 6 characters"),
        (400, {"message": "canary", "type": "NotFound"}, "400: type NotFound, a message of 6 characters"),
        (400, {"detail": [{"input": "canary"}]}, "400: a message of 33 characters"),
        (500, {"error": f"Bearer {KEY} canary"}, "500: a message of 28 characters"),
        (500, {"error": {"message": "x", "code": KEY}}, "500: a message of 1 characters"),
        (502, "canary " * 3, "502: a message of 21 characters"),
        (401, {"error": "the key is canary"}, "401: a message of 17 characters"),
        (400, "[" * 9000 + "canary", "400: a message of 9006 characters"),
    ],
)
async def test_of_a_refusal_the_log_has_the_kind_and_the_length_and_no_word(
    fake, model, caplog, status, body, logged
) -> None:
    caplog.set_level(logging.DEBUG, "chatkit")
    fake.script = [answers(status, body)]
    with pytest.raises((InvalidRequest, EngineFailed)):
        await read(model, f"{SECRET_WORDS} Мой пароль канарейка")
    assert logged in caplog.text
    for word in ("canary", "канарейка", "u043a", KEY):
        assert word not in caplog.text


async def test_of_an_error_in_an_answer_or_a_broken_protocol_the_log_has_no_word_either(fake, model, caplog) -> None:
    caplog.set_level(logging.DEBUG, "chatkit")
    fake.script = [says(event(error={"message": "Мой canary", "code": 500}))]
    await fails(model, EngineFailed, "could not answer")
    assert "ended an answer with: code 500, a message of 10 characters" in caplog.text

    async def stammers(peer) -> None:
        await peer.raw(b"HTTP/1.1 200 OK\r\ncanary\r\n\r\n")

    fake.script = [stammers, stammers, says(b"", event("x"), ends=False)]
    await fails(model, EngineFailed, "try again shortly")
    assert "cannot be reached: RemoteProtocolError" in caplog.text
    assert "canary" not in caplog.text


async def test_a_token_made_for_a_request_is_not_logged_when_the_server_repeats_it(fake, caplog) -> None:
    caplog.set_level(logging.DEBUG, "chatkit")
    fake.script = [answers(500, {"error": {"message": "x", "type": "sagemaker-api-key-bWFkZQ", "code": "bWFkZQ1"}})]
    async with opened(fake, credentials=upstream_auth.Key("sagemaker-api-key-bWFkZQ")) as model:
        await fails(model, EngineFailed, "could not answer")
    assert "the upstream answers 500: a message of 1 characters" in caplog.text
    assert "bWFkZQ" not in caplog.text


async def test_a_server_that_keeps_failing_is_left_alone_and_then_probed(fake, model, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(model.breaker, "_clock", lambda: clock[0])
    fake.script = [answers(500)]
    for _ in range(upstream_breaker.FAILURES):
        await fails(model, EngineFailed, "could not answer")
    asked = len(fake.asked)
    assert not model.ready
    with pytest.raises(Overloaded, match="failed several times in a row"):
        model.generate(prompt(model), SamplingParams())
    assert len(fake.asked) == asked
    clock[0] += upstream_breaker.FIRST_WAIT
    assert model.ready
    await fails(model, EngineFailed, "could not answer")
    assert not model.ready
    clock[0] += 2 * upstream_breaker.FIRST_WAIT
    fake.script = [says(WHOLE)]
    assert (await read(model))[0] == "Hello"
    assert model.ready


async def test_refusals_of_requests_and_cancelled_ones_do_not_open_the_breaker(fake, model) -> None:
    fake.script = [answers(400)]
    for _ in range(upstream_breaker.FAILURES + 1):
        await fails(model, InvalidRequest, "refuses")
    fake.script = [stalls]
    for _ in range(upstream_breaker.FAILURES + 1):
        generation = model.generate(prompt(model), SamplingParams())
        await asyncio.sleep(0)
        generation.cancel()
    assert model.ready


async def test_answers_with_a_tool_call_do_not_open_the_breaker_and_close_it(fake, model, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(model.breaker, "_clock", lambda: clock[0])
    call = b'data: {"choices": [{"delta": {"tool_calls": [{"function": {"name": "boom"}}]}}]}\n\n'
    fake.script = [says(call, DONE)]
    for _ in range(upstream_breaker.FAILURES + 1):
        await fails(model, upstream_wire.ToolCalled, "answers with a tool call")
    assert model.ready
    fake.script = [answers(500)]
    for _ in range(upstream_breaker.FAILURES):
        await fails(model, EngineFailed, "could not answer")
    assert not model.ready
    clock[0] += upstream_breaker.FIRST_WAIT
    fake.script = [says(call, DONE)]
    await fails(model, upstream_wire.ToolCalled, "answers with a tool call")
    assert not model.breaker.refuses


async def test_nobody_at_the_address_is_a_failure_in_the_same_words() -> None:
    async with running() as gone:
        pass
    async with opened(gone, model="m", context=512) as model:
        assert not model.ready
        await fails(model, EngineFailed, "could not answer")


async def test_every_request_has_a_token_of_its_own_and_a_failure_to_make_one_is_told(fake) -> None:
    class Tokens:
        made = 0
        broken = False

        async def headers(self) -> dict[str, str]:
            if self.broken:
                raise EngineFailed("the language model's server cannot be used now; try again shortly")
            self.made += 1
            return {"authorization": f"Bearer token-{self.made}"}

    tokens: upstream_auth.Credentials = Tokens()
    fake.script = [answers(503), says(WHOLE)]
    async with opened(fake, credentials=tokens, context=512, lists_models=False) as model:
        await read(model)
        await read(model)
        sent = [asked.headers["authorization"] for asked in fake.asked]
        assert sent == ["Bearer token-1", "Bearer token-2", "Bearer token-3"]
        tokens.broken = True
        await fails(model, EngineFailed, "cannot be used now")


async def test_a_defect_in_reading_is_told_and_not_waited_for(fake, model, monkeypatch) -> None:
    monkeypatch.setattr(upstream_exchange.wire.Answer, "last", lambda self: 1 / 0)
    with pytest.raises(EngineFailed, match="could not be read"):
        await asyncio.wait_for(read(model), 10)
    assert not model.live
