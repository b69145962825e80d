"""A store behind the proxy, one beside it, and a real HTTP server around a scripted model."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from chatkit.server import run
from chatkit.service import OpenChatKitService
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.settings import load_settings
from chatkit.testing import KeywordModerator
from tests import ministack
from tests.clock import Clock
from tests.faults.proxy import Proxy


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture
def table(dynamodb) -> str:
    return ministack.new_table(dynamodb)


@pytest.fixture
def proxy(dynamodb):
    made = Proxy(dynamodb)
    yield made
    made.close()


@pytest.fixture
def store(proxy, table, clock):
    """What is tested: every call goes through the proxy."""
    opened = DynamoDBStore(table, endpoint=proxy.address, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def beside(dynamodb, table, clock):
    """The same table without the proxy, for what a test prepares and looks up."""
    opened = DynamoDBStore(table, endpoint=dynamodb, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def serve():
    """Return a context manager: `async with serve(model, store) as client`, a client of a real server on loopback."""

    @asynccontextmanager
    async def opened(model, store, *, timeout: float = 30.0):
        settings = replace(load_settings(), port=0, drain_s=5.0)

        async def build(_) -> OpenChatKitService:
            return OpenChatKitService(model, KeywordModerator(), store)

        listener = run.bind(settings)
        said = asyncio.Event()
        host, port = listener.getsockname()[:2]
        serving = asyncio.create_task(run.serve(settings, listener, lambda line: said.set(), build=build))
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=timeout) as client:
            await said.wait()
            try:
                yield client
            finally:
                await client.aclose()
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

    return opened
