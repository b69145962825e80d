"""What the loopback imitations of model hubs share: a server that can be told to misbehave."""

import time
from http.server import BaseHTTPRequestHandler

from tests.loopback_server import LoopbackServer

COMMIT = "a" * 40
NAME = "org/tiny"
WEIGHTS = bytes(range(256)) * 20_000
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "tokenizer.json": b"{}",
    "sub/extra.txt": b"words\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "README.md": b"# tiny",
}


class LoopbackHub(LoopbackServer):
    """A hub of one repository that can be told to misbehave.

    Attributes:
        refuse: status for every request; 0 answers.
        cut: bytes after which the next answers for weights break off, one entry an answer.
        to: address that downloads are redirected to.
        slow: seconds between pieces of a file.
        partial: status of an answer to a range.
        seen: (path, authorization, range) of every request.
        cookies: the cookies of every request.
    """

    answer: type["LoopbackAnswer"]

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.refuse = 0
        self.cut: list[int] = []
        self.to = ""
        self.slow = 0.0
        self.partial = 206
        self.files = dict(FILES)
        self.published: dict[str, str] = {}
        self.ranges = True
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.cookies: list[str | None] = []

    def downloads(self, name: str) -> int:
        return sum(path.endswith(f"/{name}") for path, _, _ in self.seen)


class LoopbackAnswer(BaseHTTPRequestHandler):
    """Sends files and what goes wrong with them; a hub's own paths are added by `answer`."""

    server: LoopbackHub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.seen.append((path, self.headers["Authorization"], self.headers["Range"]))
        self.server.cookies.append(self.headers["Cookie"])
        if self.server.refuse:
            self.send(self.server.refuse, b"")
        else:
            self.answer(path, query)

    def answer(self, path: str, query: str) -> None:
        raise NotImplementedError

    def file(self, content: bytes) -> None:
        start = 0
        if self.headers["Range"] and self.server.ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        body = content[start:]
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cut = self.server.cut.pop(0) if self.server.cut and len(content) > 1000 else None
        self.send(self.server.partial if start else 200, body, {**extra, "ETag": '"x"'}, cut)

    def send(self, status: int, body: bytes, headers: dict | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        body = body[:cut]
        for start in range(0, len(body), 200_000):
            try:
                self.wfile.write(body[start : start + 200_000])
            except OSError:
                return  # the one who asked was killed
            time.sleep(self.server.slow)
        if cut is not None:
            self.close_connection = True
