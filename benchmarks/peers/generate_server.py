"""`generate` of transformers behind HTTP, one request at a time; runs in the peers' environment.

python generate_server.py CHECKPOINT --port 8001 --threads 2

This is how the samples that chatkit descends from answer: no batching, whoever comes later waits. The door is OpenAI's
streamed chat completion, with `ignore_eos` for answers of exactly `max_tokens`.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer


class Events(TextStreamer):
    """Sends the text as it comes."""

    def __init__(self, tokenizer: Any, send: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._send = send

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Send one piece; the last may be empty."""
        if text:
            self._send({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


class Server(ThreadingHTTPServer):
    """Holds the model and the lock that lets one request at a time use it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, checkpoint: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
        self.turn = threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def answer(self, body: dict[str, Any], send: Any) -> None:
        """Generate greedily and send the pieces, the end and the counts."""
        with self.turn, torch.inference_mode():
            asked = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            length = body["max_tokens"]
            made = self.model.generate(
                **asked,
                max_new_tokens=length,
                min_new_tokens=length if body.get("ignore_eos") else None,
                do_sample=False,
                streamer=Events(self.tokenizer, send),
            )
        prompt = asked["input_ids"].shape[1]
        tokens = made.shape[1] - prompt
        finish = "length" if tokens == length else "stop"
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}
        send({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": usage})


class Handler(BaseHTTPRequestHandler):
    """`GET /health` and `POST /v1/chat/completions`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Say that the model is loaded: the port is not open before."""
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """Stream one answer."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.server.answer(body, lambda event: self._chunk(f"data: {json.dumps(event)}\n\n".encode()))
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()

    def log_message(self, format: str, *values: object) -> None:
        """Keep the log for errors."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    Server(arguments.port, arguments.checkpoint).serve_forever()
