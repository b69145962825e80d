"""The HTTP app: routes, the one guard in front of them, and the one place where errors become statuses."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from chatkit import errors
from chatkit.protocols import SessionStore
from chatkit.server import moderation_routes
from chatkit.server.auth import Gatekeeper
from chatkit.server.callers import CHAT, METRICS, SESSIONS, Caller
from chatkit.server.metrics import Metrics
from chatkit.server.protocols import Call, Defaults, Door, native, openai, openai_embeddings
from chatkit.server.session_routes import Endpoint, SessionRoutes
from chatkit.server.sse import EventStream, until_disconnect
from chatkit.service import OpenChatKitService
from chatkit.settings import Settings
from chatkit.turns import LiveTurn
from chatkit.types import Error, Event

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
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Unavailable, 503),
    (errors.BadIndex, 503),
    (errors.ChatkitError, 500),
)


class ChatApp:
    """The app's state: the service once it is assembled, and until then why there is none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.service: OpenChatKitService | None = None
        self.metrics = Metrics()
        self.phase = "loading"
        self._gatekeeper = Gatekeeper(settings)
        self._started = int(time.time())

    def open(self, service: OpenChatKitService) -> None:
        """Let `service` answer from now on."""
        service.observe(self.metrics)
        self.service = service

    def asgi(self) -> Starlette:
        """Return the ASGI app; the service may be opened later, until then every turn gets 503."""
        routes = [
            Route("/ping", self.ping, methods=["GET"]),
            self._route("/metrics", METRICS, GET=self.measured),
            self._route("/invocations", CHAT, POST=self._turns(native.Invocation)),
            self._route("/v1/chat/completions", CHAT, POST=self._turns(openai.ChatCompletion)),
            self._route("/v1/embeddings", CHAT, POST=self.embeddings),
            self._route("/moderation/reports", CHAT, POST=self.report),
            self._route("/v1/models", CHAT, GET=self.models),
            self._route("/v1/models/{name:path}", CHAT, GET=self.models),
            *(self._route(path, SESSIONS, **verbs) for path, verbs in SessionRoutes(self._archive).table.items()),
        ]
        handlers: dict[Any, Any] = {
            errors.ChatkitError: _error_response,
            HTTPException: _http_error_response,
            Exception: _defect_response,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    def _route(self, path: str, scope: str, **endpoints: Endpoint) -> Route:
        """Return the route of a path with the guard in front of it, one endpoint a method.

        `/ping` alone goes without, it tells nothing.
        """

        async def guarded(request: Request) -> Response:
            caller = self._gatekeeper.caller(request.headers)
            caller.require(scope)
            try:
                return await endpoints["GET" if request.method == "HEAD" else request.method](request, caller)
            except ClientDisconnect:
                return _NOBODY

        return Route(path, guarded, methods=[*endpoints])

    def _turns(self, door: Door) -> Endpoint:
        """Return the endpoint that answers the turns of one door, streamed or whole."""

        async def turn(request: Request, caller: Caller) -> Response:
            raw = await _body(request, self.settings.max_body_kb * 1024)
            service = self._loaded()
            defaults = Defaults(service.model.name, self.settings.max_new_tokens, self.settings.k)
            call = door(raw, caller, request.headers, defaults)
            if call.stream:
                return await _streamed(request, service.start(call.request), call)
            return await _whole(request, service.start(call.request, patient=call.request.client_request_id), call)

        return turn

    def _loaded(self) -> OpenChatKitService:
        if self.service is None:
            raise errors.Unavailable(f"the service is {self.phase}; try again when GET /ping answers 200")
        return self.service

    def _archive(self) -> SessionStore:
        archive = self._loaded().archive
        if archive is None:
            raise errors.NotFound("this service answers turns and does not show what it stored")
        return archive

    async def ping(self, request: Request) -> Response:
        """200 when a turn could be answered now, 503 with the phase otherwise; never waits."""
        if self.service is not None and self.service.ready:
            return JSONResponse({"status": "ready"})
        phase = self.phase if self.service is None else "engine stopped"
        return JSONResponse({"status": phase}, status_code=503, headers={"retry-after": "1"})

    async def embeddings(self, request: Request, caller: Caller) -> Response:
        """Vectors of texts, in OpenAI's shape."""
        raw = await _body(request, self.settings.max_body_kb * 1024)
        embedders = self._loaded().embedders
        if not embedders:
            raise errors.NotFound("there is no encoder here, so no vectors either")
        answer = await _unless_gone(request, openai_embeddings.embeddings(raw, embedders))
        return _NOBODY if answer is None else Response(answer, media_type="application/json")

    async def report(self, request: Request, caller: Caller) -> Response:
        """A user says that a refusal was wrong."""
        raw = await _body(request, self.settings.max_body_kb * 1024)
        kept, new = await moderation_routes.report(raw, lambda: self._loaded().feedback)
        if new:
            self.metrics.reported()
        return JSONResponse(kept, 202, headers={"cache-control": "no-store"})

    async def measured(self, request: Request, caller: Caller) -> Response:
        """Counts since the start, in the format of Prometheus; also while the service is loading."""
        body, media_type = self.metrics.written(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type, "cache-control": "no-store"})

    async def models(self, request: Request, caller: Caller) -> Response:
        """The models that answer and those that make vectors, in OpenAI's shape; one where the path names it."""
        service = self._loaded()
        names = list(dict.fromkeys([service.model.name, *(embedder.name for embedder in service.embedders)]))
        if "name" not in request.path_params:
            return JSONResponse(openai.models(names, self._started))
        return JSONResponse(openai.model(openai.check_model(request.path_params["name"], *names), self._started))


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


async def _whole(request: Request, live: LiveTurn, call: Call) -> Response:
    """Wait for the reply; a client that leaves stops waiting, and stops the turn unless it can ask for it again."""
    reply = await _unless_gone(request, live.result())
    return _NOBODY if reply is None else JSONResponse(call.answer(reply), headers=call.headers)


async def _streamed(request: Request, live: LiveTurn, call: Call) -> Response:
    """Wait for the first event, so that a refusal of the request still has its status; then stream."""
    events = live.events()
    first = await _unless_gone(request, anext(events))
    if first is None:
        return _NOBODY
    if isinstance(first, Error):
        raise first.error
    return EventStream(_frames(first, events, call), media_type=call.media_type, headers=call.headers)


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


async def _frames(first: Event, events: AsyncGenerator[Event, None], call: Call) -> AsyncGenerator[bytes, None]:
    try:
        yield call.frames(first)
        async for event in events:
            yield call.frames(event)
    finally:
        await events.aclose()


def status_of(error: errors.ChatkitError) -> int:
    """Return the HTTP status of an error of the tree."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


async def _error_response(request: Request, error: errors.ChatkitError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, errors.Unavailable) else {}
    if isinstance(error, errors.Unauthorized):
        headers["www-authenticate"] = "Bearer"
    status = status_of(error)
    if not _is_openai(request):
        return JSONResponse({"error": {"code": error.code, "message": str(error)}}, status, headers)
    return JSONResponse(openai.error_body(error), 400 if status == 422 else status, headers)


async def _http_error_response(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path[:80]!r} is not served here; {_served(request.app.routes)} are"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return JSONResponse({"error": _named(request, code, message)}, error.status_code, error.headers)


async def _defect_response(request: Request, error: Exception) -> Response:
    log.error("unexpected error in %s", _pattern(request), exc_info=error)
    return JSONResponse({"error": _named(request, "internal", "internal error")}, 500)


def _served(routes: Sequence[BaseRoute]) -> str:
    """Return what is served, for a caller that asked for something else."""
    found = [route for route in routes if isinstance(route, Route)]
    served = [f"{method} {route.path}" for route in found for method in sorted(route.methods or ()) if method != "HEAD"]
    return f"{', '.join(served[:-1])} and {served[-1]}"


def _pattern(request: Request) -> str:
    """Return the path of a request without what the caller put into it: a session's id is a secret."""
    return str(getattr(request.scope.get("route"), "path", "a path that is not served"))


def _named(request: Request, code: str, message: str) -> dict[str, Any]:
    """Return an error that is none of the tree's, in the shape of the door it came in by."""
    if not _is_openai(request):
        return {"code": code, "message": message}
    kind = "server_error" if code == "internal" else "invalid_request_error"
    return {"message": message, "type": kind, "param": None, "code": code}


def _is_openai(request: Request) -> bool:
    return request.url.path.startswith("/v1/")
