"""The `openai` engine: a language model behind any OpenAI-compatible server, such as a vLLM cluster.

Every generation is one streamed `POST chat/completions`, read by a task of its own that ends with it. Whether the
server is well is asked in the background, so that nobody waits for the answer to that. Nothing here is final: a server
that comes back is used again.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from chatkit.errors import ChatkitError, EngineFailed, Overloaded
from chatkit.models import upstream_facts
from chatkit.models.upstream_auth import Credentials
from chatkit.models.upstream_breaker import Admission, Breaker
from chatkit.models.upstream_exchange import Exchange, Request
from chatkit.models.upstream_facts import Unanswered, Untold
from chatkit.models.upstream_format import MessagesFormat, Systems, TokenCounter, messages_in
from chatkit.models.upstream_wire import ToolCalled, request_body
from chatkit.types import Chunk, SamplingParams

log = logging.getLogger(__name__)

# Between two looks at the server, and for one look; this many in a row have to fail. Seconds.
_LOOK_EVERY, _LOOK_TIMEOUT, _LOOKS = 5.0, 5.0, 2
_CONNECT_TIMEOUT = 5.0
# At the start the server may still be loading its weights: it is asked again this often. Seconds.
_START_EVERY = 1.0
_CLOSING = "the service is shutting down"


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """How a server is used; see settings.Settings, `upstream_…`, for each.

    Attributes:
        lists_models: whether there is a list of models to look at.
        first_s: seconds until the first token, tries and waits between them included; also for a start.
        stall_s: seconds between two tokens.
    """

    url: str
    model: str = ""
    context: int = 0
    systems: Systems = "first"
    fields: tuple[str, ...] = ()
    session_headers: tuple[str, ...] = ()
    lists_models: bool = True
    first_s: float = 60.0
    stall_s: float = 30.0
    most_live: int = 320
    proxy: str = ""


class UpstreamGeneration:
    """One answer of the server; iterate it once."""

    def __init__(self, model: "UpstreamModel", request: Request, admission: Admission) -> None:
        self._model = model
        self._admission: Admission = admission
        self._prompt_tokens = request.prompt_tokens
        self._chunks: asyncio.Queue[Chunk | ChatkitError] = asyncio.Queue()
        self._over = False
        self.task = asyncio.create_task(self._run(request))
        self.task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Close the connection, which servers take for a stop; the iterator then ends with `aborted`."""
        if not self._over:
            self._put(Chunk("", 0, "aborted", self._prompt_tokens()))
            self.task.cancel()

    def fail(self, error: EngineFailed) -> None:
        """End with an error and close the connection, also where only its end is still being read."""
        self._put(error)
        self.task.cancel()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Yield chunks of whole characters; the last has the finish reason.

        Raises:
            InvalidRequest: the server refuses the request; TooLarge where it is too long.
            Overloaded: the server has no room.
            EngineFailed: the server does not answer, stopped in the middle, or cannot be used.
        """
        try:
            while True:
                chunk = await self._chunks.get()
                if isinstance(chunk, ChatkitError):
                    raise chunk
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            self.cancel()

    def _put(self, chunk: Chunk | ChatkitError) -> None:
        if self._over:
            return
        self._over = isinstance(chunk, ChatkitError) or chunk.finish_reason is not None
        self._chunks.put_nowait(chunk)

    async def _run(self, request: Request) -> None:
        breaker = self._model.breaker
        try:
            async for chunk in self._model.exchange.chunks(request):
                if self._admission == "probe":  # the others need not wait for the end of this answer
                    breaker.succeeded()
                    self._admission = "yes"
                self._put(chunk)
                if chunk.finish_reason:
                    breaker.succeeded()
        except ToolCalled as error:  # it is well, and the model wants what nobody here has
            breaker.succeeded()
            self._put(error)
        except EngineFailed as error:
            if breaker.failed(self._admission):
                log.error("the upstream failed too often in a row; it is left alone for a while")
            self._admission = "yes"
            self._put(error)
        except ChatkitError as error:  # it answers, if only to refuse
            breaker.succeeded()
            self._put(error)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._model.live.discard(self)
        self._model.breaker.left(self._admission)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a generation ended on a defect", exc_info=error)
        self._put(EngineFailed("the language model's answer could not be read"))


class UpstreamModel:
    """A language model behind an OpenAI-compatible server; satisfies protocols.LanguageModel.

    Args:
        counter: counts tokens as the upstream's model does, or about so.

    Attributes:
        name: the model's, as the server calls it.
        context_window: tokens of prompt and answer that the server takes.
        live: the generations that run.
    """

    def __init__(self, options: UpstreamOptions, credentials: Credentials, counter: TokenCounter) -> None:
        self.name = options.model or "upstream"
        self.context_window = options.context
        self.format = MessagesFormat(options.systems, counter.special_tokens)
        self.breaker = Breaker()
        self.live: set[UpstreamGeneration] = set()
        self._options = options
        self._model = options.model
        self._counter = counter
        self._credentials = credentials
        self._listed = False
        self._closed = False
        self._failed_looks = _LOOKS
        self._watcher: asyncio.Task[None] | None = None
        # No limit here: it is kept above, and one connection that a library failed to give back would block the rest.
        self._client = httpx.AsyncClient(
            base_url=options.url.rstrip("/") + "/",
            headers={"user-agent": "chatkit", "accept-encoding": "identity"},
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0),
            follow_redirects=False,
            # Prompts and the key go where the settings say: not to HTTP_PROXY's host, and no other key out of ~/.netrc.
            trust_env=False,
            proxy=options.proxy or None,
            # A balancer that sends every caller with its cookie to one replica would have no other to send to.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE and SSL_CERT_DIR go on to hold
        )
        self.exchange = Exchange(self._client, credentials, first_s=options.first_s, stall_s=options.stall_s)

    @property
    def ready(self) -> bool:
        """Whether the server answered when it was last looked at, and is not being left alone."""
        return not self._closed and self._failed_looks < _LOOKS and not self.breaker.refuses

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` is, exactly only where the upstream's tokenizer is here."""
        return self._counter(text)

    async def start(self) -> None:
        """Learn what the settings leave open, waiting for a server that is not up yet, and begin to watch it.

        Raises:
            EngineFailed: it did not answer in time, refuses the key, or does not tell what is needed.
        """
        if self._options.lists_models:
            if await self._learn():
                self._watcher = asyncio.create_task(self._watch())
        else:
            self._failed_looks = 0
        if self.context_window < 1:
            await self.close()
            raise EngineFailed(_untold(self._options.url))

    async def close(self) -> None:
        """Let go of the server; running generations end with EngineFailed."""
        self._closed = True
        tasks = [generation.task for generation in self.live]
        for generation in list(self.live):
            generation.fail(EngineFailed(_CLOSING))
        if self._watcher:
            self._watcher.cancel()
            tasks.append(self._watcher)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def generate(self, prompt: str, sampling: SamplingParams, *, session: str = "") -> UpstreamGeneration:
        """Send a prompt; see protocols.LanguageModel.

        Raises:
            InvalidRequest: the prompt is none that `format` rendered.
        """
        if self._closed:
            raise EngineFailed(_CLOSING)
        messages = messages_in(prompt)
        if len(self.live) >= self._options.most_live:
            raise Overloaded(
                f"{len(self.live)} generations are running, the most this service takes; try again shortly"
            )
        admission = self.breaker.admit()
        if admission == "no":
            raise Overloaded("the language model's server failed several times in a row; try again in a minute")
        usage = self.exchange.asks_usage
        body = request_body(self._model, messages, sampling, fields=self._options.fields, usage=usage)
        headers = {name: session for name in self._options.session_headers} if session else {}
        count = functools.partial(self.count_tokens, prompt)
        request = Request(body, headers, sampling.max_new_tokens, count, self.context_window)
        generation = UpstreamGeneration(self, request, admission)
        self.live.add(generation)
        return generation

    async def _learn(self) -> bool:
        """Ask for the list of models until there is one, and return whether it is worth asking for again.

        Where all is set, a server that is away may come later.

        Raises:
            EngineFailed: there is none in time, or never will be.
        """
        known = bool(self._model) and self.context_window > 0
        deadline = asyncio.get_running_loop().time() + self._options.first_s
        waiting = False
        while True:
            try:
                await self._look()
                return True
            except Unanswered as error:
                if error.status in (404, 405, 501) and self.context_window > 0:
                    log.warning("the upstream has no list of models (%s); it counts as ready while it answers", error)
                    self._failed_looks = 0
                    return False
                if known and error.status not in (401, 403):
                    log.warning("the upstream is not ready: %s", error)
                    return True
                late = asyncio.get_running_loop().time() + _START_EVERY > deadline
                if late or 300 <= error.status < 500:
                    await self.close()
                    raise EngineFailed(_why_not(self._options.url, error)) from None
                if not waiting:
                    log.warning("waiting for the upstream: %s", error)
                    waiting = True
            await asyncio.sleep(_START_EVERY)

    async def _look(self) -> None:
        """Look at the server once, and learn what the settings leave open: it may have come back as another.

        Raises:
            Unanswered: it does not answer as it should, or no longer has the model.
        """
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT):
                headers = await self._credentials.headers()
                rows = await upstream_facts.list_models(self._client, headers)
                if upstream_facts.lists(rows, self._options.model):
                    self._listed = True
                    await self._learn_from(rows, headers)
                elif self._listed:  # a name that was never in the list may be one that the server takes all the same
                    raise Unanswered(200, f"GET models no longer lists {self._options.model or self._model!r}")
                elif self._options.model and self._failed_looks:
                    log.warning("the upstream does not list the model %r", self._options.model)
                if self.context_window < 1:
                    raise Untold(200, "it does not tell how many tokens its model holds; set upstream_context")
        except TimeoutError:
            raise Unanswered(0, f"no list of models after {_LOOK_TIMEOUT:.0f} s") from None
        except EngineFailed as error:
            raise Unanswered(0, str(error)) from error
        self._failed_looks = 0

    async def _learn_from(self, rows: Sequence[Mapping[str, Any]], headers: Mapping[str, str]) -> None:
        """Take from a list of models what the settings leave open; the model in use stays while it is listed."""
        if self._options.model and self._options.context:
            return
        name = self._options.model or (self._model if upstream_facts.lists(rows, self._model) else "")
        # A server that was away may have come back with other options; one that was not has not changed them.
        known = self._options.context or (self.context_window if name == self._model and not self._failed_looks else 0)
        self._take(await upstream_facts.facts_of(self._client, headers, rows, name, elsewhere=not known))

    def _take(self, facts: upstream_facts.Facts) -> None:
        before = self._model, self.context_window
        if not self._options.model and facts.model:
            self._model = self.name = facts.model
        if not self._options.context and facts.context:
            self.context_window = facts.context
        now = self._model, self.context_window
        if all(before) and now != before:
            log.warning("the upstream has changed: its model is %r now, and holds %d tokens", *now)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            before = self.ready
            try:
                await self._look()
            except Unanswered as error:
                self._failed_looks += 1
                if self._failed_looks == _LOOKS:
                    log.error("the upstream is not ready: %s", error)
            else:
                if not before and self.ready:
                    log.warning("the upstream is ready")


def _why_not(url: str, error: Unanswered) -> str:
    """Return what an operator has to do about a server that cannot be used at the start."""
    if isinstance(error, Untold):
        return _untold(url)
    if error.status in (401, 403):
        return f"{url!r} refuses the key ({error.status}); set upstream_key, upstream_key_file or upstream_auth"
    if error.status == 404:
        return f"{error}; upstream_url ends in /v1 as a rule, or set upstream_context where there is no list of models"
    if 300 <= error.status < 400:
        return f"{error}, a redirect, which is not followed; set upstream_url to where it leads"
    return f"{error}; start the server, or correct upstream_url"


def _untold(url: str) -> str:
    return f"{url!r} does not tell how many tokens its model holds; set upstream_context"
