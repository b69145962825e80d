"""chatkit's own door, `POST /invocations`: the OpenChatKit sample's shape, its schema closed, its answer wider."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from chatkit.errors import ChatkitError
from chatkit.server.callers import Caller
from chatkit.server.protocols import Defaults, bodies
from chatkit.server.sse import JSON_LINES, SSE, frame
from chatkit.service import new_request_id
from chatkit.types import (
    ChatRequest,
    Citation,
    Error,
    Event,
    ModerationResult,
    Passage,
    Replace,
    Reply,
    Retrieved,
    SamplingParams,
    TextDelta,
    TurnStarted,
    Withheld,
)


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    session_id: str | None = None
    request_id: str | None = None
    no_retrieval: bool = False
    stream: bool = False
    k: bodies.Whole | None = None
    index: str | None = None
    where: dict[str, str] | None = None
    rerank: bool | None = None
    neighbours: bodies.Whole | None = None
    max_new_tokens: bodies.Whole | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: bodies.Whole | None = None
    repetition_penalty: float | None = None
    seed: bodies.Whole | None = None
    stop: list[str] | None = None
    replaces: bodies.Whole | None = None
    user: str | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: str
    parameters: _Parameters = _Parameters()
    stream: bool = False


class Invocation:
    """One call of this door; see `protocols.Call`."""

    def __init__(self, raw: bytes, caller: Caller, headers: Mapping[str, str], defaults: Defaults) -> None:
        body = bodies.read(raw, _Body, example='{"inputs": "Hello"}')
        given = body.parameters
        self.stream = body.stream or given.stream
        self.media_type = SSE if SSE in headers.get("accept", "") else JSON_LINES
        self.headers: Mapping[str, str] = {}
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        sampling: dict[str, Any] = {n: getattr(given, n) for n in names if getattr(given, n) is not None}
        tokens = defaults.max_new_tokens if given.max_new_tokens is None else given.max_new_tokens
        self.request = ChatRequest(
            text=body.inputs,
            request_id=new_request_id() if given.request_id is None else given.request_id,
            owner=caller.acting_for(given.user, "parameters.user").owner,
            session_id=given.session_id,
            client_request_id=given.request_id is not None,
            replaces=given.replaces,
            sampling=SamplingParams(max_new_tokens=tokens, stop_words=tuple(given.stop or ()), **sampling),
            retrieval=bodies.retrieval(given, defaults.k),
        )

    def answer(self, reply: Reply) -> dict[str, Any]:
        """Return the JSON answer."""
        return answer(reply)

    def frames(self, event: Event) -> bytes:
        """Return an event as one frame."""
        return frame(event_fields(event), self.media_type)


def answer(reply: Reply) -> dict[str, Any]:
    """Return the JSON answer of a turn."""
    return {
        "outputs": reply.text,
        "session_id": reply.session_id,
        "request_id": reply.request_id,
        "seq": reply.seq,
        "finish_reason": reply.finish_reason,
        "moderation": {
            "flagged": reply.finish_reason == "content_filter",
            "input": _verdict(reply.moderation_input),
            "output": _verdict(reply.moderation_output),
            **({"feedback": reply.feedback} if reply.feedback else {}),
        },
        "sources": [source(passage) for passage in reply.passages],
        "citations": [citation(one) for one in reply.citations],
        "usage": {
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "total_tokens": reply.usage.prompt_tokens + reply.usage.completion_tokens,
        },
        "timings": reply.timings,
        "dropped_turns": reply.dropped_turns,
        "dropped_passages": reply.dropped_passages,
        "withheld": [withheld(one) for one in reply.withheld],
        "replayed": reply.replayed,
    }


def event_fields(event: Event) -> dict[str, Any]:
    """Return a turn's event as the fields of a frame."""
    match event:
        case TurnStarted(session_id, request_id):
            return {"event": "start", "session_id": session_id, "request_id": request_id}
        case Retrieved(passages):
            return {"event": "sources", "sources": [source(passage) for passage in passages]}
        case TextDelta(text):
            return {"event": "delta", "text": text}
        case Replace(text, label):
            return {"event": "replace", "text": text, "label": label}
        case Reply():
            return {"event": "done", **answer(event)}
        case Error(ChatkitError() as error):
            return {"event": "error", "error": {"code": error.code, "message": str(error)}}
        case Error():
            return {"event": "error", "error": {"code": "internal", "message": "internal error"}}
    raise TypeError(f"{event!r} has no frame")


def _verdict(result: ModerationResult | None) -> Mapping[str, Any] | None:
    if result is None:
        return None
    return {
        "label": result.label,
        "action": result.action,
        "category": result.category,
        "scores": {name: round(score, 4) for name, score in result.scores.items()},
        "levels": {label: round(level, 4) for label, level in result.levels.items()},
        "unavailable": result.unavailable,
        "model": result.model,
        "version": result.version,
    }


def withheld(one: Withheld) -> dict[str, Any]:
    """Return a passage that moderation kept back as answers show it."""
    return {
        "id": one.passage_id,
        "action": one.action,
        "category": one.category,
        "label": one.label,
        "unavailable": one.unavailable,
    }


def citation(one: Citation) -> dict[str, Any]:
    """Return a citation as answers show it."""
    return {
        "start": one.start,
        "end": one.end,
        "sources": list(one.passage_ids),
        "score": round(one.score, 4),
        "supported": one.supported,
    }


def source(passage: Passage) -> dict[str, Any]:
    """Return a passage as answers show it."""
    fields: dict[str, Any] = {
        "id": passage.id,
        "title": passage.title,
        "section": passage.section,
        "source": passage.source,
        "start": passage.start,
        "end": passage.end,
        "score": round(passage.score, 4),
    }
    if passage.page:
        fields["page"] = passage.page
    if passage.document:
        fields["document"] = passage.document
    if passage.text:
        fields["text"] = passage.text
    return fields
