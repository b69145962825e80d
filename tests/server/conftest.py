"""A real server on a free loopback port, in the test's own event loop, around any service."""

import asyncio
import json
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from chatkit.planning import ServiceOptions
from chatkit.server import run
from chatkit.service import OpenChatKitService
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.settings import load_settings
from chatkit.testing import KeywordModerator, ListRetriever, ScriptedModel
from chatkit.types import Owner, Passage

PASSAGES = [Passage("p1", "chatkit listens on port 8080", title="Serving", source="serving.md", score=0.9)]
LONG = ["The first sentence is here. ", "The second sentence follows. ", *["word "] * 600]


class Site:
    """A running server and what it is made of."""

    def __init__(self, address, client, service, store) -> None:
        self.host, self.port = address
        self.client = client
        self.service = service
        self.model = service.model if service else None
        self.store = store

    async def ask(self, text="Hello there", *, headers=None, **parameters) -> httpx.Response:
        body = {"inputs": text, "parameters": parameters}
        return await self.client.post("/invocations", json=body, headers=headers)

    async def stream(self, text="Hello there", *, accept="", **parameters) -> list[dict]:
        body = {"inputs": text, "stream": True, "parameters": parameters}
        async with self.client.stream("POST", "/invocations", json=body, headers={"accept": accept}) as answer:
            assert answer.status_code == 200, await answer.aread()
            return [json.loads(line) async for line in answer.aiter_lines() if line]

    async def raw(self, request: bytes):
        """Send bytes on a connection of its own and return its two ends."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(request)
        await writer.drain()
        return reader, writer

    async def turns(self, session_id="my-session", owner=None) -> tuple:
        return (await self.store.load(owner or Owner(), session_id, limit=99)).turns

    def stored_items(self) -> int:
        counts = (f"(SELECT count(*) FROM {table})" for table in ("sessions", "turns", "requests"))
        return self.store._write.execute(f"SELECT {' + '.join(counts)}").fetchone()[0]


@pytest.fixture
def open_site(tmp_path, monkeypatch):
    """Return a context manager: `async with open_site([...reply], moderator=…, setting=…) as site`."""

    @asynccontextmanager
    async def opened(
        *replies,
        model=None,
        moderator=None,
        encoder=None,
        attributor=None,
        store=None,
        delay=0.0,
        loading=None,
        **changes,
    ):
        settings = replace(load_settings(), port=0, drain_s=2.0, **changes)
        stack = AsyncExitStack()
        store = store or SQLiteStore(settings.database)
        stack.callback(store.close)
        service = OpenChatKitService(
            model or ScriptedModel(*replies, delay=delay),
            moderator or KeywordModerator(["canary"]),
            store,
            retriever=ListRetriever(PASSAGES),
            attributor=attributor,
            embedders=[encoder] if encoder else [],
            archive=store,
            options=ServiceOptions(deadline_s=settings.deadline_s, gate=settings.gate),
            resources=stack,
        )

        async def build(_):
            if loading is not None:
                await loading()
            return service

        monkeypatch.setattr(run, "build_service", build)
        listener = run.bind(settings)
        address = listener.getsockname()[:2]
        said = asyncio.Event()
        serving = asyncio.create_task(run.serve(settings, listener, lambda line: said.set()))
        async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}", timeout=20) as client:
            if loading is None:
                await said.wait()
            try:
                yield Site(address, client, service, store)
            finally:
                await client.aclose()
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

    return opened


@pytest.fixture
def until():
    async def wait(condition, seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        for _ in iter(condition, True):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def site_parts():
    return SimpleNamespace(long=LONG, passages=PASSAGES)
