"""The server around the real engine: a client that leaves stops it, and the same request then gets a whole answer."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from chatkit.engines import open_model
from chatkit.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def real_model(models_dir):
    async with AsyncExitStack() as stack:
        yield await open_model(Settings(models_dir=models_dir, threads=1), stack)


@pytest.mark.parametrize("kind", ["start", "delta"])
async def test_a_client_that_leaves_stops_the_engine_and_may_ask_again(open_site, real_model, until, kind) -> None:
    parameters = {"session_id": "my-session", "request_id": "request-1", "max_new_tokens": 1000, "no_retrieval": True}
    parameters |= {"temperature": 1.0, "seed": 5, "repetition_penalty": 1.1}
    body = json.dumps({"inputs": "Tell me a very long story.", "stream": True, "parameters": parameters}).encode()
    async with open_site(model=real_model) as site:
        reader, writer = await site.raw(
            b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        got, seen = "", []
        while kind not in seen:
            line = (await asyncio.wait_for(reader.readline(), 20)).strip()
            if line.startswith(b'{"event"'):
                frame = json.loads(line)
                seen.append(frame["event"])
                got += frame.get("text", "")
        writer.close()
        await until(lambda: len(site.service.turns) == 0)
        await asyncio.sleep(0.3)
        made = real_model.tokens_made
        await asyncio.sleep(0.3)
        assert real_model.tokens_made == made
        (turn,) = await site.turns()
        assert (turn.status, turn.assistant) == ("aborted", got)

        answer = (await site.ask("Tell me a very long story.", **(parameters | {"max_new_tokens": 20}))).json()
        assert (answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 20)
        (turn,) = await site.turns()
        assert (turn.seq, turn.attempt, turn.status, turn.assistant) == (1, 2, "complete", answer["outputs"])
