"""A small OpenAI-compatible server that misbehaves as it is told, byte by byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from chatkit.models.upstream import UpstreamModel, UpstreamOptions
from chatkit.models.upstream_auth import Key
from chatkit.models.upstream_format import TokenCounter
from chatkit.types import Chunk, Message, SamplingParams

MODELS = {"object": "list", "data": [{"id": "fake-1", "object": "model", "max_model_len": 4096}]}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict = field(default_factory=dict)


Behaviour = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The fake's end of one request; a behaviour writes to it."""

    def __init__(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked = asked
        self.reader = reader
        self._writer = writer

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def part(self, data: bytes) -> None:
        """Send one chunk of the transfer encoding; an empty one ends it."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def gone(self) -> None:
        """Wait until the other end has closed."""
        await self.reader.read()

    def cut(self) -> None:
        self._writer.transport.abort()


def event(text: str | None = None, *, finish: str | None = None, **more: object) -> bytes:
    """Return one event of a stream, with a choice where text or an end is given."""
    delta = {} if text is None else {"content": text}
    choices = [] if text is None and finish is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **more}, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
HELLO = event("Hel") + event("lo") + event(finish="stop")
USAGE = event(usage={"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14})
WHOLE = HELLO + USAGE + DONE


def says(*parts: bytes, ends: bool = True) -> Behaviour:
    """Stream the parts, one write each; without an end the connection is cut after them."""

    async def behave(peer: Peer) -> None:
        await peer.raw(HEAD)
        for part in parts:
            await peer.part(part)
        if ends:
            await peer.part(b"")
        else:
            peer.cut()

    return behave


def answers(status: int, body: object = "", **headers: str) -> Behaviour:
    """Answer with a status and a body."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()

    async def behave(peer: Peer) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", *(f"{k}: {v}" for k, v in headers.items())]
        await peer.raw("\r\n".join(lines).replace("retry_after", "retry-after").encode() + b"\r\n\r\n" + data)

    return behave


async def stalls(peer: Peer) -> None:
    """Say nothing, not even that the request has come."""
    await peer.gone()


class Fake:
    """The server.

    Attributes:
        script: behaviours of the next generations, in order; the last goes on.
        models: the behaviour of GET /v1/models.
        asked: the generations asked for; `looks` counts the requests for the list.
        connections: how many were opened; `open` are those now.
        left: set each time that a caller has closed a connection.
    """

    def __init__(self) -> None:
        self.script: list[Behaviour] = [says(WHOLE)]
        self.models: Behaviour = answers(200, MODELS)
        self.elsewhere: dict[str, Behaviour] = {}
        self.asked: list[Asked] = []
        self.looks = 0
        self.connections = self.open = 0
        self.left = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while asked := await self._request(reader):
                await self._behaviour(asked)(Peer(asked, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):  # the caller has gone, within a request even
            pass
        finally:
            self.open -= 1
            self.left.set()
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Asked | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, path, _ = first.split()
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        return Asked(method, path, headers, json.loads(data) if data else {})

    def _behaviour(self, asked: Asked) -> Behaviour:
        if asked.method == "GET":
            self.looks += asked.path == "/v1/models"
            return self.elsewhere.get(asked.path, self.models if asked.path == "/v1/models" else answers(404))
        self.asked.append(asked)
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@asynccontextmanager
async def running() -> AsyncIterator[Fake]:
    fake = Fake()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fake
    finally:
        server.close()
        for _ in range(200):
            if not fake.open:
                break
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(fake: Fake, *, credentials=None, **options: object) -> AsyncIterator[UpstreamModel]:
    """A started model on a fake, closed at the end."""
    values = {"url": fake.url, "first_s": 20.0, "stall_s": 20.0, **options}
    secret = values.pop("secret", "")
    model = UpstreamModel(UpstreamOptions(**values), credentials or Key(secret), TokenCounter())
    try:
        await model.start()
        yield model
    finally:
        await model.close()


def prompt(model: UpstreamModel, text: str = "Hello?") -> str:
    return model.format.render([Message("user", text)])


async def read(model: UpstreamModel, text: str = "Hello?", *, session: str = "", **sampling) -> tuple[str, list[Chunk]]:
    """Return the text of one generation and its chunks."""
    generation = model.generate(prompt(model, text), SamplingParams(**sampling), session=session)
    chunks = [chunk async for chunk in generation]
    return "".join(chunk.text for chunk in chunks), chunks


async def until(met: Callable[[], object]) -> None:
    """Wait until something is so, for as long as any machine needs."""
    async with asyncio.timeout(10):
        for _ in iter(lambda: bool(met()), True):
            await asyncio.sleep(0.005)
