"""A peer without a model: streams scripted events, and can spin, refuse, break off or die."""

import argparse
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECES = ["Once", " upon", " a", " time", " there", " was", " a", " small", " ship", "."]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        says = self.server.says
        if says.record:
            with open(says.record, "a", encoding="utf-8") as record:
                record.write(json.dumps(body) + "\n")
        if says.mode == "die":
            sys.stderr.write("out of patience\n")
            sys.stderr.flush()
            os._exit(3)
        self.send_response(422 if says.mode == "refuse" else 200)
        self.end_headers()
        if says.mode == "refuse":
            self.wfile.write(b'{"detail": "no such field"}')
            return
        self.wfile.write(b": a comment\n\n")
        for at in range(body["max_tokens"]):
            self.say({"choices": [{"delta": {"content": PIECES[at % len(PIECES)]}, "finish_reason": None}]})
            if says.mode == "break":
                return
            if says.mode == "garble":
                self.wfile.write(says.garbled.encode() + b"\n\n")
        if says.mode == "error":
            self.say({"error": "cache is full"})
            return
        self.say({"choices": [{"delta": {}, "finish_reason": "length"}]})
        if says.usage:
            usage = {"prompt_tokens": says.prompt, "completion_tokens": body["max_tokens"]}
            self.say({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, event):
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *_):
        pass


def spin():
    while True:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--mode", default="")
    parser.add_argument("--usage", action="store_true")
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--record", default="")
    parser.add_argument("--garbled", default="data: {oops")
    told = parser.parse_args()
    if told.mode == "sulk":
        sys.exit("no such device")
    if told.mode == "spin":
        threading.Thread(target=spin, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", told.port), Handler)
    server.says = told
    server.serve_forever()
