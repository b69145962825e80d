"""The OpenAI door, `POST /v1/chat/completions`: its schema read leniently, its answer with chatkit's fields beside.

A list of messages is answered and not stored, since the caller keeps it; with a `session_id` the store keeps it, and
the last message alone is taken. What asks for something that chatkit cannot do is refused; other fields that are not
known here are named in the header `x-chatkit-ignored`.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from chatkit.errors import ChatkitError, Conflict, Forbidden, InvalidRequest, NotFound, Unauthorized, UnknownModel
from chatkit.server.callers import DELEGATE, Caller
from chatkit.server.protocols import Defaults, bodies, native
from chatkit.server.sse import SSE
from chatkit.service import new_request_id
from chatkit.types import (
    ChatRequest,
    Error,
    Event,
    Message,
    Owner,
    Replace,
    Reply,
    Retrieved,
    SamplingParams,
    TextDelta,
    TurnStarted,
)

IGNORED = "x-chatkit-ignored"
EXAMPLE = '{"messages": [{"role": "user", "content": "Hello"}]}'
# OpenAI's names for how an answer ended; its time limit reads as a length.
FINISH = {"stop": "stop", "length": "length", "deadline": "length", "content_filter": "content_filter"}
_SIDES = ("user", "assistant")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_LISTED = 20
# What chatkit cannot do, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Any

    def text(self, at: int) -> str:
        """Return the content of message `at` as one string; it may come in parts."""
        if isinstance(self.content, str):
            return self.content
        if not isinstance(self.content, list):
            raise InvalidRequest(f"'messages.{at}.content' is {bodies.short(self.content)}, expected text")
        return "".join(_part(part, at) for part in self.content)


def _part(part: Any, at: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InvalidRequest(f"'messages.{at}.content' has the part {bodies.short(part)}, expected parts of type 'text'")


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    messages: list[_Message]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: bodies.Whole | None = None
    max_completion_tokens: bodies.Whole | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: bodies.Whole | None = None
    repetition_penalty: float | None = None
    seed: bodies.Whole | None = None
    stop: str | list[str] | None = None
    session_id: str | None = None
    request_id: str | None = None
    replaces: bodies.Whole | None = None
    no_retrieval: bool = False
    k: bodies.Whole | None = None
    index: str | None = None
    where: dict[str, str] | None = None
    rerank: bool | None = None
    neighbours: bodies.Whole | None = None


class ChatCompletion:
    """One call of this door; see `protocols.Call`."""

    media_type = SSE

    def __init__(self, raw: bytes, caller: Caller, headers: Mapping[str, str], defaults: Defaults) -> None:
        body = bodies.read(raw, _Body, example=EXAMPLE, drop_null=True)
        more = dict(body.model_extra or {})
        owner = _acting(caller, more).owner
        ignored = [name for name, value in more.items() if _changes_nothing(name, value)]
        self.headers: Mapping[str, str] = {IGNORED: _listed(ignored)} if ignored else {}
        self.stream = bool(body.stream)
        self.model = check_model(body.model, defaults.model)
        self.request = _request(body, owner, headers, defaults)
        self._usage = self.stream and body.stream_options is not None and body.stream_options.include_usage
        self._created = int(time.time())
        self._shown = False

    def answer(self, reply: Reply) -> dict[str, Any]:
        """Return a `chat.completion`."""
        message = {"role": "assistant", "content": reply.text, "refusal": None, **annotations(reply)}
        choice = {"index": 0, "message": message}
        return {
            **self._head("chat.completion"),
            "choices": [{**choice, "logprobs": None, "finish_reason": FINISH.get(reply.finish_reason, "stop")}],
            "usage": native.answer(reply)["usage"],
            "chatkit": self._extension(reply),
        }

    def frames(self, event: Event) -> bytes:
        """Return an event as `chat.completion.chunk`s."""
        match event:
            case TurnStarted(session_id, request_id):
                ids = {"session_id": session_id or None, "request_id": request_id}
                return self._chunk({"role": "assistant", "content": ""}, chatkit=ids)
            case Retrieved(passages):
                return self._chunk({}, chatkit={"sources": [native.source(passage) for passage in passages]})
            case TextDelta(text):
                self._shown = True
                return self._chunk({"content": text})
            case Replace(text, label):  # these chunks cannot withdraw what was shown: the refusal follows it
                shown = f"\n\n{text}" if self._shown else text
                return self._chunk({"content": shown}, chatkit={"replace": {"text": text, "label": label}})
            case Reply():
                return self._end(event)
            case Error(error):
                return _data(error_body(error)) + _data("[DONE]")

    def _end(self, reply: Reply) -> bytes:
        finish = FINISH.get(reply.finish_reason, "stop")
        last = self._chunk(annotations(reply), finish=finish, chatkit=self._extension(reply))
        if self._usage:
            usage = native.answer(reply)["usage"]
            last += _data({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})
        return last + _data("[DONE]")

    def _chunk(self, delta: dict[str, Any], *, chatkit: Any = None, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        table = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self._usage:
            table["usage"] = None
        return _data({**table, "chatkit": chatkit} if chatkit else table)

    def _head(self, kind: str) -> dict[str, Any]:
        identity = f"chatcmpl-{self.request.request_id}"
        return {"id": identity, "object": kind, "created": self._created, "model": self.model}

    def _extension(self, reply: Reply) -> dict[str, Any]:
        """Return what chatkit knows of a turn and OpenAI's shape has no place for."""
        fields = native.answer(reply)
        counted = ("dropped_turns", "dropped_passages", "withheld", "replayed")
        names = ("request_id", "sources", "citations", "moderation", "timings", *counted)
        stored = bool(reply.session_id)
        kept = {"session_id": reply.session_id if stored else None, "seq": reply.seq if stored else None}
        return {**kept, **{name: fields[name] for name in names}}


def annotations(reply: Reply) -> dict[str, Any]:
    """Return OpenAI's `annotations` for what web pages support; nothing where no source is one, for it has no other."""
    pages = {one.id: one for one in reply.passages if one.source.startswith(("http://", "https://"))}
    found = [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": sentence.start,
                "end_index": sentence.end,
                "title": pages[identity].title,
                "url": pages[identity].source,
            },
        }
        for sentence in reply.citations
        for identity in sentence.passage_ids
        if identity in pages
    ]
    return {"annotations": found} if found else {}


def _acting(caller: Caller, more: dict[str, Any]) -> Caller:
    """Return the caller as it acts for `user`, which is taken out of the other fields.

    Of a caller that may not name anybody it stays there: OpenAI's clients send it for purposes of their own.
    """
    if DELEGATE not in caller.scopes:
        return caller
    user = more.pop("user", None)
    if user is not None and not isinstance(user, str):
        raise InvalidRequest(f"'user' is {bodies.short(user)}, expected a name")
    return caller.acting_for(user, "user")


def _request(body: _Body, owner: Owner, headers: Mapping[str, str], defaults: Defaults) -> ChatRequest:
    instructions, history, text = _split(body.messages)
    request_id = body.request_id or headers.get("idempotency-key")
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    sampling: dict[str, Any] = {n: getattr(body, n) for n in names if getattr(body, n) is not None}
    given = (body.max_completion_tokens, body.max_tokens)
    tokens = next((value for value in given if value is not None), defaults.max_new_tokens)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return ChatRequest(
        text=text,
        request_id=request_id or new_request_id(),
        owner=owner,
        session_id=body.session_id,
        client_request_id=request_id is not None,
        sampling=SamplingParams(max_new_tokens=tokens, stop_words=stop, **sampling),
        retrieval=bodies.retrieval(body, defaults.k),
        instructions=instructions,
        history=history if body.session_id is None else None,
        replaces=body.replaces,
    )


def _split(messages: Sequence[_Message]) -> tuple[str, tuple[Message, ...], str]:
    """Return the caller's instructions, the conversation so far, and the message to answer."""
    texts = [message.text(at) for at, message in enumerate(messages)]
    instructions = "\n\n".join(
        text for m, text in zip(messages, texts, strict=True) if m.role in ("system", "developer")
    )
    said = [
        Message("user" if m.role == "user" else "assistant", text)
        for m, text in zip(messages, texts, strict=True)
        if m.role in _SIDES
    ]
    if not said or said[-1].role != "user":
        last = repr(messages[-1].role) if messages else "missing"
        raise InvalidRequest(f"the last of messages is {last}, expected a user's, e.g. {EXAMPLE}")
    start = len(said)
    while start and said[start - 1].role == "user":
        start -= 1
    return instructions, tuple(said[:start]), "\n\n".join(message.content for message in said[start:])


def _changes_nothing(name: str, value: Any) -> bool:
    """Return whether a field that chatkit does not know goes unsaid, and so must be named in the answer.

    Raises:
        InvalidRequest: it asks for something that chatkit cannot do.
    """
    if name not in NEUTRAL:
        return True
    if value not in NEUTRAL[name]:
        words = " or ".join(repr(value) for value in NEUTRAL[name] if not isinstance(value, list | dict))
        expected = f"expected {words}" if words else "leave it out"
        raise InvalidRequest(f"{name!r} is {bodies.short(value)}, which is not done here; {expected}")
    return False


def _listed(names: Sequence[str]) -> str:
    """Return field names for a header: whatever else a caller may have put there is counted, not copied."""
    plain = sorted(name for name in names if _PLAIN.fullmatch(name))[:_MOST_LISTED]
    more = len(names) - len(plain)
    return ", ".join([*plain, f"and {more} more"] if more else plain)


def check_model(named: str | None, *known: str) -> str:
    """Return the model that a request names, the first known one where it names none.

    Raises:
        UnknownModel: it is not served here.
    """
    if named is None or named == "default":
        return known[0]
    if named not in known:
        raise UnknownModel(f"the model {named!r:.200} does not exist here, expected {' or '.join(map(repr, known))}")
    return named


def models(names: Iterable[str], created: int) -> dict[str, Any]:
    """Return the list of models; `created` is when the service started, epoch seconds."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> dict[str, Any]:
    """Return one row of the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "chatkit"}


_TYPES: tuple[tuple[type[ChatkitError], str], ...] = (
    (InvalidRequest, "invalid_request_error"),
    (Unauthorized, "authentication_error"),
    (Forbidden, "permission_error"),
    (NotFound, "not_found_error"),
    (Conflict, "conflict_error"),
)


def error_body(error: Exception) -> dict[str, Any]:
    """Return an error in OpenAI's shape."""
    if not isinstance(error, ChatkitError):
        return {"error": {"message": "internal error", "type": "server_error", "param": None, "code": "internal"}}
    kind = next((name for known, name in _TYPES if isinstance(error, known)), "server_error")
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}


def _data(table: object) -> bytes:
    text = table if isinstance(table, str) else json.dumps(table, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
