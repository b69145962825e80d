"""Running the app: bind first, load behind it, drain at the end."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, ClassVar

import uvicorn

from chatkit.errors import ConfigError, EngineFailed
from chatkit.protocols import LanguageModel
from chatkit.server.app import ChatApp
from chatkit.server.auth import require_safe_bind
from chatkit.service import OpenChatKitService
from chatkit.settings import Settings
from chatkit.wiring import build_service

log = logging.getLogger(__name__)

Build = Callable[[Settings], Coroutine[Any, Any, OpenChatKitService]]


def bind(settings: Settings) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        ConfigError: the address is not safe, not this machine's, or in use.
    """
    require_safe_bind(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port} ({getattr(error, 'strerror', error)}); "
            "stop what uses it, or choose another with --port, or an address of this machine with --host"
        ) from error


class _Server(uvicorn.Server):
    """A server that stops at a signal and leaves the rest to `serve`.

    uvicorn's own raises the signal again once its connections are closed: the process would end before turns that
    nobody listens to are stored.
    """

    # How long connections and turns are waited for once the engine has died: every turn has failed, and only clients
    # that neither send nor read are left. Seconds.
    dead_engine_grace: ClassVar[float] = 2.0
    asked_at: float | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone; `stops_at_signals` has them."""
        yield

    @contextlib.contextmanager
    def stops_at_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as requests to stop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, and at a second SIGINT do not wait for open connections."""
        self.asked_at = self.asked_at or time.monotonic()
        super().handle_exit(sig, frame)

    def patience_left(self, patience: float) -> float:
        """Return how many of `patience` seconds are left since the first signal."""
        return patience if self.asked_at is None else max(0.0, patience - (time.monotonic() - self.asked_at))


async def serve(
    settings: Settings, listener: socket.socket, announce: Callable[[str], None], *, build: Build | None = None
) -> None:
    """Answer over HTTP until told to stop.

    Args:
        build: assembles another service than the one that the settings name.

    Raises:
        ChatkitError: a part could not be loaded.
    """
    app = ChatApp(settings)
    config = uvicorn.Config(
        app.asgi(),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(settings.drain_s) + 1,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config)
    with server.stops_at_signals():
        await _run(server, app, listener, announce, build or build_service)


async def _run(
    server: _Server, app: ChatApp, listener: socket.socket, announce: Callable[[str], None], build: Build
) -> None:
    settings = app.settings
    web = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(build(settings))
    started = time.perf_counter()
    grace = settings.drain_s
    try:
        await asyncio.wait({web, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            app.open(loading.result())
            host, port = listener.getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            announce(f"ready after {time.perf_counter() - started:.1f} s on {address}")
            death = asyncio.create_task(_death(loading.result().model))
            await asyncio.wait({web, death}, return_when=asyncio.FIRST_COMPLETED)  # cancels neither when cancelled
            if death.done():
                grace = min(grace, server.dead_engine_grace)
                server.config.timeout_graceful_shutdown = int(grace)
                raise death.result()
            death.cancel()
    finally:
        server.should_exit = True
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await web
        if app.service is not None:
            await app.service.close(server.patience_left(grace))
        elif loading.done() and not loading.cancelled() and loading.exception() is None:
            await loading.result().close(0)


async def _death(model: LanguageModel) -> EngineFailed:
    """Wait for the end of an engine that takes the service with it, to be started anew as a whole; else for ever."""
    if getattr(model, "ends_service", False):
        return await model.stopped()  # type: ignore[attr-defined,no-any-return]
    forever: asyncio.Future[EngineFailed] = asyncio.get_running_loop().create_future()
    return await forever
