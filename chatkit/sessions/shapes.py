"""What an item must have to be read, and in which types: somebody else may have written a row over. Pure."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeGuard, get_args

from chatkit.protocols import SessionHead
from chatkit.sessions import items
from chatkit.types import Passage, TurnStatus

Item = dict[str, Any]

# Moments that a calendar of the years 1653 to 5138 can show. Epoch seconds.
_EARLIEST, _LATEST = -1e10, 1e11
# Scores of passages are of any measure, and finite.
_MOST = 1e300
# A passage is stored as six fields of where it is, a score, and what later versions have beside it.
_PLACE = (str, str, str, str, int, int)
_FIELDS = len(fields(Passage)) - 1  # all but its text


def is_sound(key: str, item: Item) -> bool:
    """Whether an item is a turn's, and of the number that its sort key says."""
    return is_turn(item) and items.turn_key(item["seq"]) == key


def is_turn(item: Item) -> bool:
    """Whether an item has what a turn must have, of whatever number that says it is."""
    return (
        all(map(_is_text, (item.get("request_id"), item.get("user"), item.get("assistant", ""))))
        and all(type(item.get(name)) is int for name in _COUNTS)
        and item.get("status") in get_args(TurnStatus)
        and is_moment(item.get("created_at"))
        and all(fits(item[name]) for name, fits in _OPTIONAL.items() if name in item)
    )


def is_moment(value: Any) -> TypeGuard[float]:
    """Whether a value is epoch seconds."""
    return type(value) in (int, float) and _EARLIEST < value < _LATEST


def head_of(partition: str, item: Item) -> SessionHead | None:
    """Return the row of a list that a session's own item holds; None for a damaged one."""
    version, created_at, ends = item.get("version"), item.get("created_at"), item.get("expires_at")
    if type(version) is not int or not is_moment(created_at) or not (is_moment(ends) or "expires_at" not in item):
        return None
    return SessionHead(items.session_id_of(partition), version, float(created_at), ends)


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is text that can be written as UTF-8; half a character cannot."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _are_passages(rows: Any) -> bool:
    return isinstance(rows, list) and all(_is_passage(row) for row in rows)


def _is_passage(row: Any) -> bool:
    if not isinstance(row, list) or not len(_PLACE) < len(row) <= _FIELDS:
        return False
    place, score, beside = row[: len(_PLACE)], row[len(_PLACE)], row[len(_PLACE) + 1 :]
    return _is_row(place, _PLACE) and _is_score(score) and all(_is_text(one) or type(one) is int for one in beside)


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and -_MOST < value < _MOST


def _is_row(row: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(row, list) and len(row) == len(kinds) and all(map(_is, row, kinds))


def _is(value: Any, kind: type) -> bool:
    return _is_text(value) if kind is str else type(value) is kind


_COUNTS = ("seq", "attempt", "user_length")
# What a turn may lack.
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("label", "finish_reason", "blocked"), lambda value: value is None or _is_text(value)),
    "replaces": lambda value: value is None or (type(value) is int and value >= 1),
    "lease": is_moment,
    "expires_at": is_moment,
    "usage": lambda value: _is_row(value, (int, int)),
    "passages": _are_passages,
}
