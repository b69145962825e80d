"""One request to an upstream server: tried again before the first byte, read to the end after it, never silent long."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import httpx

from chatkit.errors import ChatkitError, EngineFailed
from chatkit.models import upstream_wire as wire
from chatkit.models.sse_reader import EventReader
from chatkit.models.upstream_auth import Credentials
from chatkit.models.upstream_breaker import TRIES, WAIT_BUDGET, retry_after, wait_before
from chatkit.models.upstream_facts import shown
from chatkit.types import Chunk

log = logging.getLogger(__name__)
T = TypeVar("T")

# How long the count of tokens may come after the last of them, and the end of the connection after that. Seconds.
_TAIL_S, _DRAIN_S = 2.0, 1.0
# Of a refusal so much is read. Bytes.
_MOST_REFUSAL = 16 << 10
_AGAIN = (429, 502, 503, 504)
_JSON_LINES = ("application/jsonlines", "application/x-ndjson", "application/jsonl")

_SILENT = "the language model's server did not answer in time; try again shortly"
_CUT = "the language model's server stopped in the middle of the answer; try again shortly"


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, beside what says who asks.

    Attributes:
        prompt_tokens: counts them here, which takes a while for a long prompt; most servers do it themselves.
    """

    body: dict[str, Any] = field(repr=False)
    headers: Mapping[str, str]
    most_tokens: int
    prompt_tokens: Callable[[], int]
    context: int


class Exchange:
    """Sends requests over one client.

    Attributes:
        asks_usage: whether the count of tokens is asked for; false once the server has refused to be asked.
    """

    def __init__(self, client: httpx.AsyncClient, credentials: Credentials, *, first_s: float, stall_s: float) -> None:
        self.asks_usage = True
        self._client = client
        self._credentials = credentials
        self._first_s = first_s
        self._stall_s = stall_s

    async def chunks(self, request: Request) -> AsyncIterator[Chunk]:
        """Send the request and yield what comes back; the last chunk has the finish reason.

        Raises:
            ChatkitError: with fixed words; of what the server said, the log has the kind.
        """
        answer = wire.Answer(
            most_tokens=request.most_tokens, prompt_tokens=request.prompt_tokens, context=request.context
        )
        limit = _Limit(self._first_s)
        async with contextlib.AsyncExitStack() as stack:
            try:
                response = await limit.wait(self._open(request))
                stack.push_async_callback(response.aclose)
                parts = await stack.enter_async_context(_parts_of(response))
                async for chunk in self._read(response, parts, limit, answer):
                    yield chunk
            except _BREAKS as error:
                if not answer.finish_reason:
                    raise _broken(error, answer) from None
            if not answer.finish_reason:
                log.error("the upstream's answer ended without an end")
                raise EngineFailed(_CUT)
            yield answer.last()
            with contextlib.suppress(*_BREAKS):  # to the end, so that the connection can be used again
                limit.set(_DRAIN_S)
                await limit.wait(anext(parts, None))

    async def _read(
        self, response: httpx.Response, parts: AsyncGenerator[bytes, None], limit: "_Limit", answer: wire.Answer
    ) -> AsyncIterator[Chunk]:
        """Yield the answer's text as it comes; any byte shows that the server is alive."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        reader = EventReader(by_line=kind in _JSON_LINES, whole=kind == "application/json")
        part: bytes | None = b""
        while part is not None and not answer.complete:
            part = await limit.wait(anext(parts, None))
            for data in reader.end() if part is None else reader.feed(part):
                chunk = answer.take(data)
                if chunk:
                    yield chunk
            limit.set(self._stall_s if answer.begun else self._first_s)
            if answer.finish_reason:
                limit.set(_TAIL_S)

    async def _open(self, request: Request) -> httpx.Response:
        """Return the response once there is one that begins well.

        Raises:
            ChatkitError: the server refuses, or has failed as often as is tried.
        """
        started = asyncio.get_running_loop().time()
        body, attempt = dict(request.body), 1
        while True:
            tried = await self._try(body, request)
            if isinstance(tried, httpx.Response):
                if "stream_options" not in body:  # it was this that the server would not take
                    self.asks_usage = False
                return tried
            if tried.not_usage and body.pop("stream_options", None):
                continue
            wait = wait_before(attempt, tried.after)
            waited = asyncio.get_running_loop().time() - started
            if not tried.again or attempt == TRIES or waited + wait > WAIT_BUDGET:
                raise tried.error
            await asyncio.sleep(wait)
            attempt += 1

    async def _try(self, body: Mapping[str, Any], request: Request) -> "httpx.Response | _Failure":
        headers = {**request.headers, **await self._credentials.headers(), "accept": "text/event-stream"}
        try:
            message = self._client.build_request("POST", "chat/completions", json=body, headers=headers)
            response = await self._client.send(message, stream=True)
            if response.status_code == 200:
                return response
            text = await _refusal(response)
        except httpx.TransportError as error:
            log.warning("the upstream cannot be reached: %s", shown(error))
            return _Failure(EngineFailed(wire.BROKEN), again=True)
        status = response.status_code
        log.log(
            logging.ERROR if status >= 500 or status in (401, 403) else logging.WARNING,
            "the upstream answers %d: %s",
            status,
            wire.for_the_log(text),
        )
        return _Failure(
            wire.failure(status, text),
            again=status in _AGAIN,
            after=retry_after(response.headers.get("retry-after")),
            not_usage=status in (400, 422) and ("stream_options" in text or "include_usage" in text),
        )


# Of reading JSON: ValueError, and RecursionError where it is nested without end.
_BREAKS = (TimeoutError, httpx.HTTPError, httpx.StreamError, ValueError, RecursionError, ChatkitError)


def _broken(error: Exception, answer: wire.Answer) -> ChatkitError:
    """Log what ended an answer before its end, and return what the caller is told."""
    when = "after" if answer.begun else "before"
    if isinstance(error, ChatkitError):
        if answer.complaint:
            log.error("the upstream ended an answer with: %s", answer.complaint)
        return error
    if isinstance(error, TimeoutError):
        log.error("the upstream was silent for too long %s its first token", when)
        return EngineFailed(_CUT if answer.begun else _SILENT)
    if isinstance(error, httpx.HTTPError | httpx.StreamError):
        log.error("the upstream's connection broke %s its first token: %s", when, shown(error))
    else:  # the text of it may be the prompt's
        log.error("the upstream sent what cannot be read: %s", type(error).__name__)
    return EngineFailed(_CUT if answer.begun else wire.BROKEN)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A try that brought no answer: whether another may, and when; `not_usage` where it was asked for the count."""

    error: ChatkitError
    again: bool
    after: float | None = None
    not_usage: bool = False


class _Limit:
    """A moment by which something has to happen; each wait has it as its time limit."""

    def __init__(self, seconds: float) -> None:
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """Move the moment to `seconds` from now."""
        self._at = asyncio.get_running_loop().time() + seconds

    async def wait(self, what: Awaitable[T]) -> T:
        """Return what is waited for.

        Raises:
            TimeoutError: the moment has come first.
        """
        async with asyncio.timeout_at(self._at):
            return await what


@contextlib.asynccontextmanager
async def _parts_of(response: httpx.Response) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """Give out the body as it arrives, never unpacked: a packed one can grow without bound.

    Raises:
        EngineFailed: the server has packed it all the same.
    """
    packed = response.headers.get("content-encoding", "identity")
    if packed != "identity":
        log.error("the upstream packs its answer though it was asked not to")
        raise EngineFailed(wire.BROKEN)
    parts = cast("AsyncGenerator[bytes, None]", response.aiter_raw())
    try:
        yield parts
    finally:
        await parts.aclose()


async def _refusal(response: httpx.Response) -> str:
    """Return the beginning of what a refusal says, and close it."""
    body = bytearray()
    try:
        async for part in response.aiter_raw():
            body += part
            if len(body) > _MOST_REFUSAL:
                break
    finally:
        await response.aclose()
    return body[:_MOST_REFUSAL].decode("utf-8", "replace")
