"""The HTTP app: routes, the one guard in front of them, and the one place where errors become statuses."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chatkit import errors
from chatkit.server.auth import Gatekeeper
from chatkit.server.protocols import native
from chatkit.server.sse import EventStream, frame, until_disconnect
from chatkit.service import OpenChatKitService
from chatkit.settings import Settings
from chatkit.turns import LiveTurn
from chatkit.types import Error, Event, Owner

log = logging.getLogger(__name__)
T = TypeVar("T")

# A body of the largest size comes in well under a second even over a slow line; a connection is not held for longer.
_BODY_TIMEOUT = 15.0
_NOBODY = Response(status_code=499)  # the client has left before there was anything to send

# The first class that matches decides. A bug is a 500 without words.
STATUS: tuple[tuple[type[errors.ChatkitError], int], ...] = (
    (errors.TooLarge, 413),
    (errors.TooSlow, 408),
    (errors.InvalidRequest, 422),
    (errors.Unauthorized, 401),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Unavailable, 503),
    (errors.ChatkitError, 500),
)

Endpoint = Callable[[Request, Owner], Awaitable[Response]]


class ChatApp:
    """The app's state: the service once it is assembled, and until then why there is none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.service: OpenChatKitService | None = None
        self.phase = "loading"
        self._gatekeeper = Gatekeeper(settings.api_key)

    def asgi(self) -> Starlette:
        """Return the ASGI app; `service` may be set later, until then every turn gets 503."""
        routes = [
            Route("/ping", self.ping, methods=["GET"]),
            Route("/invocations", self._guarded(self.invocations), methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            errors.ChatkitError: _error_response,
            HTTPException: _http_error_response,
            Exception: _defect_response,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    def _guarded(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """Put the guard in front of an endpoint; `/ping` alone goes without, it tells nothing."""

        async def guarded(request: Request) -> Response:
            return await endpoint(request, self._gatekeeper.owner(request.headers))

        return guarded

    async def ping(self, request: Request) -> Response:
        """200 when a turn could be answered now, 503 with the phase otherwise; never waits."""
        if self.service is not None and self.service.ready:
            return JSONResponse({"status": "ready"})
        phase = self.phase if self.service is None else "engine stopped"
        return JSONResponse({"status": phase}, status_code=503, headers={"retry-after": "1"})

    async def invocations(self, request: Request, owner: Owner) -> Response:
        """One chat turn, streamed or whole."""
        try:
            raw = await _body(request, self.settings.max_body_kb * 1024)
        except ClientDisconnect:
            return _NOBODY
        call = native.Invocation(
            raw,
            owner,
            request.headers.get("accept", ""),
            max_new_tokens=self.settings.max_new_tokens,
            k=self.settings.k,
        )
        if self.service is None:
            raise errors.Unavailable(f"the service is {self.phase}; try again when GET /ping answers 200")
        if not call.stream:
            live = self.service.start(call.request, patient=call.request.client_request_id)
            return await _whole(request, live)
        return await _streamed(request, self.service.start(call.request), call.media_type)


async def _body(request: Request, cap: int) -> bytes:
    """Read the body, refusing it at the cap whatever Content-Length says, and when it takes too long."""
    parts = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            async for part in request.stream():
                parts += part
                if len(parts) > cap:
                    raise errors.TooLarge(f"the body is over {cap} bytes, the most taken here; send a shorter message")
    except TimeoutError:
        raise errors.TooSlow(f"the body was not here after {_BODY_TIMEOUT:.0f} s; send it again") from None
    return bytes(parts)


async def _whole(request: Request, live: LiveTurn) -> Response:
    """Wait for the reply; a client that leaves stops waiting, and stops the turn unless it can ask for it again."""
    reply = await _unless_gone(request, live.result())
    return _NOBODY if reply is None else JSONResponse(native.answer(reply))


async def _streamed(request: Request, live: LiveTurn, media_type: str) -> Response:
    """Wait for the first event, so that a refusal of the request still has its status; then stream."""
    events = live.events()
    first = await _unless_gone(request, anext(events))
    if first is None:
        return _NOBODY
    if isinstance(first, Error):
        raise first.error
    return EventStream(_frames(first, events, media_type), media_type=media_type, headers={})


async def _unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """Wait for `work`; cancel it and return None when the client leaves first."""
    result = asyncio.ensure_future(work)
    leaving = asyncio.create_task(until_disconnect(request.receive))
    try:
        await asyncio.wait({result, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return result.result() if result.done() else None
    finally:
        for task in (result, leaving):
            task.cancel()
        await asyncio.gather(result, leaving, return_exceptions=True)


async def _frames(first: Event, events: AsyncGenerator[Event, None], media_type: str) -> AsyncGenerator[bytes, None]:
    try:
        yield frame(native.event_fields(first), media_type)
        async for event in events:
            fields = _error_fields(event.error) if isinstance(event, Error) else native.event_fields(event)
            yield frame(fields, media_type)
    finally:
        await events.aclose()


def _error_fields(error: Exception) -> dict[str, Any]:
    if isinstance(error, errors.ChatkitError):
        return {"event": "error", "error": {"code": error.code, "message": str(error)}}
    return {"event": "error", "error": {"code": "internal", "message": "internal error"}}


def status_of(error: errors.ChatkitError) -> int:
    """Return the HTTP status of an error of the tree."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


async def _error_response(request: Request, error: errors.ChatkitError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, errors.Unavailable) else {}
    if isinstance(error, errors.Unauthorized):
        headers["www-authenticate"] = "Bearer"
    body = {"error": {"code": error.code, "message": str(error)}}
    return JSONResponse(body, status_code=status_of(error), headers=headers)


async def _http_error_response(request: Request, error: HTTPException) -> Response:
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = f"{request.method} {request.url.path[:80]!r} is not served here; POST /invocations and GET /ping are"
    body = {"error": {"code": codes.get(error.status_code, "http_error"), "message": message}}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _defect_response(request: Request, error: Exception) -> Response:
    log.error("unexpected error in %s", request.url.path, exc_info=error)
    return JSONResponse({"error": {"code": "internal", "message": "internal error"}}, status_code=500)
