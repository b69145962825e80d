"""A proxy that does to requests for DynamoDB what networks and servers do: errors, throttling, delays, lost answers."""

import json
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import httpx

Answer = tuple[int, bytes] | None
Kind = Literal["drop", "hang", "error", "throttle", "delay"]
KINDS: tuple[Kind, ...] = ("drop", "hang", "error", "throttle", "delay")
# Longer than the store's read time-out, which fires first. Seconds.
HANG_S = 2.4


def operation_of(headers) -> str:
    name = headers["X-Amz-Target"]
    return (name.decode() if isinstance(name, bytes) else name).rpartition(".")[2]


def refusal(code: str, status: int = 400, **more: object) -> tuple[int, bytes]:
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no", **more}
    return status, json.dumps(body).encode()


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, after the server got the request (`forwarded`) or in its stead.

    Attributes:
        operation: of these requests; empty for every one.
        word: of those alone that hold it somewhere.
        at: begins with the so-many-th of them, from 1 on; None strikes by `chance`.
        times: of them in a row.
        seconds: a delay's.
    """

    kind: Kind
    forwarded: bool
    operation: str = ""
    word: str = ""
    at: int | None = 1
    times: int = 1
    chance: float = 0.0
    seconds: float = 0.3

    def concerns(self, operation: str, body: bytes) -> bool:
        return self.operation in ("", operation) and self.word.encode() in body

    def strike(self, forward: Callable[[], Answer], ending: threading.Event) -> Answer:
        answer = forward() if self.forwarded else None
        if self.kind == "error":
            return refusal("InternalServerError", 500)
        if self.kind == "throttle":
            return refusal("ProvisionedThroughputExceededException")
        if self.kind == "hang":
            ending.wait(HANG_S)
        if self.kind == "delay":
            ending.wait(self.seconds)
            return answer if self.forwarded else forward()
        return None


class Faults:
    """Faults with a count each; which strike by chance is decided by the seed.

    Attributes:
        struck: how many requests met one.
        seen: operation and body of every request, in order.
    """

    def __init__(self, *faults: Fault, seed: int = 0) -> None:
        self._faults = faults
        self._met = [0] * len(faults)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.struck = 0
        self.seen: list[tuple[str, bytes]] = []

    def meet(self, operation: str, body: bytes) -> Fault | None:
        """Return the first fault that strikes this request."""
        with self._lock:
            self.seen.append((operation, body))
            for number, fault in enumerate(self._faults):
                if not fault.concerns(operation, body):
                    continue
                self._met[number] += 1
                by_chance = fault.at is None and self._random.random() < fault.chance
                if by_chance or (fault.at is not None and 0 <= self._met[number] - fault.at < fault.times):
                    self.struck += 1
                    return fault
            return None

    def operations(self, word: str) -> list[str]:
        """Return the operations of the requests that held a word."""
        with self._lock:
            return [operation for operation, body in self.seen if word.encode() in body]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """Say nothing of whoever was answered too late and has hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Proxy:
    """Stands between the store and the server.

    Attributes:
        faults: what goes wrong by rule.
        meddle: `meddle(operation, forward)` returns (status, body) for each request that no fault struck; returning
            None closes the connection without an answer.
    """

    def __init__(self, address: str) -> None:
        self.meddle: Callable[[str, Callable[[], Answer]], Answer] = lambda operation, forward: forward()
        self.faults = Faults()
        # A connection that the server closes while it is idle would be one more lost answer, planned by nobody.
        unkept = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.Client(base_url=address, limits=unkept, timeout=30)
        self._ending = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = proxy._answer(self.headers, body)
                self.close_connection = answer is None
                if answer is not None:
                    self.send_response(answer[0])
                    self.send_header("content-type", "application/x-amz-json-1.0")
                    self.send_header("content-length", str(len(answer[1])))
                    self.end_headers()
                    self.wfile.write(answer[1])

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def _answer(self, headers, body: bytes) -> Answer:
        kept = {k: v for k, v in headers.items() if k.lower() != "host"}

        def forward() -> Answer:
            answer = self._client.post("/", content=body, headers=kept)
            return answer.status_code, answer.content

        operation = operation_of(headers)
        fault = self.faults.meet(operation, body)
        return self.meddle(operation, forward) if fault is None else fault.strike(forward, self._ending)

    def close(self) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._client.close()
