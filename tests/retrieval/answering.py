"""A server on loopback that answers what a test tells it to, and keeps what it was asked."""

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from tests.loopback_server import LoopbackServer


class Answering(LoopbackServer):
    """Answers every request by `reply(path, body)`.

    Attributes:
        reply: gives status, headers and body.
        pause: seconds before every 16 bytes of a body.
        seen: (method, path, headers, body) of every request.
    """

    def __init__(self, reply: Callable[[str, bytes], tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(_Answer)
        self.reply = reply
        self.pause = 0.0
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Answering

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.seen.append((self.command, self.path, {**self.headers}, asked))
        status, headers, body = self.server.reply(self.path, asked)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        step = 16 if self.server.pause else 1 << 20
        try:
            for start in range(0, len(body), step):
                time.sleep(self.server.pause)
                self.wfile.write(body[start : start + step])
        except OSError:
            self.close_connection = True  # the one who asked has gone

    def do_POST(self) -> None:
        self.do_GET()
