"""The OpenAI door leaves refused text nowhere either, in a session or in a list of messages that nobody stores."""

import json
import logging

import openai
import pytest

from tests.attacks.test_refused_text import CANARY, bytes_of
from tests.server.conftest import open_site  # noqa: F401

pytestmark = pytest.mark.anyio


async def said(client, messages, *, stream, **extra) -> tuple[str, str, str]:
    """Return text, finish reason and everything that came over the wire."""
    made = await client.chat.completions.create(model="scripted", messages=messages, stream=stream, extra_body=extra)
    if not stream:
        return made.choices[0].message.content, made.choices[0].finish_reason, made.to_json()
    chunks = [chunk async for chunk in made]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return text, chunks[-1].choices[0].finish_reason, json.dumps([chunk.to_dict() for chunk in chunks])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session", ["my-session", None])
async def test_refused_text_of_either_side_is_nowhere(
    open_site,  # noqa: F811
    tmp_path,
    caplog,
    capfd,
    stream,
    session,
) -> None:
    caplog.set_level(logging.DEBUG)
    extra = {"session_id": session} if session else {}
    async with open_site([f"Now the {CANARY} sings. ", "The end of it all."], ["Plain."]) as site:
        await site.ask("Something else then", session_id="other-session")  # so that the database is not empty
        site.model.prompts.clear()
        address = f"http://{site.host}:{site.port}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            given = [{"role": "user", "content": f"Tell me about {CANARY} now"}]
            results = [await said(client, given, stream=stream, **extra)]
            if not session:
                earlier = [*given, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Go on"}]
                results.append(await said(client, earlier, stream=stream))
                system = [{"role": "system", "content": CANARY}, {"role": "user", "content": "Go on"}]
                results.append(await said(client, system, stream=stream))
        assert {result[:2] for result in results} == {("I cannot help with that.", "content_filter")}
        assert CANARY not in "".join(result[2] for result in results)
        assert site.model.prompts == []
        assert [t.user for t in await site.turns("my-session")] == ([""] if session else [])
        assert CANARY.encode() not in bytes_of(tmp_path / "home")
    assert CANARY not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session", ["my-session", None])
async def test_a_blocked_answer_is_nowhere(
    open_site,  # noqa: F811
    tmp_path,
    caplog,
    capfd,
    stream,
    session,
) -> None:
    caplog.set_level(logging.DEBUG)
    extra = {"session_id": session} if session else {}
    async with open_site(["Plain."], [f"Now the {CANARY} sings. ", "The end of it all."]) as site:
        await site.ask("Something else then", session_id="other-session")
        address = f"http://{site.host}:{site.port}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            question = [{"role": "user", "content": "An innocent question"}]
            text, finish, wire = await said(client, question, stream=stream, **extra)
        assert (text, finish) == ("I cannot help with that.", "content_filter")
        assert CANARY not in wire
        turns = await site.turns("my-session")
        assert [(t.status, t.user, t.assistant) for t in turns] == ([("blocked", "", "")] if session else [])
        assert CANARY.encode() not in bytes_of(tmp_path / "home")
    assert CANARY not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("session", ["my-session", None])
@pytest.mark.parametrize(
    ("system", "status", "words"),
    [("\ud800", 400, "the system message has half a character at 0"), ("x" * 100_001, 413, "has 100001 characters")],
    ids=["half", "long"],
)
async def test_a_system_message_that_no_encoder_can_read_reaches_none(
    open_site,  # noqa: F811
    session,
    system,
    status,
    words,
) -> None:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Go on"}]
    body = {"messages": messages} | ({"session_id": session} if session else {})
    async with open_site(["Plain."]) as site:
        answer = await site.client.post("/v1/chat/completions", content=json.dumps(body))
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
        assert site.model.prompts == []
        assert site.service.checks.moderator.checked == []
        assert site.stored_items() == 0
