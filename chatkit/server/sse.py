"""Streams over HTTP: frames of events, sent while a client listens, closed the moment it leaves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

JSON_LINES = "application/jsonlines"
SSE = "text/event-stream"


def frame(event: Mapping[str, Any], media_type: str) -> bytes:
    """Return one event as a line of JSON or as a server-sent event."""
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    if media_type == SSE:
        return f"event: {event['event']}\ndata: {text}\n\n".encode()
    return f"{text}\n".encode()


class EventStream(Response):
    """A response that sends frames as they come and watches for the client's leaving itself.

    Whether a server reports a closed connection by `receive` or by a failing `send` depends on its version; waiting for
    the next send would also miss a client that leaves during a long prefill.
    """

    def __init__(self, frames: AsyncGenerator[bytes, None], *, media_type: str, headers: Mapping[str, str]) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-store", **headers})
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the frames end or the client is gone; then close the frames at once."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(until_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            results = await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._frames.aclose()
        if isinstance(results[0], Exception) and not isinstance(results[0], OSError):
            raise results[0]

    async def _send_all(self, send: Send) -> None:
        async for part in self._frames:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
