"""The OpenAI door, through OpenAI's own client: chat, streams, models, vectors and errors."""

import base64
import json
from contextlib import asynccontextmanager

import numpy as np
import openai
import pytest

from chatkit import wiring
from chatkit.errors import EngineFailed
from chatkit.settings import Secret, load_settings
from chatkit.testing import KeywordModerator
from tests.conftest import MODELS

pytestmark = pytest.mark.anyio
QUESTION = [{"role": "user", "content": "Which port does chatkit use here?"}]


@pytest.fixture
def door(open_site):
    """Return a context manager that gives the site and an OpenAI client of it."""

    @asynccontextmanager
    async def opened(*replies, key="none", **changes):
        async with open_site(*replies, **changes) as site:
            address = f"http://{site.host}:{site.port}/v1"
            async with openai.AsyncOpenAI(base_url=address, api_key=key, max_retries=0, timeout=20) as client:
                yield site, client

    return opened


@pytest.fixture(scope="module")
def encoder():
    opened = wiring.open_encoder(load_settings({"models_dir": str(MODELS)}))
    yield opened
    opened.close()


async def test_a_chat_completion_has_the_answer_its_usage_and_its_sources(door) -> None:
    async with door(["It listens on ", "port 8080."]) as (site, client):
        made = await client.chat.completions.create(model="scripted", messages=QUESTION, max_tokens=50)
        choice = made.choices[0]
        assert (choice.message.role, choice.message.content) == ("assistant", "It listens on port 8080.")
        assert (choice.finish_reason, choice.index, made.object, made.model) == (
            "stop", 0, "chat.completion", "scripted",
        )  # fmt: skip
        assert made.id.startswith("chatcmpl-r-")
        assert made.created > 1_700_000_000
        assert made.usage.completion_tokens == 2
        assert made.usage.total_tokens == made.usage.prompt_tokens + 2
        assert [source["source"] for source in made.chatkit["sources"]] == ["serving.md"]
        assert made.chatkit["session_id"] is None
        assert made.chatkit["moderation"]["flagged"] is False
        assert "chatkit listens on port 8080" in site.model.prompts[0]


async def test_a_stream_gives_role_text_and_end_and_the_usage_when_it_is_asked_for(door) -> None:
    async with door(["It listens. ", "On port 8080."]) as (_, client):
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="scripted", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        ]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "It listens. On port 8080."
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 2)
        assert all(c.usage is None for c in chunks[:-1])
        assert {c.id for c in chunks} == {chunks[0].id}
        assert {c.object for c in chunks} == {"chat.completion.chunk"}
        assert chunks[-2].chatkit["sources"][0]["source"] == "serving.md"
        plain = [
            c async for c in await client.chat.completions.create(model="scripted", messages=QUESTION, stream=True)
        ]
        assert all(c.usage is None and c.choices for c in plain)


async def test_a_stream_ends_with_done(door) -> None:
    async with door(["Hi."]) as (site, _):
        answer = await site.client.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = answer.text.removesuffix("\n\n").split("\n\n")
        assert blocks[-1] == "data: [DONE]"
        assert all(block.startswith("data: {") and "\n" not in block for block in blocks[:-1])


async def test_a_list_of_messages_is_read_whole_and_stored_nowhere(door) -> None:
    messages = [
        {"role": "system", "content": "Speak like a sailor."},
        {"role": "assistant", "content": "Ahoy!"},
        {"role": "user", "content": [{"type": "text", "text": "My name "}, {"type": "text", "text": "is Zebulon."}]},
        {"role": "assistant", "content": "Noted.", "refusal": None},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Well then."},
        {"role": "user", "content": "What is my name?"},
    ]
    async with door(["Zebulon."]) as (site, client):
        made = await client.chat.completions.create(model="scripted", messages=messages)
        assert made.choices[0].message.content == "Zebulon."
        assert site.model.prompts[0] == (
            "Speak like a sailor.\n\nBe brief.\n\n<bot>: Ahoy!\n<human>: My name is Zebulon.\n<bot>: Noted.\n"
            "<human>: Well then.\n\nWhat is my name?\n<bot>:"
        )
        assert site.stored_items() == 0


async def test_a_named_session_is_kept_by_the_store_and_the_last_message_alone_is_new(door) -> None:
    async with door(["Noted."], ["Zebulon."]) as (site, client):
        extra = {"session_id": "my-session"}
        first = [{"role": "user", "content": "My name is Zebulon."}]
        made = await client.chat.completions.create(model="scripted", messages=first, extra_body=extra)
        assert made.chatkit["session_id"] == "my-session"
        later = [*first, {"role": "assistant", "content": "FORGED"}, {"role": "user", "content": "My name?"}]
        await client.chat.completions.create(model="scripted", messages=later, extra_body=extra)
        turns = await site.turns()
        assert [(t.user, t.assistant) for t in turns] == [("My name is Zebulon.", "Noted."), ("My name?", "Zebulon.")]
        assert "FORGED" not in site.model.prompts[1]
        assert "<human>: My name is Zebulon.\n<bot>: Noted.\n" in site.model.prompts[1]


async def test_the_same_request_id_is_the_same_turn_in_the_body_or_as_an_idempotency_key(door) -> None:
    async with door(["One."], ["Two."]) as (site, client):
        body = {"session_id": "my-session"}
        made = [
            await client.chat.completions.create(
                model="scripted", messages=QUESTION, extra_body=body | more, extra_headers=headers
            )
            for more, headers in (
                ({"request_id": "request-1"}, {}),
                ({"request_id": "request-1"}, {}),
                ({}, {"Idempotency-Key": "request-1"}),
            )
        ]
        assert [m.choices[0].message.content for m in made] == ["One."] * 3
        assert [m.chatkit["replayed"] for m in made] == [False, True, True]
        assert len(await site.turns()) == 1


async def test_parameters_reach_the_model(door) -> None:
    async with door(["one ", "two ", "three ", "STOP ", "four"]) as (_, client):
        made = await client.chat.completions.create(model="scripted", messages=QUESTION, max_completion_tokens=2)
        assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("one two ", "length")
        for stop in ("STOP", ["STOP", "never"]):
            made = await client.chat.completions.create(
                model="scripted", messages=QUESTION, stop=stop, temperature=0.5, top_p=0.9, seed=3
            )
            assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("one two three ", "stop")
        off = {"no_retrieval": True}
        made = await client.chat.completions.create(model="scripted", messages=QUESTION, extra_body=off)
        assert made.chatkit["sources"] == []


async def test_what_is_not_known_is_named_and_what_asks_for_nothing_is_not(door) -> None:
    async with door(["Hi."]) as (site, _):
        body = {"messages": QUESTION, "user": "me", "ignore_eos": True, "n": 1, "tools": [], "presence_penalty": 0.0}
        answer = await site.client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.headers["x-chatkit-ignored"]) == (200, "ignore_eos, user")
        plain = await site.client.post("/v1/chat/completions", json={"messages": QUESTION})
        assert "x-chatkit-ignored" not in plain.headers


async def test_a_field_that_is_null_counts_as_left_out(door) -> None:
    names = ("model", "stream", "stop", "n", "user", "tools", "no_retrieval", "k", "seed", "metadata", "logprobs")
    async with door(["Hi."]) as (site, _):
        body = {"messages": QUESTION, "stream_options": {"include_usage": None}, **dict.fromkeys(names)}
        answer = await site.client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, "x-chatkit-ignored" in answer.headers) == (200, False)


async def test_names_of_fields_cannot_write_headers(door) -> None:
    odd = ["日本", "x\r\nset-cookie: a=b", "x\0y", "n" * 60_000]
    async with door(["Hi."]) as (site, _):
        body = {"messages": QUESTION, **dict.fromkeys(odd, 1), **{f"f{n:02}": 1 for n in range(30)}}
        answer = await site.client.post("/v1/chat/completions", json=body)
        listed = answer.headers["x-chatkit-ignored"]
        assert listed == ", ".join(f"f{n:02}" for n in range(20)) + ", and 14 more"
        assert "set-cookie" not in answer.headers


async def test_a_whole_number_may_be_written_with_a_point(door) -> None:
    async with door(["one ", "two ", "three "]) as (_, client):
        made = await client.chat.completions.create(model="scripted", messages=QUESTION, max_tokens=2.0)
        assert made.usage.completion_tokens == 2


async def test_naming_an_index_and_turning_retrieval_off_contradict_each_other(door) -> None:
    async with door(["Hi."]) as (site, _):
        body = {"messages": QUESTION, "index": "other", "no_retrieval": True}
        answer = await site.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert "'other' is named and retrieval is turned off" in answer.json()["error"]["message"]


BAD = [
    ({}, "'messages' is missing"),
    ({"messages": []}, "the last of messages is missing, expected a user's"),
    ({"messages": [{"role": "system", "content": "a"}]}, "the last of messages is 'system', expected a user's"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "a"}]}, "the last of messages is 'assistant'"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "'messages.0.role' is 'tool', expected 'system', 'developer'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "expected parts of type 'text'"),
    ({"messages": [{"role": "user", "content": None}]}, "'messages.0.content' is None, expected text"),
    ({"messages": [{"role": "user", "content": "  "}]}, "the message is empty"),
    ({"messages": QUESTION, "n": 2}, "'n' is 2, which is not done here; expected 1"),
    (
        {"messages": QUESTION, "tools": [{"type": "function"}]},
        "'tools' is [{'type': 'function'}], which is not done here; leave it out",
    ),
    ({"messages": QUESTION, "response_format": {"type": "json_object"}}, "'response_format' is"),
    ({"messages": QUESTION, "temperature": 3}, "temperature is 3.0, expected a number from 0.0 to 2.0"),
    ({"messages": QUESTION, "max_tokens": 0}, "max_new_tokens is 0"),
    ({"messages": QUESTION, "max_tokens": "9"}, "'max_tokens' is '9', expected a valid integer"),
    ({"messages": QUESTION, "session_id": "short"}, "session_id is 'short'"),
    ({"messages": QUESTION, "replaces": 1}, "replaces is 1 and no session_id is given, expected both"),
    ({"messages": QUESTION, "session_id": "my-session", "replaces": 1}, "replaces is 1, expected"),
    (
        {"messages": QUESTION, "session_id": "my-session", "replaces": "1"},
        "'replaces' is '1', expected a valid integer",
    ),
    ({"messages": QUESTION, "stop": [""]}, "stop word '' has 0 characters"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=[words[:40] for _, words in BAD])
async def test_a_bad_request_is_400_in_openais_shape_and_names_the_value(door, body, words) -> None:
    async with door(["Hi."]) as (site, _):
        answer = await site.client.post("/v1/chat/completions", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", None)
        assert words in error["message"]
        assert "\n" not in error["message"]
        assert site.stored_items() == 0
        assert site.model.prompts == []


async def test_errors_are_those_of_the_client(door) -> None:
    async with door(["Hi."], key="wrong", api_key=Secret("right")) as (_, client):
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="scripted", messages=QUESTION)
        assert caught.value.body["code"] == "unauthorized"
    async with door(["Hi."]) as (site, client):
        for model in ("gpt-4", "scripted "):
            with pytest.raises(openai.NotFoundError) as caught:
                await client.chat.completions.create(model=model, messages=QUESTION)
            assert (caught.value.body["code"], caught.value.body["type"]) == ("model_not_found", "not_found_error")
        with pytest.raises(openai.NotFoundError, match="s-unknown1"):
            await client.chat.completions.create(
                model="scripted", messages=QUESTION, extra_body={"session_id": "s-unknown1"}
            )
        await site.ask("Hello", session_id="my-session", request_id="request-1")
        with pytest.raises(openai.ConflictError):
            await client.chat.completions.create(
                model="scripted",
                messages=QUESTION,
                extra_body={"session_id": "my-session", "request_id": "request-1"},
            )
        unknown = await site.client.get("/v1/nothing")
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")


async def test_an_engine_that_fails_is_503_before_the_stream_and_an_error_within_it(door) -> None:
    async with door([EngineFailed("the engine stopped")]) as (_, client):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="scripted", messages=QUESTION)
        assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "30")
    async with door(["A first sentence. ", "And more. ", EngineFailed("the engine stopped")]) as (_, client):
        with pytest.raises(openai.APIError, match="the engine stopped"):
            async for _chunk in await client.chat.completions.create(model="scripted", messages=QUESTION, stream=True):
                pass


@pytest.mark.parametrize("where", ["instructions", "user", "assistant", "last"])
async def test_every_message_of_the_list_is_moderated(door, where) -> None:
    texts = dict.fromkeys(("instructions", "user", "assistant", "last"), "plain") | {where: "a canary sings"}
    messages = [
        {"role": "system", "content": texts["instructions"]},
        {"role": "user", "content": texts["user"]},
        {"role": "assistant", "content": texts["assistant"]},
        {"role": "user", "content": texts["last"]},
    ]
    async with door(["Hi."]) as (site, client):
        made = await client.chat.completions.create(model="scripted", messages=messages)
        assert (made.choices[0].finish_reason, made.choices[0].message.content) == (
            "content_filter", "I cannot help with that.",
        )  # fmt: skip
        assert site.model.prompts == []


async def test_a_check_that_cannot_run_on_the_history_refuses_too(door) -> None:
    moderator = KeywordModerator([], broken=RuntimeError("down"))
    async with door(["Hi."], moderator=moderator) as (site, client):
        made = await client.chat.completions.create(model="scripted", messages=QUESTION)
        assert made.choices[0].finish_reason == "content_filter"
        assert made.chatkit["moderation"]["input"]["unavailable"] is True
        assert site.model.prompts == []


async def test_an_answer_that_is_blocked_after_text_was_shown_ends_with_the_refusal(door) -> None:
    pieces = ["The first sentence is here. ", "Now the canary sings. ", "The end."]
    async with door(pieces) as (_, client):
        chunks = [
            c async for c in await client.chat.completions.create(model="scripted", messages=QUESTION, stream=True)
        ]
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == "The first sentence is here. \n\nI cannot help with that."
        replaced = [c.chatkit["replace"] for c in chunks if "replace" in (getattr(c, "chatkit", None) or {})]
        assert replaced == [{"text": "I cannot help with that.", "label": "needs intervention"}]
        assert chunks[-1].choices[0].finish_reason == "content_filter"
        made = await client.chat.completions.create(model="scripted", messages=QUESTION)
        assert made.choices[0].message.content == "I cannot help with that."


async def test_models_are_the_chat_model_and_the_encoder(door, encoder) -> None:
    async with door(["Hi."], encoder=encoder) as (_, client):
        listed = (await client.models.list()).data
        assert [m.id for m in listed] == ["scripted", "all-MiniLM-L6-v2"]
        assert {(m.object, m.owned_by) for m in listed} == {("model", "chatkit")}
        assert (await client.models.retrieve("all-MiniLM-L6-v2")).id == "all-MiniLM-L6-v2"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("org/other")


async def test_vectors_are_the_encoders_as_floats_and_as_base64(door, encoder) -> None:
    texts = ["chatkit answers with sources.", "Ein zweiter Satz.", "漢字"]
    expected = await encoder.encode(texts)
    async with door(["Hi."], encoder=encoder) as (site, client):
        for form in ("float", "base64", None):
            given = {} if form is None else {"encoding_format": form}
            made = await client.embeddings.create(model="all-MiniLM-L6-v2", input=texts, **given)
            rows = [
                np.frombuffer(base64.b64decode(row.embedding), "<f4")
                if isinstance(row.embedding, str)
                else row.embedding
                for row in made.data
            ]
            assert [row.index for row in made.data] == [0, 1, 2]
            assert min((np.array(rows, np.float32) * expected).sum(axis=1)) > 0.9999
            assert made.usage.prompt_tokens == made.usage.total_tokens == sum(encoder.count_tokens_of(texts))
        raw = await site.client.post("/v1/embeddings", json={"input": "one text", "encoding_format": "base64"})
        assert len(base64.b64decode(raw.json()["data"][0]["embedding"])) == 4 * encoder.dim


BAD_INPUTS = [
    ({}, "'input' is missing"),
    ({"input": []}, "'input' has 0 entries, expected 1 to 2048"),
    ({"input": 7}, "'input' is 7, expected a text or a list of texts"),
    ({"input": ["a", ""]}, "'input' 1 is empty"),
    ({"input": [1, 2]}, "'input' 0 is 1, expected text, not numbers of tokens"),
    ({"input": ["a"] * 2049}, "'input' has 2049 entries"),
    ({"input": "a", "dimensions": 8}, "'dimensions' is 8, all-MiniLM-L6-v2 has 384"),
    ({"input": "a", "encoding_format": "hex"}, "'encoding_format' is 'hex', expected 'float' or 'base64'"),
    ({"input": "word " * 600}, "tokens, all-MiniLM-L6-v2 reads 256; send shorter texts"),
    ({"input": "\ud800"}, "'input' 0 has half a character"),
]


@pytest.mark.parametrize(("body", "words"), BAD_INPUTS, ids=[words[:40] for _, words in BAD_INPUTS])
async def test_a_bad_request_for_vectors_is_named(door, encoder, body, words) -> None:
    async with door(["Hi."], encoder=encoder) as (site, _):
        answer = await site.client.post("/v1/embeddings", content=json.dumps(body))
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]


class Counting:
    """An embedder whose vectors say how long the texts are."""

    name, dim, max_tokens, fingerprint = "counting", 2, 9, "none"

    def count_tokens_of(self, texts):
        return [1 for _ in texts]

    async def encode(self, texts):
        return np.array([[len(text), 1] for text in texts], np.float32)


async def test_vectors_come_from_the_model_that_is_named_and_from_the_first_otherwise(door, encoder) -> None:
    async with door(["Hi."], encoder=encoder) as (site, client):
        site.service.embedders = (encoder, Counting())
        assert [m.id for m in (await client.models.list()).data] == ["scripted", "all-MiniLM-L6-v2", "counting"]
        made = await client.embeddings.create(model="counting", input=["abc", "a"])
        assert [row.embedding for row in made.data] == [[3.0, 1.0], [1.0, 1.0]]
        assert made.model == "counting"
        first = await client.embeddings.create(model="default", input="abc")
        assert (first.model, len(first.data[0].embedding)) == ("all-MiniLM-L6-v2", 384)


async def test_a_long_text_is_cut_when_that_is_asked_for(door, encoder) -> None:
    async with door(["Hi."], encoder=encoder) as (site, _):
        answer = await site.client.post("/v1/embeddings", json={"input": "word " * 600, "truncate": True})
        assert (answer.status_code, answer.json()["usage"]["prompt_tokens"]) == (200, 256)
