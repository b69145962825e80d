"""The frames of the native door read back into the events of a turn: the inverse of `server/protocols/native.py`.

A service may run another version and an address may be anybody's, so every field is looked at before it is used.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from chatkit import errors
from chatkit.types import (
    ACTIONS,
    REFUSALS,
    Citation,
    Error,
    Event,
    FinishReason,
    ModerationResult,
    Passage,
    Replace,
    Reply,
    Retrieved,
    TextDelta,
    TurnStarted,
    Usage,
    Withheld,
)

# What a session or a request may be called; an id goes back into commands that people copy.
_ID = re.compile(r"[A-Za-z0-9._~:@-]{1,128}")


class BadFrame(ValueError):
    """An answer has the wrong shape: no chatkit, or one of another version."""


def event_of(frame: object) -> Event:
    """Return the event that a frame holds.

    Raises:
        BadFrame: the frame is none of the native door's.
    """
    table = _table(frame)
    match table.get("event"):
        case "start":
            return TurnStarted(_id(table, "session_id"), _id(table, "request_id"))
        case "sources":
            return Retrieved(_passages(table))
        case "delta":
            return TextDelta(_text(table, "text"))
        case "replace":
            return Replace(_text(table, "text"), _optional_text(table, "label"))
        case "done":
            return reply_of(table)
        case "error":
            return Error(error_of(table))
    raise BadFrame(f"event {table.get('event')!r:.40}")


def reply_of(table: Mapping[str, Any]) -> Reply:
    """Return the reply that a whole answer, or the last frame of a stream, holds.

    Raises:
        BadFrame: a field is missing or of another type.
    """
    usage, moderation = _table(table.get("usage")), _table(table.get("moderation"))
    reason: FinishReason = table.get("finish_reason", "")
    if reason not in get_args(FinishReason):
        raise BadFrame(f"finish_reason {reason!r:.40}")
    return Reply(
        text=_text(table, "outputs"),
        session_id=_id(table, "session_id"),
        request_id=_id(table, "request_id"),
        seq=_number(table, "seq"),
        finish_reason=reason,
        passages=_passages(table),
        citations=tuple(_citation(_table(one)) for one in _list(table, "citations")),
        usage=Usage(_number(usage, "prompt_tokens"), _number(usage, "completion_tokens")),
        timings=_numbers(table, "timings"),
        moderation_input=_verdict(moderation.get("input")),
        moderation_output=_verdict(moderation.get("output")),
        dropped_turns=_number(table, "dropped_turns"),
        dropped_passages=_number(table, "dropped_passages"),
        withheld=tuple(_withheld(_table(one)) for one in _list(table, "withheld")),
        feedback=_text(moderation, "feedback", ""),
        replayed=table.get("replayed") is True,
    )


def error_of(body: object) -> errors.ChatkitError:
    """Return the error of the tree that `{"error": {"code", "message"}}` names.

    Raises:
        BadFrame: it is no such object.
    """
    told = _table(_table(body).get("error"))
    code, message = _text(told, "code"), _text(told, "message")
    known = (kind for kind in _tree(errors.ChatkitError) if kind.__init__ is errors.ChatkitError.__init__)
    return next((kind for kind in known if kind.code == code), errors.ChatkitError)(message)


def _tree(kind: type[errors.ChatkitError]) -> Iterator[type[errors.ChatkitError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


def _verdict(value: object) -> ModerationResult | None:
    if value is None:
        return None
    table = _table(value)
    action = table.get("action")
    if action not in ACTIONS:
        raise BadFrame(f"action {action!r:.40}")
    return ModerationResult(
        flagged=action in REFUSALS,
        action=action,
        label=_optional_text(table, "label"),
        category=_optional_text(table, "category"),
        scores=_numbers(table, "scores"),
        levels=_numbers(table, "levels"),
        unavailable=table.get("unavailable") is True,
        model=_text(table, "model", ""),
        version=_text(table, "version", ""),
    )


def _passages(table: Mapping[str, Any]) -> tuple[Passage, ...]:
    sources = table.get("sources")
    if not isinstance(sources, list):
        raise BadFrame(f"sources {sources!r:.40}")
    return tuple(_passage(_table(source)) for source in sources)


def _withheld(told: Mapping[str, Any]) -> Withheld:
    action = told.get("action")
    if action not in ("dropped", "quoted"):
        raise BadFrame(f"withheld action {action!r:.40}")
    return Withheld(
        passage_id=_text(told, "id"),
        action=action,
        category=_optional_text(told, "category"),
        label=_optional_text(told, "label"),
        unavailable=told.get("unavailable") is True,
    )


def _citation(told: Mapping[str, Any]) -> Citation:
    sources = _list(told, "sources")
    return Citation(
        start=_number(told, "start"),
        end=_number(told, "end"),
        passage_ids=tuple(_text({"sources": one}, "sources") for one in sources),
        score=_real(told, "score"),
        supported=told.get("supported") is True,
    )


def _passage(source: Mapping[str, Any]) -> Passage:
    return Passage(
        id=_text(source, "id"),
        text=_text(source, "text", ""),
        title=_text(source, "title", ""),
        source=_text(source, "source", ""),
        section=_text(source, "section", ""),
        start=_number(source, "start"),
        end=_number(source, "end"),
        score=_real(source, "score"),
        page=_number(source, "page"),
        document=_text(source, "document", ""),
    )


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadFrame(f"{value!r:.40}, expected an object")
    return value


def _list(table: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list; an empty one where there is none, as from a service of an earlier version."""
    value = table.get(name, [])
    if not isinstance(value, list):
        raise BadFrame(f"{name} {value!r:.40}, expected a list")
    return value


def _text(table: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = table.get(name, default)
    if not isinstance(value, str):
        raise BadFrame(f"{name} {value!r:.40}, expected text")
    return value


def _optional_text(table: Mapping[str, Any], name: str) -> str | None:
    return None if table.get(name) is None else _text(table, name)


def _number(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadFrame(f"{name} {value!r:.40}, expected a whole number")
    return value


def _real(table: Mapping[str, Any], name: str) -> float:
    value = table.get(name, 0.0)
    # Python's JSON reads NaN, Infinity and any number of digits; comparing takes them all, converting does not.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise BadFrame(f"{name} {value!r:.40}, expected a finite number")
    return float(value)


def _numbers(table: Mapping[str, Any], name: str) -> dict[str, float]:
    values = _table(table.get(name, {}))
    return {key: _real(values, key) for key in values}


def _id(table: Mapping[str, Any], name: str) -> str:
    value = _text(table, name)
    if not _ID.fullmatch(value):
        raise BadFrame(f"{name} {value!r:.40}, expected letters, digits or any of ._~:@-")
    return value
