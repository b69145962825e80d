"""A guard model behind a real local server: what is sent to it, and that whatever it answers is never read as safe."""

import asyncio
import json
import math
from contextlib import asynccontextmanager

import pytest

from chatkit.errors import EngineFailed, InvalidRequest, Overloaded, TooLarge
from chatkit.models.upstream_auth import Key
from chatkit.models.upstream_breaker import FAILURES
from chatkit.models.upstream_judge import UpstreamJudge
from chatkit.moderation.guard import ReplyGuard
from chatkit.moderation.guard_templates import TEMPLATES
from chatkit.moderation.moderator import PolicyModerator
from chatkit.moderation.policy_files import named
from chatkit.release import checked
from tests.models.upstream_fake import answers, running, stalls

pytestmark = pytest.mark.anyio
# A reply that each family gives to harmless and to harmful text.
SAID = {
    "qwen3guard": ("Safety: Safe\nCategories: None", "Safety: Unsafe\nCategories: Violent"),
    "llama-guard": ("\n\nsafe", "\n\nunsafe\nS1"),
    "shieldgemma": ("No", "Yes"),
    "granite-guardian": ("<score> no </score>", "<score> yes </score>"),
}


def completion(text, rows=None):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if rows is not None:
        choice["logprobs"] = {
            "content": [
                {"token": token, "logprob": math.log(max(top.values())),
                 "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()]}
                for token, top in rows
            ]
        }  # fmt: skip
    return answers(200, {"id": "1", "object": "chat.completion", "choices": [choice]})


@asynccontextmanager
async def guarded(template="llama-guard", *, seconds=10.0, model="guard-1", key=""):
    async with running() as fake:
        judge = UpstreamJudge(fake.url, model, Key(key), seconds=seconds)
        try:
            yield fake, ReplyGuard(judge, TEMPLATES[template])
        finally:
            await judge.close()


@pytest.mark.parametrize("template", TEMPLATES)
async def test_every_family_is_asked_and_read_over_http(template) -> None:
    async with guarded(template, key="secret-key") as (fake, guard):
        safe, unsafe = SAID[template]
        fake.script = [completion(safe)]
        found = await guard.score("Hello there", direction="input")
        assert (found.scores["harm"], found.model, found.unavailable) == (0.0, f"{template}/guard-1", False)
        fake.script = [completion(unsafe)]
        found = await guard.score("Do it", direction="output", history=("Should I?",))
        assert found.scores["harm"] == 1.0
        asked = fake.asked[-1]
        assert asked.path == "/v1/chat/completions"
        assert asked.headers["authorization"] == "Bearer secret-key"
        assert asked.body["messages"] == [
            {"role": "user", "content": "Should I?"},
            {"role": "assistant", "content": "Do it"},
        ]
        assert (asked.body["model"], asked.body["temperature"], asked.body["stream"]) == ("guard-1", 0, False)
        assert asked.body["logprobs"] is True
        assert ("chat_template_kwargs" in asked.body) == (template in ("shieldgemma", "granite-guardian"))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "answer",
    [
        completion("I am sorry, I cannot help with that."),
        completion(None),
        completion(""),
        answers(200, "<html>hello</html>"),
        answers(200, "[" * 5000),
        answers(200, {"choices": []}),
        answers(200, {"choices": [{"message": "safe"}]}),
        answers(200, {"choices": [{"message": {"content": "safe"}, "logprobs": {"content": [{"token": 1}]}}]}),
        answers(500, "safe"),
        answers(404, {"error": {"message": "no such model", "code": 404}}),
        answers(401),
        answers(302, location="http://elsewhere/"),
    ],
    ids=[
        "refusal",
        "null",
        "empty",
        "html",
        "deep",
        "no-choices",
        "no-message",
        "bad-rows",
        "500",
        "404",
        "401",
        "302",
    ],
)
async def test_whatever_else_it_answers_is_unavailable(template, answer, monkeypatch) -> None:
    monkeypatch.setattr("chatkit.models.upstream_judge.wait_before", lambda *_: 0.0)
    async with guarded(template) as (fake, guard):
        fake.script = [answer]
        result = await checked(PolicyModerator(guard, named("standard")), "Hello", direction="output")
        assert (result.unavailable, result.label, result.flagged) == (True, None, False)


async def test_the_probabilities_of_the_verdict_are_the_scores() -> None:
    async with guarded() as (fake, guard):
        rows = [("\n\n", {"\n\n": 1.0}), ("safe", {"safe": 0.7, "unsafe": 0.3})]
        fake.script = [completion("\n\nsafe", rows)]
        found = await guard.score("Hm.", direction="input")
        assert found.scores == {"harm": pytest.approx(0.3)}


async def test_a_server_without_probabilities_is_asked_for_none_again() -> None:
    async with guarded() as (fake, guard):
        fake.script = [answers(400, {"error": {"message": "logprobs are not supported"}}), completion("unsafe\nS10")]
        for _ in range(2):
            assert (await guard.score("Hm.", direction="input")).scores == {"harm": 1.0, "hate": 1.0}
        assert ["logprobs" in asked.body for asked in fake.asked] == [True, False, False]


async def test_a_server_that_says_nothing_is_given_up_in_time_and_one_that_is_back_is_used() -> None:
    async with guarded(seconds=0.2) as (fake, guard):
        fake.script = [stalls, completion("safe")]
        started = asyncio.get_running_loop().time()
        with pytest.raises(EngineFailed, match="does not answer"):
            await guard.score("Hm.", direction="input")
        assert asyncio.get_running_loop().time() - started < 3
        assert (await guard.score("Hm.", direction="input")).scores == {"harm": 0.0}


async def test_a_server_that_keeps_failing_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr("chatkit.models.upstream_judge.wait_before", lambda *_: 0.0)
    async with guarded() as (fake, guard):
        fake.script = [answers(503)]
        for _ in range(FAILURES):
            with pytest.raises(EngineFailed, match="503"):
                await guard.score("Hm.", direction="input")
        asked = len(fake.asked)
        with pytest.raises(Overloaded, match="in a row"):
            await guard.score("Hm.", direction="input")
        assert len(fake.asked) == asked


async def test_a_busy_server_is_asked_again_and_a_refusal_is_not(monkeypatch) -> None:
    monkeypatch.setattr("chatkit.models.upstream_judge.wait_before", lambda *_: 0.0)
    async with guarded() as (fake, guard):
        fake.script = [answers(429), answers(502), completion("safe")]
        assert (await guard.score("Hm.", direction="input")).scores == {"harm": 0.0}
        fake.script = [answers(400, {"error": {"message": "bad template arguments"}})]
        with pytest.raises(InvalidRequest, match="moderation_template"):
            await guard.score("Hm.", direction="input")
        assert len(fake.asked) == 4
        fake.script = [answers(400, {"error": {"message": "maximum context length is 8"}})]
        with pytest.raises(TooLarge):
            await guard.score("Hm.", direction="input")


async def test_the_first_model_is_taken_where_none_is_named() -> None:
    async with guarded(model="") as (fake, guard):
        fake.script = [completion("safe")]
        assert (await guard.score("Hm.", direction="input")).model == "llama-guard/fake-1"
        fake.models = answers(200, {"data": []})
    async with guarded(model="") as (fake, guard):
        fake.models = answers(200, json.dumps({"data": []}))
        with pytest.raises(EngineFailed, match="moderation_model"):
            await guard.score("Hm.", direction="input")


async def test_neither_text_nor_key_is_logged(monkeypatch, caplog) -> None:
    monkeypatch.setattr("chatkit.models.upstream_judge.wait_before", lambda *_: 0.0)
    async with guarded(key="secret-key") as (fake, guard):
        fake.script = [answers(500, {"error": {"message": "you said CANARY with secret-key"}})]
        with pytest.raises(EngineFailed) as raised:
            await guard.score("CANARY", direction="input")
    said = caplog.text + str(raised.value)
    assert "answers 500" in said
    assert "CANARY" not in said
    assert "secret-key" not in said
