"""A language model in an engine process of its own: this side tokenises, bounds the queue, and hands out the steps.

Every engine that runs here speaks the same lines with its worker, commands to its stdin and events from its stdout.

commands: {"add": id, "ids": […], "config": {…}} · {"cancel": id}
events:   {"ready": true} · {"step": [[id, [token, …], reason | null], …]} · {"refused": id, "why": …} · {"fatal": …}
          {"alive": true} every second from then on

`chat_worker` has more of them.
commands: {"embed": id, "ids": [[…], …]}, which {"cancel": id} ends too
events:   {"ready": true, "cache_tokens": what the cache holds, …} · {"step": …, "read": prompt tokens computed}
          {"failed": id, "kind": …, "message": one line for the caller}
          {"vectors": id, "texts": [index, …], "float32": base64 of their rows}, until all have come
"""

import asyncio
import base64
import contextlib
import json
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from chatkit import child_python
from chatkit.errors import (
    BrokenModel,
    ChatkitError,
    ConfigError,
    EngineFailed,
    InvalidRequest,
    ModelError,
    Overloaded,
    TooLarge,
    Unavailable,
)
from chatkit.models.admission import Admission
from chatkit.models.decoding import Decoder
from chatkit.models.vectors import VectorRequests
from chatkit.protocols import PromptFormat
from chatkit.types import Chunk, FinishReason, SamplingParams

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

# A step's line holds one short row a running generation, vectors come in small parts; this is far above both. Bytes.
_LINE_LIMIT = 1 << 24
# The worker ends by itself when its stdin closes; after this it is killed. Seconds.
_STOP_TIMEOUT = 5.0
# How long its last complaints may take to come after its death. Seconds.
_LAST_WORDS = 1.0
# How often it is looked whether the worker has said anything. Seconds.
_LOOK = 0.5
# How the sentence begins that a rank which follows ends with; see chat_worker.
_OTHER_RANK = re.compile(r"rank \d+ failed: ")
# What one request may fail with while the engine goes on, and its start.
_KINDS: dict[str, type[ChatkitError]] = {
    "invalid": InvalidRequest,
    "overloaded": Overloaded,
    "unavailable": Unavailable,
    **{kind.code: kind for kind in (BrokenModel, ConfigError, ModelError)},
}


class EngineGeneration:
    """One request in the engine; iterate it once."""

    def __init__(self, model: "EngineModel", number: int, prompt_tokens: int) -> None:
        self._model = model
        self._number = number
        self._prompt_tokens = prompt_tokens
        self._steps: asyncio.Queue[tuple[list[int], str | None] | ChatkitError] = asyncio.Queue()
        self._cancelled = False

    def put(self, step: tuple[list[int], str | None] | ChatkitError) -> None:
        """Take a step from the worker, or the failure that ends everything."""
        self._steps.put_nowait(step)

    def cancel(self) -> None:
        """Stop in the engine's next step; the iterator then ends with `aborted`."""
        if not self._cancelled:
            self._cancelled = True
            self._model.drop(self._number)
            self._steps.put_nowait(([], "aborted"))

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield chunks of whole characters; the last has the finish reason.

        Raises:
            EngineFailed: the worker stopped.
        """
        decoder = Decoder(self._model.tokenizer)
        try:
            while True:
                step = await self._steps.get()
                if isinstance(step, ChatkitError):
                    raise type(step)(str(step))  # one of its own: a shared exception would keep every raiser's frames
                tokens, reason = step
                text = "".join(map(decoder.feed, tokens)) + (decoder.finish() if reason else "")
                if reason == "ignored":
                    raise Overloaded(
                        "the engine has no key-value cache left for this prompt; raise CHATKIT_KV_CACHE_GB or send less"
                    )
                last: FinishReason | None = reason  # type: ignore[assignment]
                yield Chunk(text, len(tokens), last, self._prompt_tokens if last else 0)
                if last:
                    return
        finally:
            self.cancel()


class EngineModel:
    """A language model in an engine process; satisfies protocols.LanguageModel.

    Args:
        command: what starts the worker.
        admission: who may start, and how many may wait.

    Attributes:
        command: what starts the worker.
        tokens_made: tokens the engine has generated for anybody, since the start.
        tokens_read: prompt tokens it has computed, where the worker counts them; those of a warm cache are not.
        reported: what the worker said of itself when it was ready.
        ends_service: whether the service should end when the engine has stopped, to be started anew as a whole.
        longest_silence: seconds without a line, not even a sign of life, after which the worker is given up.
    """

    ends_service: ClassVar[bool] = False
    longest_silence: ClassVar[float] = 60.0

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        context_window: int,
        eos_ids: Sequence[int],
        form: PromptFormat,
        tokenizer: "Tokenizer",
        admission: Admission,
    ) -> None:
        self.name = name
        self.context_window = context_window
        self.format = form
        self.tokenizer = tokenizer
        self.tokens_made = 0
        self.tokens_read = 0
        self.reported: dict[str, Any] = {}
        self.command = tuple(command)
        self._eos_ids = tuple(eos_ids)
        self._admission = admission
        self._held: dict[int, dict[str, Any]] = {}  # commands of those that wait
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._live: dict[int, EngineGeneration] = {}
        self._asked = VectorRequests()
        self._silence = 0.0
        self._next = 0
        self._failure: EngineFailed | None = EngineFailed("the engine has not been started")
        self._complaints: deque[str] = deque(maxlen=50)

    @property
    def ready(self) -> bool:
        """Whether the worker is up."""
        return self._failure is None

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` is, control tokens read as such."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    async def start(self) -> None:
        """Start the engine's process and wait until it has loaded.

        Raises:
            EngineFailed: the process ended; the message holds its last words.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            env=child_python.environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
        )
        ready = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self._process, ready))
        try:
            await ready
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the engine's process; running generations end with EngineFailed."""
        process, self._process = self._process, None
        if process is None:
            return
        self._fail(EngineFailed("the service is shutting down"))
        if process.stdin:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
        await asyncio.gather(*filter(None, [self._reader]), return_exceptions=True)

    def generate(self, prompt: str, sampling: SamplingParams, *, session: str = "") -> EngineGeneration:
        """Queue a prompt; see protocols.LanguageModel."""
        if self._failure:
            raise EngineFailed(str(self._failure))
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        number, self._next = self._next, self._next + 1
        need = self._need(len(ids), sampling.max_new_tokens)
        given_up = self._admission.ask(number, session=session, tokens=need)
        generation = EngineGeneration(self, number, len(ids))
        self._live[number] = generation
        config = {
            "max_new_tokens": need - len(ids),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": sampling.seed,
            "stop_words": sampling.stop_words,
            "eos_ids": self._eos_ids,
        }
        self._held[number] = {"add": number, "ids": ids, "config": config}
        if given_up is not None:
            self._fail_one(given_up, Overloaded("other sessions are waiting for this server; try again shortly"))
        self._start_waiting()
        return generation

    def _need(self, prompt: int, answer: int) -> int:
        """Return the tokens of prompt and answer, which ends where the window does.

        Raises:
            TooLarge: the window has no room for an answer.
        """
        if prompt >= self.context_window:
            raise TooLarge(
                f"the prompt has {prompt} tokens, the model holds {self.context_window} with the answer; send less"
            )
        return min(prompt + answer, self.context_window)

    async def vectors(self, rows: Sequence[Sequence[int]]) -> bytes:
        """Return the (texts, hidden size) float32 vectors of texts given as token ids, where the worker makes them.

        Raises:
            Overloaded: too many texts wait, or these do not fit the engine's memory.
            EngineFailed: the engine has stopped.
        """
        if self._failure:
            raise EngineFailed(str(self._failure))
        number, self._next = self._next, self._next + 1
        asked = self._asked.add(number, len(rows))
        try:
            self._send({"embed": number, "ids": rows})
            return await asked.whole
        finally:
            if self._asked.remove(number) and self._failure is None:  # nobody waits for the rest
                self._send({"cancel": number})

    async def stopped(self) -> EngineFailed:
        """Wait until the engine has stopped without having been told to, and return why."""
        await self._stopped.wait()
        return EngineFailed(str(self._failure))

    def drop(self, number: int) -> None:
        """Forget a generation and tell the worker to stop it."""
        if self._live.pop(number, None) is not None:
            if self._held.pop(number, None) is None:
                self._send({"cancel": number})
            self._leave(number)

    def _leave(self, number: int) -> None:
        self._admission.leave(number)
        self._start_waiting()

    def _start_waiting(self) -> None:
        for number in self._admission.admit():
            self._send(self._held.pop(number))

    def _send(self, command: dict[str, Any]) -> None:
        if self._process and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(command, separators=(",", ":")).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process, ready: "asyncio.Future[None]") -> None:
        """Hand out the worker's events until its stdout ends; then everything that waits has failed."""
        if process.stdout is None or process.stderr is None:
            raise AssertionError("the worker was started with pipes")
        stderr = asyncio.create_task(self._keep_complaints(process.stderr))
        watch = asyncio.create_task(self._watch(process))
        why, said = "", None
        try:
            async for line in process.stdout:
                self._silence = 0.0
                event = json.loads(line)
                if "ready" in event:
                    self.reported = event
                    self._opened(event)
                    self._failure = None
                    ready.set_result(None)
                elif "fatal" in event and not why:  # what comes after the first follows from it
                    why, said = event["fatal"], _KINDS.get(event.get("code", ""))
                else:
                    self._hand_out(event)
        except ValueError:  # the worker died within a line
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            why = "its last line is incomplete"
        code = await process.wait()
        watch.cancel()
        await asyncio.wait({stderr}, timeout=_LAST_WORDS)  # a process of the worker's own may still hold the other end
        stderr.cancel()
        if self._silence >= self.longest_silence:
            why = f"it said nothing for {self.longest_silence:.0f} s"
        why = why or (self._complaints[-1] if self._complaints else "no message")
        other = next(filter(_OTHER_RANK.match, self._complaints), "")  # rank 0 knows only that it lost the other
        why = f"{why}; {other}" if other else why
        detail = f"the engine's process ended with code {code}: {why}"
        self._fail(EngineFailed("the language model has stopped; the operator has to restart the service"))
        if not ready.done():
            ready.set_exception(said(why) if said else EngineFailed(detail))
        elif self._process is not None:
            log.error("%s", detail)
            self._stopped.set()

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End a worker that has gone silent; only waits count, since the whole service may have been stopped too."""
        while self._silence < self.longest_silence:
            await asyncio.sleep(_LOOK)
            self._silence += _LOOK if self.ready else 0  # a worker that loads says nothing yet
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    def _opened(self, reported: dict[str, Any]) -> None:
        """Take what the worker said of itself when it was ready."""

    def _hand_out(self, event: dict[str, Any]) -> None:
        """Give an event to those it is about."""
        if "step" in event:
            self.tokens_read += event.get("read", 0)
            self._step(event["step"])
        elif "refused" in event:
            log.error("the engine refused a prompt: %s", event["why"])
            why = "the engine cannot take this prompt or its sampling parameters; change them"
            self._fail_one(event["refused"], InvalidRequest(why))
        elif "failed" in event:
            self._fail_one(event["failed"], _KINDS[event["kind"]](event["message"]))
        elif "vectors" in event and (asked := self._asked.find(event["vectors"])):
            asked.put(event["texts"], base64.b64decode(event["float32"]))

    def _step(self, rows: list[list[Any]]) -> None:
        for number, tokens, reason in rows:
            self.tokens_made += len(tokens)
            generation = self._live.get(number)
            if generation is None:
                continue  # cancelled while this step ran
            if reason:
                del self._live[number]
                self._leave(number)
            generation.put((tokens, reason))

    def _fail_one(self, number: int, failure: ChatkitError) -> None:
        generation = self._live.pop(number, None)
        if generation is not None:
            generation.put(failure)
            self._held.pop(number, None)
            self._leave(number)
        if asked := self._asked.find(number):
            asked.fail(failure)

    def _fail(self, failure: EngineFailed) -> None:
        if self._failure is None:
            self._failure = failure
        for generation in self._live.values():
            generation.put(failure)
        self._live.clear()
        self._held.clear()
        self._admission.clear()
        self._asked.fail(failure)

    async def _keep_complaints(self, stream: asyncio.StreamReader) -> None:
        with contextlib.suppress(ValueError):  # a line longer than the limit is no message
            async for line in stream:
                text = line.decode("utf-8", "replace").strip()
                if text:
                    self._complaints.append(text[:300])
                    log.debug("engine: %s", text)
