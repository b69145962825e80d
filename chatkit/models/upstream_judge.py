"""A judging model behind an OpenAI-compatible server: one short reply, with log-probabilities where it tells them."""

import asyncio
import json
import logging
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from chatkit.errors import ChatkitError, EngineFailed, InvalidRequest, Overloaded, TooLarge
from chatkit.judging import Question, Reply, Token, called
from chatkit.models import upstream_wire as wire
from chatkit.models.upstream_auth import Credentials
from chatkit.models.upstream_breaker import Admission, Breaker, wait_before

log = logging.getLogger(__name__)

# Other tokens that are asked for in each place; OpenAI's most, and the most that vLLM gives unless told otherwise.
_TOP = 20
# A reply is a few tokens with twenty others each. Bytes.
_MOST_BYTES = 1 << 20
# A server that is restarting or full is asked again this often within the time there is.
_TRIES = 3
_AGAIN = (429, 500, 502, 503, 504)


class UpstreamJudge:
    """Asks a server; satisfies judging.ReplyJudge.

    Args:
        url: the server's address, ending in /v1 as a rule.
        model: what the server calls the model; "" takes the first that it lists.
        seconds: that an answer may take, tries again included.
        proxy: on the way there, "" for none.

    Attributes:
        name: the model's, of a path its last part.
        version: "", for a server does not tell it.
    """

    version = ""

    def __init__(self, url: str, model: str, credentials: Credentials, *, seconds: float, proxy: str = "") -> None:
        self.name = called(model) or "guard"
        self._model = model
        self._url = url.rstrip("/") + "/"
        self._credentials = credentials
        self._seconds = seconds
        self._proxy = proxy
        self._breaker = Breaker()
        self._asks_chances = True
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def reply(self, question: Question, *, most_tokens: int) -> Reply:
        """Return the likeliest reply; see judging.ReplyJudge.

        Raises:
            TooLarge: the question is longer than the model reads.
            EngineFailed: the server does not answer in time, or what it answers is no reply.
            Overloaded: it has no room, or failed too often lately to be asked.
            InvalidRequest: it refuses the request.
        """
        admission = self._breaker.admit()
        if admission == "no":
            raise Overloaded("the guard model's server failed several times in a row; it is asked again in a while")
        try:
            async with asyncio.timeout(self._seconds):
                made = await self._tried(question, most_tokens)
        except TimeoutError:
            log.error("the guard model's server was silent for %.0f s", self._seconds)
            self._failed(admission)
            raise EngineFailed("the guard model's server does not answer; see moderation_endpoint") from None
        except (EngineFailed, Overloaded):
            self._failed(admission)
            raise
        except ChatkitError:  # it answers, if only to refuse
            self._breaker.succeeded()
            raise
        except BaseException:
            self._breaker.left(admission)
            raise
        self._breaker.succeeded()
        return made

    def _failed(self, admission: Admission) -> None:
        if self._breaker.failed(admission):
            log.error("the guard model's server failed too often in a row; it is left alone for a while")

    async def _tried(self, question: Question, most_tokens: int) -> Reply:
        for attempt in range(1, _TRIES + 1):
            if not self._model:
                self._model = await self._first_listed()
                self.name = called(self._model)
            try:
                status, text = await self._exchange("POST", "chat/completions", self._body(question, most_tokens))
            except httpx.TransportError as error:
                log.warning("the guard model's server cannot be reached: %s", type(error).__name__)
                status, text = 503, ""
            if status == 200:
                return reply_in(text)
            if status in (400, 422) and self._asks_chances and "logprobs" in text:
                log.warning("the guard model's server tells no probabilities; its verdicts are read as text")
                self._asks_chances = False
                continue
            log.log(
                logging.WARNING if status in _AGAIN else logging.ERROR,
                "the guard model's server answers %d: %s",
                status,
                wire.for_the_log(text),
            )
            if status not in _AGAIN or attempt == _TRIES:
                break
            await asyncio.sleep(wait_before(attempt, None))
        raise _failure(status, text)

    def _body(self, question: Question, most_tokens: int) -> dict[str, Any]:
        messages = [{"role": message.role, "content": message.content} for message in question.messages]
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages or [{"role": "user", "content": question.prompt}],
            "max_tokens": most_tokens,
            "temperature": 0,
            "stream": False,
        }
        if self._asks_chances:
            body |= {"logprobs": True, "top_logprobs": _TOP}
        if question.arguments:
            body["chat_template_kwargs"] = dict(question.arguments)
        return body

    async def _first_listed(self) -> str:
        """Return the first model that the server lists.

        Raises:
            EngineFailed: it lists none.
        """
        try:
            status, text = await self._exchange("GET", "models", None)
            rows = json.loads(text)["data"] if status == 200 else []
            return str(rows[0]["id"])
        except (httpx.TransportError, ValueError, LookupError, TypeError, RecursionError):
            raise EngineFailed("the guard model's server lists no model; set moderation_model to its name") from None

    async def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
        """Return the status and the text of one answer, whatever it is.

        Raises:
            httpx.TransportError: there is none.
            EngineFailed: it has no end.
        """
        headers = await self._credentials.headers()
        async with self._connected().stream(method, path, json=body, headers=headers) as response:
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > _MOST_BYTES:
                    raise EngineFailed("the guard model's server sends an answer without end")
        return response.status_code, data.decode("utf-8", "replace")

    def _connected(self) -> httpx.AsyncClient:
        """Return the client, made in the event loop that uses it."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                base_url=self._url,
                headers={"user-agent": "chatkit", "accept-encoding": "identity"},
                timeout=httpx.Timeout(None),  # kept above, for the answer as a whole
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0),
                follow_redirects=False,
                # Texts and the key go where the settings say: not to HTTP_PROXY's host, and no key out of ~/.netrc.
                trust_env=False,
                proxy=self._proxy or None,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                verify=httpx.create_ssl_context(),
            )
        return self._client


def _failure(status: int, text: str) -> ChatkitError:
    """Return the error of a refused check; none of the server's own words are in it."""
    kind = type(wire.failure(status, text))
    if kind is TooLarge:
        return TooLarge("the text is longer than the guard model's server takes")
    if kind is InvalidRequest:
        return InvalidRequest("the guard model's server refuses the request; look at its log and moderation_template")
    if kind is Overloaded:
        return Overloaded("the guard model's server is busy")
    return EngineFailed(f"the guard model's server answers {status}; see moderation_endpoint and moderation_key")


def reply_in(text: str) -> Reply:
    """Return the reply that a body of `chat/completions` holds.

    Raises:
        EngineFailed: it is no such body.
    """
    try:
        choice = json.loads(text)["choices"][0]
        said = choice["message"].get("content")
        listed = choice.get("logprobs")
        rows = listed.get("content") if isinstance(listed, dict) else None
        tokens = tuple(_token(row) for row in rows or ())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise EngineFailed("the guard model's server sends what is no chat completion") from None
    return Reply(said if isinstance(said, str) else "", tokens)


def _token(row: Any) -> Token:
    """Return one token of a list of log-probabilities; its own value counts beside the others'."""
    top = {str(one["token"]): float(one["logprob"]) for one in row.get("top_logprobs") or ()}
    return Token(str(row["token"]), {str(row["token"]): float(row["logprob"]), **top})
