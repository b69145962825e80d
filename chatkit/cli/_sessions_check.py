"""`chatkit sessions check`: whether what is stored can be read, every turn of it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from chatkit.cli._sessions_store import heads_of, turns_of
from chatkit.errors import InvalidRequest, NotFound, StoreFailed
from chatkit.session_lines import Line, Repeats, fields_of, line_in
from chatkit.types import Owner

if TYPE_CHECKING:
    from chatkit.protocols import SessionHead
    from chatkit.wiring import Store


@dataclass(slots=True)
class Looked:
    """What was looked through, and what is wrong with it."""

    sessions: int = 0
    turns: int = 0
    problems: list[str] = field(default_factory=list)


async def look_through(store: "Store", owner: Owner) -> Looked:
    """Read every session of an owner, and let the store say what else is wrong: a file as a whole, a table of them.

    Raises:
        StoreFailed: the owner's sessions cannot be listed.
    """
    looked = Looked()
    check = getattr(store, "check", None)  # a store that is no file of its own has none
    said = () if check is None else await check()
    looked.problems += said
    check_owner = getattr(store, "check_owner", None)
    looked.problems += () if check_owner is None else await check_owner(owner)
    async for head in heads_of(store, owner):
        await _look_at(store, owner, head, looked, said=any(repr(head.session_id) in problem for problem in said))
    return looked


async def _look_at(store: "Store", owner: Owner, head: "SessionHead", looked: Looked, *, said: bool) -> None:
    """Read one session: its numbers have no hole, each turn is one that an import would take and of another request.

    Args:
        said: the store itself has named what is wrong with it.
    """
    named = f"session {head.session_id!r}"
    found: list[int] = []
    doubled: list[str] = []
    repeats = Repeats()
    try:
        async for turn in turns_of(store, owner, head.session_id):
            found.append(turn.seq)
            try:
                line_in(json.dumps(fields_of(Line(head.session_id, max(head.turns, 1), None, turn))))
            except InvalidRequest as error:
                looked.problems.append(f"{named}, turn {turn.seq}: {error}")
                continue
            before = repeats.before(turn)
            if before is not None:
                doubled.append(f"{named}: turns {before} and {turn.seq} have one request id")
    except NotFound:
        return  # removed meanwhile
    except StoreFailed as error:
        looked.problems.append(f"{named} cannot be read: {error}")
    else:
        last = max([head.turns, *found])  # there may be more by now than when it was listed
        looked.problems += [] if said else doubled
        if not said and head.damaged:
            looked.problems.append(f"{named}: its own entry cannot be read, so turns at its end may be missing unseen")
        if not said and (missing := sorted({*range(1, last + 1)} - {*found})):
            looked.problems.append(f"{named}: {_numbers(missing)} of its {last} turns cannot be read")
    looked.sessions += 1
    looked.turns += len(found)


def _numbers(seqs: Iterable[int]) -> str:
    """Return numbers in words, neighbours as one range."""
    runs = [[seq for _, seq in run] for _, run in groupby(enumerate(seqs), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
