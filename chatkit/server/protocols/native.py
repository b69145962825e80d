"""chatkit's own door, `POST /invocations`: the OpenChatKit sample's shape, its schema closed, its answer wider."""

import json
from collections.abc import Mapping
from typing import Any, Never

from pydantic import BaseModel, ConfigDict, ValidationError

from chatkit.errors import InvalidRequest
from chatkit.server.sse import JSON_LINES, SSE
from chatkit.service import new_request_id
from chatkit.types import (
    ChatRequest,
    Event,
    ModerationResult,
    Owner,
    Passage,
    Replace,
    Reply,
    RetrievalOptions,
    Retrieved,
    SamplingParams,
    TextDelta,
    TurnStarted,
)


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    session_id: str | None = None
    request_id: str | None = None
    no_retrieval: bool = False
    stream: bool = False
    k: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: str
    parameters: _Parameters = _Parameters()
    stream: bool = False


class Invocation:
    """One parsed call.

    Attributes:
        request: the turn asked for.
        stream: whether the answer is to be streamed, and `media_type` how.
    """

    def __init__(self, raw: bytes, owner: Owner, accept: str, *, max_new_tokens: int, k: int) -> None:
        body = _parse(raw)
        given = body.parameters
        self.stream = body.stream or given.stream
        self.media_type = SSE if SSE in accept else JSON_LINES
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        sampling: dict[str, Any] = {n: getattr(given, n) for n in names if getattr(given, n) is not None}
        tokens = max_new_tokens if given.max_new_tokens is None else given.max_new_tokens
        self.request = ChatRequest(
            text=body.inputs,
            request_id=new_request_id() if given.request_id is None else given.request_id,
            owner=owner,
            session_id=given.session_id,
            client_request_id=given.request_id is not None,
            sampling=SamplingParams(max_new_tokens=tokens, stop_words=tuple(given.stop or ()), **sampling),
            retrieval=RetrievalOptions(enabled=not given.no_retrieval, k=k if given.k is None else given.k),
        )


def _parse(raw: bytes) -> _Body:
    """Read a body.

    Raises:
        InvalidRequest: naming the first thing that is wrong.
    """
    try:
        table = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8: byte {raw[error.start]:#04x} at {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise InvalidRequest("the body holds a number of thousands of digits, expected one in range") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply, expected an object with `inputs`") from None
    if not isinstance(table, dict):
        raise InvalidRequest(f'the body is {_short(table)}, expected an object such as {{"inputs": "Hello"}}')
    try:
        return _Body.model_validate(table)
    except ValidationError as error:
        raise InvalidRequest(_explain(error)) from None


def _no_constant(name: str) -> Never:
    raise InvalidRequest(f"the body holds {name}, which is no JSON number; expected a finite one")


def _explain(error: ValidationError) -> str:
    """Return the first fault in one line: the field, its value and what was expected."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:80]
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    match first["type"]:
        case "missing":
            return f'{field!r} is missing, expected e.g. {{"inputs": "Hello"}}{more}'
        case "extra_forbidden":
            known = _Parameters if field.startswith("parameters.") else _Body
            return f"{field!r} is not known; known here: {', '.join(known.model_fields)}{more}"
    expected = first["msg"].removeprefix("Input should be ")
    return f"{field!r} is {_short(first['input'])}, expected {expected}{more}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def answer(reply: Reply) -> dict[str, Any]:
    """Return the JSON answer of a turn."""
    return {
        "outputs": reply.text,
        "session_id": reply.session_id,
        "request_id": reply.request_id,
        "finish_reason": reply.finish_reason,
        "moderation": {
            "flagged": reply.finish_reason == "content_filter",
            "input": _verdict(reply.moderation_input),
            "output": _verdict(reply.moderation_output),
        },
        "sources": [_source(passage) for passage in reply.passages],
        "usage": {
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "total_tokens": reply.usage.prompt_tokens + reply.usage.completion_tokens,
        },
        "timings": reply.timings,
        "dropped_turns": reply.dropped_turns,
        "replayed": reply.replayed,
    }


def event_fields(event: Event) -> dict[str, Any]:
    """Return a turn's event as a frame of the stream; errors are framed by the app, which knows their status."""
    match event:
        case TurnStarted(session_id, request_id):
            return {"event": "start", "session_id": session_id, "request_id": request_id}
        case Retrieved(passages):
            return {"event": "sources", "sources": [_source(passage) for passage in passages]}
        case TextDelta(text):
            return {"event": "delta", "text": text}
        case Replace(text, label):
            return {"event": "replace", "text": text, "label": label}
        case Reply():
            return {"event": "done", **answer(event)}
    raise TypeError(f"{event!r} has no frame")


def _verdict(result: ModerationResult | None) -> Mapping[str, Any] | None:
    if result is None:
        return None
    return {
        "label": result.label,
        "action": result.action,
        "category": result.category,
        "scores": {name: round(score, 4) for name, score in result.scores.items()},
        "unavailable": result.unavailable,
        "model": result.model,
    }


def _source(passage: Passage) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": passage.id,
        "title": passage.title,
        "section": passage.section,
        "source": passage.source,
        "start": passage.start,
        "end": passage.end,
        "score": round(passage.score, 4),
    }
    if passage.text:
        fields["text"] = passage.text
    return fields
