"""A client of chatkit's own door, `POST /invocations`: one turn over HTTP as the events of `chatkit.types`."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from chatkit.client.frames import BadFrame, error_of, event_of
from chatkit.errors import ChatkitError, ConfigError, Unavailable
from chatkit.types import Error, Event, Replace, Reply, TextDelta

# A service ends a turn at its deadline, two minutes unless told otherwise; a stream silent for this long is dead. s.
_SILENCE = 600.0
_CONNECT = 10.0
# A broken connection is asked again after this long, a busy service when it says, but not later than that. Seconds.
_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
# Fifty passages of a page each come to less than a megabyte.
_MAX_FRAME = 16 * 1024 * 1024
_MAX_ERROR = 64 * 1024


class _AskAgain(Exception):
    """A failure that the same request may get over when it is sent again after `pause` seconds."""

    def __init__(self, error: ChatkitError, pause: float) -> None:
        super().__init__(str(error))
        self.error = error
        self.pause = pause


class NativeClient:
    """Asks a running service; one client holds its connections open over many turns.

    Args:
        url: where the service listens, `http://HOST:PORT`.
        api_key: sent as `Authorization: Bearer …`.
        on_retry: told why, before a request is sent the second time.

    Raises:
        ConfigError: the address or the key is none.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, on_retry: Callable[[ChatkitError], None] | None = None
    ) -> None:
        self.address = address_of(url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("the API key has characters that no HTTP header takes, expected printable ASCII")
        self._on_retry = on_retry or (lambda error: None)
        self._http = httpx.AsyncClient(
            headers={"content-type": "application/json"} | ({"authorization": f"Bearer {api_key}"} if api_key else {}),
            timeout=httpx.Timeout(_SILENCE, connect=_CONNECT),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def stream(
        self,
        text: str,
        *,
        request_id: str,
        session_id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of one turn; closing the generator closes the connection, which stops the turn.

        A connection that breaks before any text came, and a 503 that says when to come back, are asked again once with
        the same request id, so that the turn is found or runs again and is never a second one; `TurnStarted` and
        `Retrieved` may then come twice.

        Raises:
            ChatkitError: the service's own error, or why it could not be asked.
        """
        named = {"request_id": request_id} | ({} if session_id is None else {"session_id": session_id})
        table = {"inputs": text, "stream": True, "parameters": {**(parameters or {}), **named}}
        body = json.dumps(
            table
        ).encode()  # in ASCII: half a character, which UTF-8 cannot hold, is the service's to refuse
        shown = False
        for last in (False, True):
            try:
                async with aclosing(self._once(body)) as events:
                    async for event in events:
                        shown = shown or isinstance(event, TextDelta | Replace)
                        yield event
                return
            except _AskAgain as again:
                if shown or last:
                    raise again.error from again.__cause__
                self._on_retry(again.error)
                await asyncio.sleep(again.pause)

    async def report(self, token: str, text: str) -> None:
        """Report a refusal as wrong, with the message that was refused.

        Raises:
            ChatkitError: the service's own error, or why it could not be asked.
        """
        try:
            answer = await self._http.post(f"{self.address}/moderation/reports", json={"token": token, "text": text})
        except httpx.RequestError as error:
            raise self._broken(error, begun=False).error from error
        if answer.status_code == 202:
            return
        try:
            raise error_of(json.loads(answer.content[:_MAX_ERROR]))
        except (ValueError, RecursionError):
            raise self._stranger(f"status {answer.status_code}") from None

    async def _once(self, body: bytes) -> AsyncGenerator[Event, None]:
        """Send the request once and yield its events to the last one, which is Reply or Error."""
        begun = False
        try:
            async with self._http.stream("POST", f"{self.address}/invocations", content=body) as answer:
                await self._require_stream(answer)
                begun = True
                async for line in _lines(answer):
                    event = event_of(json.loads(line))
                    yield event
                    if isinstance(event, Reply | Error):
                        return
        except httpx.RequestError as error:
            raise self._broken(error, begun) from error
        except (ValueError, RecursionError) as error:
            raise self._stranger(f"a frame of the answer has {error}") from error
        raise self._broken(None, begun)

    async def _require_stream(self, answer: httpx.Response) -> None:
        """Raise what an answer says that is no stream of frames."""
        kind = answer.headers.get("content-type", "")
        if answer.status_code == 200 and kind.startswith("application/jsonlines"):
            return
        told = b""
        async for part in answer.aiter_bytes():
            told += part
            if answer.status_code == 200 or len(told) > _MAX_ERROR:
                break
        try:
            error = error_of(json.loads(told))
        except (ValueError, RecursionError):
            raise self._stranger(f"status {answer.status_code}, content type {kind[:60] or 'none'}") from None
        pause = answer.headers.get("retry-after", "")
        if answer.status_code == 503 and pause.isdecimal():
            raise _AskAgain(error, min(float(pause), _LONGEST_PAUSE))
        raise error

    def _broken(self, error: httpx.RequestError | None, begun: bool) -> _AskAgain:
        if begun:
            why = f"the connection to {self.address} broke before the answer was complete"
        elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            why = f"nothing answers at {self.address}; start `chatkit serve` there, or check --url"
        else:
            why = f"the connection to {self.address} broke before it answered; check --url"
        return _AskAgain(Unavailable(why), _PAUSE)

    def _stranger(self, why: str) -> ChatkitError:
        return ConfigError(f"{self.address} does not answer as chatkit does ({why}); check --url")


def address_of(url: str) -> str:
    """Return an address without its user, password, query and last slash: it is shown in messages.

    Raises:
        ConfigError: it is none.
    """
    expected = "expected http://HOST:PORT of a running `chatkit serve`"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"the service's address is {_shown(url)} ({error}), {expected}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"the service's address is {_shown(url)}, {expected}")
    return f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}".rstrip("/")


def _shown(url: str) -> str:
    """Return what was given as an address, without what may be a user and a password."""
    return repr(url.rpartition("@")[2])


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a body.

    Not httpx's own `aiter_lines`, which also cuts at U+2028 and its like, and those may stand inside a JSON string.
    """
    rest = b""
    async for part in answer.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > _MAX_FRAME:
            raise BadFrame(f"more than {_MAX_FRAME} bytes")
