"""`chatkit sessions import`: lines of an export gathered to sessions, each written once all of its lines are there."""

import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from chatkit.cli._sessions_store import turns_of
from chatkit.errors import ChatkitError, Conflict, InvalidRequest, NotFound
from chatkit.session_lines import Line, line_in
from chatkit.types import Owner, Turn

if TYPE_CHECKING:
    from chatkit.wiring import Store

# A turn is at most some hundred KiB, six times that where every character is an escape. Bytes.
_LONGEST = 16 * 1024 * 1024
_THERE = "it is there already"


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one session, or of a line that belongs to none.

    Attributes:
        session_id: None for such a line.
        line: where its lines begin in the file.
        why: why it was not imported, the line that is wrong included.
        error: of a refused one.
    """

    session_id: str | None
    file: str
    line: int
    turns: int
    status: Literal["imported", "skipped", "refused"]
    why: str = ""
    error: ChatkitError | None = None


@dataclass(slots=True)
class _Gathered:
    """The lines of one session as they come.

    Attributes:
        line: the first of them.
        turns: those that were right, numbered from 1 without holes.
        wrong: what is wrong with the first one that was not.
    """

    session_id: str | None
    line: int
    total: int = 0
    expires_at: int | None = None
    turns: list[Turn] = field(default_factory=list)
    wrong: str = ""

    def add(self, number: int, line: Line) -> None:
        """Take the line that follows, or note what is wrong with it."""
        turn, expected = line.turn, len(self.turns) + 1
        if (line.turns, line.expires_at) != (self.total, self.expires_at):
            problem = f"turns or expires_at is not that of line {self.line}, expected one export of the session"
        elif turn.seq != expected:
            problem = f"it has turn {turn.seq} where turn {expected} is expected; the lines of a session stand together"
        elif turn.replaces is not None and turn.replaces >= turn.seq:
            problem = f"turn {turn.seq} replaces turn {turn.replaces}, expected an older one"
        elif turn.status == "pending":
            problem = f"turn {turn.seq} was being answered when it was exported; export the session again now"
        else:
            self.turns.append(turn)
            return
        self.refuse(number, problem)

    def refuse(self, number: int, problem: str) -> None:
        """Note what is wrong, unless something was before."""
        self.wrong = self.wrong or f"line {number}: {problem}"

    @property
    def whole(self) -> bool:
        """Whether every turn is there."""
        return not self.wrong and len(self.turns) == self.total

    def ended(self) -> "_Gathered":
        """Return itself where no more lines come."""
        if not self.whole:
            self.refuse(self.line, f"{len(self.turns)} of its {self.total} turns are in the file, expected all")
        return self


@contextmanager
def opened(names: Sequence[str]) -> Iterator[dict[str, BinaryIO]]:
    """Open every file before anything is written, `-` being standard input; closed with the block.

    Raises:
        BadParameter: one cannot be opened.
    """
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name in names:
            try:
                if name == "-":
                    files["standard input"] = sys.stdin.buffer
                else:
                    files[name] = stack.enter_context(open(name, "rb"))
            except OSError as error:
                raise click.BadParameter(f"{name!r}: {error.strerror}.") from None
        yield files


async def import_file(
    store: "Store", owner: Owner, name: str, file: BinaryIO, *, skip_existing: bool
) -> AsyncIterator[Row]:
    """Write the sessions of a file for an owner, and yield what became of each.

    Args:
        name: of the file, for the rows.
        skip_existing: a session that the owner has already is left as it is, and no error.

    Raises:
        StoreFailed: the store did not acknowledge; what was yielded before is written.
    """
    for gathered in _gather(file):
        session_id, turns = gathered.session_id, gathered.turns
        skipped = ""
        error: ChatkitError | None = None
        if gathered.wrong or session_id is None:
            error = InvalidRequest(f"{name}, {gathered.wrong}")
        elif gathered.expires_at is not None and gathered.expires_at <= time.time():
            skipped = "it has expired"
        else:
            skipped, error = await _written(store, owner, gathered, skip_existing=skip_existing)
            error = error and type(error)(f"{name}, line {gathered.line}: {error}")
        if error is not None:
            yield Row(session_id, name, gathered.line, len(turns), "refused", str(error), error)
        else:
            status: Literal["skipped", "imported"] = "skipped" if skipped else "imported"
            yield Row(session_id, name, gathered.line, len(turns), status, skipped)


async def _written(
    store: "Store", owner: Owner, gathered: _Gathered, *, skip_existing: bool
) -> tuple[str, ChatkitError | None]:
    """Write a session and return why it was skipped or refused, as far as it was."""
    session_id = gathered.session_id or ""
    try:
        await store.restore(owner, session_id, gathered.turns, expires_at=gathered.expires_at)
    except Conflict as error:
        there = await _stored(store, owner, session_id) if skip_existing else None
        if there is None:
            return "", error
        return (_THERE if there == gathered.turns else f"{_THERE}, with other turns"), None
    except InvalidRequest as error:
        return "", error
    return "", None


async def _stored(store: "Store", owner: Owner, session_id: str) -> list[Turn] | None:
    try:
        return [turn async for turn in turns_of(store, owner, session_id)]
    except NotFound:
        return None


def _gather(file: BinaryIO) -> Iterator[_Gathered]:
    """Yield sessions as soon as they are whole, and what is none."""
    open_: _Gathered | None = None
    for number, raw in _lines(file):
        try:
            if raw is None:
                raise InvalidRequest(f"it has more than {_LONGEST} bytes, which no turn has")
            line = line_in(raw)
        except InvalidRequest as error:
            if open_ is None:
                yield _Gathered(None, number, wrong=f"line {number}: {error}")
            else:
                open_.refuse(number, str(error))
            continue
        if open_ is not None and open_.session_id != line.session_id:
            yield open_.ended()
            open_ = None
        if open_ is None:
            open_ = _Gathered(line.session_id, number, line.turns, line.expires_at)
        open_.add(number, line)
        if open_.whole:
            yield open_
            open_ = None
    if open_ is not None:
        yield open_.ended()


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines that are not blank, with their numbers; None in place of one that is too long to be kept."""
    number = 0
    while raw := file.readline(_LONGEST):
        number += 1
        if len(raw) == _LONGEST and not raw.endswith(b"\n"):
            while (more := file.readline(_LONGEST)) and not more.endswith(b"\n"):
                pass
            yield number, None
        elif raw.strip():
            yield number, raw
