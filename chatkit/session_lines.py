"""The lines of an export of sessions: one turn each, written with every field and read back with every field checked.

A line stands for itself: beside its turn it has the session's id, how many turns that has and when it ends, so that
whoever reads a file knows where a session is whole.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, get_args

from chatkit.errors import InvalidRequest
from chatkit.types import FinishReason, Passage, Turn, TurnStatus, Usage, check_id

# Above every number that is counted here, and below what a database or a double would round.
_MOST = 2**53
# Epoch seconds of the year 5138; the lists of sessions take no later one.
_LATEST = 1e11
_HALF = re.compile("[\ud800-\udfff]")

_Kind = tuple[Callable[[Any], bool], str]

# A request id is known for this long. Seconds; DESIGN §2.9.
REQUEST_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Line:
    """One turn of an export.

    Attributes:
        turns: how many turns the session has.
        expires_at: when the session ends, whole epoch seconds; None for one that is kept until it is removed.
    """

    session_id: str
    turns: int
    expires_at: int | None
    turn: Turn


def fields_of(line: Line) -> dict[str, Any]:
    """Return what is written of a turn."""
    return {
        "session_id": line.session_id,
        "turns": line.turns,
        "expires_at": line.expires_at,
        **turn_fields(line.turn),
    }


def turn_fields(turn: Turn) -> dict[str, Any]:
    """Return what is shown of a turn; what moderation said of a passage is not stored with it."""
    table = asdict(turn)
    for passage in table["passages"]:
        del passage["risks"]
    return table


def line_in(raw: bytes | str) -> Line:
    """Return the turn that a line holds.

    Raises:
        InvalidRequest: naming what is wrong with it.
    """
    table = _checked(_table(raw), _LINE, "")
    for name in ("session_id", "request_id"):
        check_id(name, table[name])
    usage = Usage(**_checked(table.pop("usage"), _USAGE, "usage: "))
    passages = tuple(Passage(**_checked(_whole_passage(row), _PASSAGE, "passages: ")) for row in table.pop("passages"))
    session = {name: table.pop(name) for name in ("session_id", "turns", "expires_at")}
    created_at = round(float(table.pop("created_at")), 3)
    turn = Turn(usage=usage, passages=passages, created_at=created_at, **table)
    _check_blocked(turn)
    return Line(turn=turn, **session)


def _check_blocked(turn: Turn) -> None:
    """Refuse a turn that says it was blocked and holds text: that must reach no disk."""
    if (turn.status == "blocked") != (turn.blocked is not None):
        raise InvalidRequest(f"blocked is {turn.blocked!r} where status is {turn.status!r}, expected both or neither")
    if turn.status == "blocked" and (turn.user or turn.assistant):
        raise InvalidRequest("a turn with status 'blocked' has text, expected its label and length alone")


def _whole_passage(row: Any) -> Any:
    """Return a passage with the fields that older versions did not export."""
    return {"page": 0, "document": ""} | row if isinstance(row, dict) else row


def _table(raw: bytes | str) -> dict[str, Any]:
    try:
        table = json.loads(raw, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        told = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"is not JSON ({error!s:.80})"
        raise InvalidRequest(f"it {told}, expected a line of chatkit sessions export") from None
    if not isinstance(table, dict):
        raise InvalidRequest(f"it is {table!r:.40}, expected a line of chatkit sessions export")
    return table


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _checked(table: Any, kinds: Mapping[str, _Kind], where: str) -> dict[str, Any]:
    """Return a table that has these fields and no other, each of its kind."""
    if not isinstance(table, dict):
        raise InvalidRequest(f"{where}{table!r:.40}, expected an object")
    missing = [name for name in kinds if name not in table]
    if missing:
        raise InvalidRequest(
            f"{where}{missing[0]} is missing, expected every field that chatkit sessions export writes"
        )
    for name, value in table.items():
        if name not in kinds:
            raise InvalidRequest(f"{where}{name!r:.40} is no field that chatkit sessions export writes")
        fits, expected = kinds[name]
        if not fits(value):
            raise InvalidRequest(f"{where}{name} is {value!r:.40}, expected {expected}")
    return dict(table)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _HALF.search(value)


def _is_moment(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _LATEST


def _whole(least: int) -> _Kind:
    return (lambda value: type(value) is int and least <= value < _MOST), f"a whole number from {least} on"


def _or_none(kind: _Kind) -> _Kind:
    fits, expected = kind
    return (lambda value: value is None or fits(value)), f"{expected}, or null"


def _one_of(*words: str) -> _Kind:
    return (lambda value: isinstance(value, str) and value in words), "one of " + ", ".join(words)


_TEXT: _Kind = (_is_text, "text of whole characters")
_SCORE: _Kind = ((lambda value: type(value) in (int, float) and math.isfinite(value)), "a finite number")
_LINE: dict[str, _Kind] = {
    "session_id": _TEXT,
    "turns": _whole(1),
    "expires_at": _or_none(((lambda value: type(value) is int and _is_moment(value)), "whole epoch seconds")),
    "seq": _whole(1),
    "request_id": _TEXT,
    "attempt": _whole(1),
    "status": _one_of(*get_args(TurnStatus)),
    "user": _TEXT,
    "assistant": _TEXT,
    "finish_reason": _or_none(_one_of(*get_args(FinishReason))),
    "blocked": _or_none(_one_of("input", "output")),
    "label": _or_none(_TEXT),
    "user_length": _whole(0),
    "usage": ((lambda value: isinstance(value, dict)), "an object"),
    "passages": ((lambda value: isinstance(value, list)), "a list"),
    "created_at": (_is_moment, "epoch seconds"),
    "replaces": _or_none(_whole(1)),
}
_USAGE = {"prompt_tokens": _whole(0), "completion_tokens": _whole(0)}
_PASSAGE: dict[str, _Kind] = {
    **dict.fromkeys(("id", "text", "title", "source", "section", "text_hash", "document"), _TEXT),
    **dict.fromkeys(("start", "end", "page"), _whole(0)),
    "score": _SCORE,
}


class Repeats:
    """Finds turns of one session that came of one request. Hand them in in order."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}

    def before(self, turn: Turn) -> int | None:
        """Take the next turn; return the number of one whose request it repeats, though that was still known then."""
        seq, created_at = self._seen.get(turn.request_id, (None, 0.0))
        self._seen[turn.request_id] = turn.seq, turn.created_at
        return seq if turn.created_at - created_at < REQUEST_S - 1 else None  # moments are rounded
