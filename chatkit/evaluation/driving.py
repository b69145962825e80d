"""Load over HTTP: blocking clients with a connection each, and the client that reads OpenAI's streams."""

import http.client
import json
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from chatkit.errors import Unavailable

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Driven(Generic[_Answer]):
    """Answers in the order of the requests, the wall time of all, and the processor time of each part."""

    seconds: float
    answers: list[_Answer]
    cpu_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Streamed:
    """One streamed answer as the client saw it; times are seconds from sending the request.

    Attributes:
        prompt_tokens: as the server counted them, 0 where it does not say.
        tokens: those of the answer, as the server counted them, 0 where it does not say.
    """

    text: str
    first_delta_s: float
    total_s: float
    prompt_tokens: int
    tokens: int


def drive(
    address: tuple[str, int],
    requests: Sequence[_Request],
    ask: Callable[[http.client.HTTPConnection, _Request], _Answer],
    cpu_s: Callable[[], Mapping[str, float]],
    *,
    clients: int,
    timeout_s: float,
) -> Driven[_Answer]:
    """Send every request, `clients` of them at any time, over connections that are open before the clock starts."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for at in range(len(requests)):
        waiting.put(at)
    connections = [http.client.HTTPConnection(*address, timeout=timeout_s) for _ in range(clients)]
    answers: dict[int, _Answer] = {}

    def client(connection: http.client.HTTPConnection) -> None:
        while True:
            try:
                at = waiting.get_nowait()
            except queue.Empty:
                return
            answers[at] = ask(connection, requests[at])

    try:
        for connection in connections:
            connection.connect()
        with ThreadPoolExecutor(clients) as pool:
            before, began = cpu_s(), time.perf_counter()
            for done in [pool.submit(client, connection) for connection in connections]:
                done.result()
            seconds, after = time.perf_counter() - began, cpu_s()
    finally:
        for connection in connections:
            connection.close()
    used = {part: after[part] - before[part] for part in after}
    return Driven(seconds, [answers[at] for at in range(len(requests))], used)


def stream_chat(connection: http.client.HTTPConnection, body: Mapping[str, Any]) -> Streamed:
    """Send one chat completion and read its events to the end.

    Raises:
        Unavailable: the server answered with an error, before the stream or in it, or the stream broke off.
    """
    began = time.perf_counter()
    connection.request("POST", _CHAT, json.dumps(body).encode(), {"content-type": "application/json"})
    with connection.getresponse() as response:
        if response.status != 200:
            said = response.read(400).decode(errors="replace")
            raise Unavailable(f"the server answered {response.status} {said!r}")
        answer = _read(response, began)
    connection.close()  # some servers end it after a stream without saying so; the next request opens another
    return answer


def _read(response: http.client.HTTPResponse, began: float) -> Streamed:
    pieces: list[str] = []
    usage: dict[str, int] = {}
    first_delta_s, finished = 0.0, False
    while line := response.readline():
        event = _event(line)
        if event is None:
            continue
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            finished = finished or choice.get("finish_reason") is not None
            if text := choice.get("delta", {}).get("content"):
                first_delta_s = first_delta_s or time.perf_counter() - began
                pieces.append(text)
    total_s = time.perf_counter() - began
    if not finished:
        raise Unavailable(f"the server's stream broke off after {len(pieces)} pieces")
    tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return Streamed("".join(pieces), first_delta_s or total_s, total_s, *tokens)


def _event(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line; nothing for blank lines, comments and the end mark."""
    name, _, value = line.decode("utf-8", "replace").strip().partition(":")
    if name != "data" or value.strip() == "[DONE]":
        return None
    try:
        event = json.loads(value)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise Unavailable(f"the server's stream holds {value.strip()[:200]!r}, expected an object in JSON")
    if error := event.get("error"):
        raise Unavailable(f"the server's stream holds the error {json.dumps(error)[:400]}")
    return event
