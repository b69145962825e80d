"""The client of the native door against the real server: events, errors, and one retry that makes no second turn."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from chatkit import errors
from chatkit.client import native
from chatkit.client.native import NativeClient
from chatkit.types import Error, Passage, Replace, Reply, Retrieved, TextDelta, TurnStarted
from tests.server.conftest import LONG, open_site, until  # noqa: F401

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch) -> None:
    monkeypatch.setattr(native, "_PAUSE", 0.01)
    monkeypatch.setattr(native, "_LONGEST_PAUSE", 0.01)


@asynccontextmanager
async def client_of(address, **options):
    client = NativeClient(address, **options)
    try:
        yield client
    finally:
        await client.close()


async def events_of(client, text="Which port does it take", request_id="request-1", **named) -> list:
    return [event async for event in client.stream(text, request_id=request_id, **named)]


async def collect(events, seen) -> None:
    async for event in events:
        seen.append(event)


def at(site) -> str:
    return f"http://{site.host}:{site.port}"


class Wire:
    """A door in front of a server that cuts the first connections after a number of bytes of the answer."""

    def __init__(self, site, cuts) -> None:
        self._target = (site.host, site.port)
        self._cuts = list(cuts)
        self.connections = 0

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer) -> None:
        self.connections += 1
        left = self._cuts.pop(0) if self._cuts else 10**9
        inner_reader, inner_writer = await asyncio.open_connection(*self._target)
        sending = asyncio.create_task(self._pump(reader, inner_writer, 10**9))
        await self._pump(inner_reader, writer, left)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        for end in (writer, inner_writer):
            end.close()

    async def _pump(self, reader, writer, left) -> None:
        while left > 0 and (part := await reader.read(min(65536, left))):
            left -= len(part)
            writer.write(part)
            await writer.drain()


async def test_a_turn_comes_as_its_events(open_site) -> None:  # noqa: F811
    async with open_site(["It listens ", "on\u2028port 8080."]) as site, client_of(at(site)) as client:
        events = await events_of(client, session_id="my-session")
        kinds = [type(event) for event in events]
        assert [*kinds[:3], kinds[-1]] == [TurnStarted, Retrieved, TextDelta, Reply]
        assert events[0] == TurnStarted("my-session", "request-1")
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert text == events[-1].text == "It listens on\u2028port 8080."
        expected = Passage("p1", "chatkit listens on port 8080", title="Serving", source="serving.md", score=0.9)
        assert events[-1].passages == events[1].passages == (expected,)


async def test_parameters_go_along_and_a_refusal_is_a_result(open_site) -> None:  # noqa: F811
    async with open_site(["one ", "two ", "three"]) as site, client_of(at(site)) as client:
        reply = (await events_of(client, parameters={"max_new_tokens": 2, "no_retrieval": True}))[-1]
        assert (reply.finish_reason, reply.text, reply.passages) == ("length", "one two ", ())
        started, refusal, refused = await events_of(client, "a canary please", "request-2")
        assert isinstance(started, TurnStarted)
        assert refusal == Replace("I cannot help with that.", "needs intervention")
        assert refused.finish_reason == "content_filter"


async def test_the_errors_of_the_service_are_raised_as_its_own(open_site) -> None:  # noqa: F811
    async with open_site(api_key="secret-key-1") as site:
        async with client_of(at(site), api_key="wrong") as client:
            with pytest.raises(errors.Unauthorized):
                await events_of(client)
        async with client_of(at(site), api_key="secret-key-1") as client:
            with pytest.raises(errors.NotFound, match="s-unknown"):
                await events_of(client, session_id="s-unknown-one-at-all")
            with pytest.raises(errors.InvalidRequest, match="temperature"):
                await events_of(client, parameters={"temperature": 9.0})
            with pytest.raises(errors.TooLarge):
                await events_of(client, "word " * 60_000)
            await events_of(client, "Hello there")
            with pytest.raises(errors.Conflict, match="request-1"):
                await events_of(client, "Another message")
            with pytest.raises(errors.InvalidRequest, match="half a character"):
                await events_of(client, "half \ud83d of it", "request-2")


async def test_an_engine_that_fails_midway_is_an_error_event(open_site) -> None:  # noqa: F811
    pieces = ["The first sentence is here. ", "The second one. ", errors.EngineFailed("the engine stopped")]
    async with open_site(pieces) as site, client_of(at(site)) as client:
        last = (await events_of(client))[-1]
        assert isinstance(last, Error)
        assert isinstance(last.error, errors.EngineFailed)


@pytest.mark.parametrize("cut", [0, 40])
async def test_a_connection_that_breaks_before_any_text_is_asked_again_and_stays_one_turn(
    open_site,  # noqa: F811
    cut,
) -> None:
    told = []
    async with open_site(["It listens on port 8080."]) as site, Wire(site, [cut]) as wire:
        async with client_of(wire.address, on_retry=told.append) as client:
            events = await events_of(client, session_id="my-session")
        assert events[-1].text == "It listens on port 8080."
        assert wire.connections == 2
        assert len(told) == 1
        assert wire.address in str(told[0])
        turns = await site.turns()
        assert [(turn.seq, turn.status, turn.request_id) for turn in turns] == [(1, "complete", "request-1")]


async def test_a_connection_that_breaks_after_text_is_not_asked_again(open_site, until) -> None:  # noqa: F811
    async with open_site(LONG, delay=0.001) as site, Wire(site, [1500]) as wire, client_of(wire.address) as client:
        seen = []
        with pytest.raises(errors.Unavailable, match="broke before the answer was complete"):
            await collect(client.stream("Hello", request_id="request-1", session_id="my-session"), seen)
        assert isinstance(seen[-1], TextDelta)
        assert wire.connections == 1
        await until(lambda: not len(site.service.turns))
        assert [turn.status for turn in await site.turns()] == ["aborted"]
        reply = [event async for event in client.stream("Hello", request_id="request-1", session_id="my-session")][-1]
        assert isinstance(reply, Reply)
        assert [(turn.seq, turn.attempt, turn.status) for turn in await site.turns()] == [(1, 2, "complete")]


async def test_a_service_that_still_loads_is_asked_again_once(open_site) -> None:  # noqa: F811
    loaded, told = asyncio.Event(), []
    async with open_site(["Here I am."], loading=loaded.wait) as site:
        async with client_of(at(site), on_retry=told.append) as client:
            with pytest.raises(errors.Unavailable, match="loading"):
                await events_of(client)
        assert len(told) == 1
        loaded.set()


async def test_closing_the_events_stops_the_turn(open_site, until) -> None:  # noqa: F811
    async with open_site(LONG, delay=0.001) as site, client_of(at(site)) as client:
        events = client.stream("Hello", request_id="request-1", session_id="my-session")
        async for event in events:
            if isinstance(event, TextDelta):
                break
        await events.aclose()
        await until(lambda: not len(site.service.turns))
        (turn,) = await site.turns()
        assert turn.status == "aborted"
        assert turn.assistant.startswith("The first sentence is here.")


async def answering(reply: bytes):
    """Return a server that says the same to everybody."""

    async def serve(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/jsonlines\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot here\n",
        b"HTTP/1.1 301 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n[]",
        HEAD + b"[1]\n",
        HEAD + b'{"event": "start", "session_id": "a b", "request_id": "r"}\n',
        HEAD + b"[" * 100_000 + b"\n",
        HEAD + b"\xff\xfe\n",
    ],
)
async def test_an_address_that_is_no_chatkit_is_said_to_be_none(reply) -> None:
    server = await answering(reply)
    async with server, client_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(errors.ConfigError, match=r"does not answer as chatkit does .*; check --url"):
            await events_of(client)


async def test_nobody_at_the_address_is_said_so_after_a_second_try() -> None:
    server = await answering(b"")
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    told = []
    async with client_of(f"http://127.0.0.1:{port}", on_retry=told.append) as client:
        with pytest.raises(errors.Unavailable, match=r"nothing answers at .*chatkit serve"):
            await events_of(client)
    assert len(told) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host/", "http://", ""])
def test_an_address_that_is_none_is_refused(url) -> None:
    with pytest.raises(errors.ConfigError, match="expected http://HOST:PORT"):
        NativeClient(url)


async def test_a_password_in_the_address_is_not_shown_and_a_key_must_fit_a_header() -> None:
    async with client_of("http://me:secret@127.0.0.1:8080/base/") as client:
        assert client.address == "http://127.0.0.1:8080/base"
    with pytest.raises(errors.ConfigError, match="API key"):
        NativeClient("http://127.0.0.1:8080", api_key="schlüssel")
