"""What `chatkit bench sessions` kills: the service on a real store over HTTP, with a scripted model. No command.

`python -m chatkit.cli._scripted_serve '{"store": "sqlite", …}'` loads everything once. For every line on stdin it forks
a server, which opens the store, says `ready PID PORT` on stdout and answers until it is killed. Then `ended CODE` is
said.
"""

import asyncio
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from chatkit import wiring
from chatkit.evaluation.scripted import REFUSED
from chatkit.planning import ServiceOptions
from chatkit.server import run
from chatkit.service import OpenChatKitService
from chatkit.settings import Settings
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedGeneration, ScriptedModel
from chatkit.types import SamplingParams

# Before each piece of an answer, so that a kill meets turns in every state. Seconds.
_DELAY = 0.002

OpenStore = Callable[[Settings], wiring.Store]


class _Inventive(ScriptedModel):
    """Says something else every time, so that no answer passes for another's."""

    def generate(self, prompt: str, sampling: SamplingParams, *, session: str = "") -> ScriptedGeneration:
        """Start a reply that nobody got before."""
        self.prompts[:] = [prompt]
        pieces = ("This is answer ", secrets.token_hex(8), ". ", "It has an end.")
        return ScriptedGeneration(pieces, sampling, _DELAY, self)


def main(open_store: OpenStore = wiring.open_store) -> None:
    """Fork a server for every line of stdin, one after the other, until there are no more."""
    told = json.loads(sys.argv[1])
    settings = Settings(**told | {"home": Path(told["home"]), "port": 0})
    _warm_up(settings)
    forks, alive = multiprocessing.get_context("fork"), os.dup(sys.stdin.fileno())
    for _ in iter(sys.stdin.readline, ""):
        server = forks.Process(target=_serve, args=(settings, open_store, alive))
        server.start()
        server.join()
        _say(f"ended {server.exitcode}")


def _warm_up(settings: Settings) -> None:
    """Answer once from memory, so that no server spends its short life on what is imported at a first request."""
    if settings.store == "dynamodb":
        with contextlib.suppress(ImportError):  # opening the store says what is missing
            importlib.import_module("boto3").client("dynamodb", region_name="eu-central-1").close()
    listener = run.bind(settings)
    ready = asyncio.Event()

    async def answer_once() -> None:
        build = functools.partial(_build, lambda _: MemoryStore())
        serving = asyncio.create_task(run.serve(settings, listener, lambda line: ready.set(), build=build))
        await ready.wait()
        for stream in (False, True):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            body = json.dumps({"inputs": "Hello", "stream": stream}).encode()
            head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await reader.read(-1)
            writer.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(answer_once())


async def _build(open_store: OpenStore, settings: Settings) -> OpenChatKitService:
    store = open_store(settings)
    resources = AsyncExitStack()
    resources.callback(store.close)
    options = ServiceOptions(history_turns=settings.history_turns)
    return OpenChatKitService(_Inventive(), KeywordModerator([REFUSED]), store, options=options, resources=resources)


def _serve(settings: Settings, open_store: OpenStore, alive: int) -> None:
    listener = run.bind(settings)
    port = listener.getsockname()[1]

    async def serve() -> None:
        # Nothing comes on stdin while a server runs, so what can be read is its end: whoever asked for it is gone.
        asyncio.get_running_loop().add_reader(alive, os._exit, 0)
        build = functools.partial(_build, open_store)
        await run.serve(settings, listener, lambda line: _say(f"ready {os.getpid()} {port}"), build=build)

    asyncio.run(serve())


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
