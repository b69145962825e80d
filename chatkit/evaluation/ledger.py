"""What clients were told, and whether the store agrees: every acknowledged turn once, whole and in its place."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatkit.errors import NotFound
from chatkit.protocols import SessionArchive
from chatkit.types import Owner, Turn

# Turns and sessions that are read at once.
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Asked:
    """A message that a client wants one answer to, however often it sends it.

    Attributes:
        session_id: None opens a session with an id that the server makes.
        refused: the check refuses it, so its turn is stored as blocked and without text.
        replaces: number of the turn whose place it takes.
        made_at: before it was first sent, monotonic seconds.
    """

    request_id: str
    session_id: str | None
    text: str
    stream: bool = False
    refused: bool = False
    replaces: int | None = None
    made_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An answer that reached the client whole: from then on the turn must not be lost.

    Attributes:
        at: when it was read to its end, monotonic seconds.
    """

    request_id: str
    session_id: str
    seq: int
    answer: str
    at: float = field(default_factory=time.monotonic)


class Ledger:
    """What was asked and what was acknowledged; any thread may write.

    Attributes:
        refusals: the last words that the service had for a request in place of an answer.
        asked_again: how many requests were sent once more in the end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, Asked] = {}
        self._acknowledged: list[Acknowledged] = []
        self._known: set[str] = set()
        self._again: set[str] = set()
        self.refusals: dict[str, str] = {}
        self.asked_again = 0

    def ask(self, asked: Asked) -> Asked:
        """Note a message before it is sent; of one that several send, the first counts."""
        with self._lock:
            known = self._asked.get(asked.request_id)
            if known is None or asked.made_at < known.made_at:
                self._asked[asked.request_id] = asked
        return asked

    def acknowledge(self, answer: Acknowledged) -> None:
        """Note an answer, of a repeated request too."""
        with self._lock:
            self._acknowledged.append(answer)
            self._known.add(answer.request_id)
            self._again.discard(answer.request_id)

    def ask_again(self, request_id: str) -> None:
        """Note that a request is sent once more although it was answered: it counts as unanswered until it is again."""
        with self._lock:
            self._again.add(request_id)
            self.asked_again += 1

    @property
    def acknowledged(self) -> int:
        """How many requests were answered, each counted once."""
        return len(self._known)

    @property
    def answers(self) -> list[Acknowledged]:
        """Every answer in the order in which it came."""
        with self._lock:
            return list(self._acknowledged)

    @property
    def asked(self) -> dict[str, Asked]:
        """Every message by its request id."""
        with self._lock:
            return dict(self._asked)

    def unanswered(self) -> list[str]:
        """Return the ids of requests that never got an answer, or none when they were sent again."""
        return [name for name in self.asked if name not in self._known or name in self._again]

    def sessions(self) -> list[str]:
        """Return every session that was asked for or answered from."""
        named = [asked.session_id for asked in self.asked.values() if asked.session_id is not None]
        return sorted({*named, *(answer.session_id for answer in self.answers)})


@dataclass(slots=True)
class Findings:
    """Every way in which the store does not hold what was acknowledged, one line each.

    Attributes:
        lost: acknowledged, and not stored as it was acknowledged.
        duplicated: one request with two turns or two answers, or one number with two turns.
        holes: numbers below the newest that no turn has.
        reordered: sent after another was acknowledged, and numbered before it; or read back out of order.
        unknown: stored, and asked by nobody.
    """

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, float]:
        """Return how many of each there are."""
        return {name: len(getattr(self, name)) for name in self.__slots__}

    def lines(self) -> list[str]:
        """Return all of them."""
        return [f"{name}: {line}" for name in self.__slots__ for line in getattr(self, name)]


def compare(ledger: Ledger, stored: Mapping[str, Sequence[Turn]]) -> Findings:
    """Compare what was acknowledged with what is stored, by session and in the order in which the store gives it."""
    findings = Findings()
    asked, answers = ledger.asked, ledger.answers
    places: dict[str, list[tuple[str, Turn]]] = defaultdict(list)
    for session_id, turns in stored.items():
        for turn in turns:
            places[turn.request_id].append((session_id, turn))
            if turn.request_id not in asked or _kept(asked[turn.request_id]) != turn.user:
                findings.unknown.append(f"turn {turn.seq} of {session_id} by request {turn.request_id}")
        _check_numbers(findings, session_id, [turn.seq for turn in turns])
    for request_id, found in places.items():
        if len(found) > 1:
            where = ", ".join(f"{session_id} {turn.seq}" for session_id, turn in found)
            findings.duplicated.append(f"request {request_id} is stored as {where}")
    first: dict[str, Acknowledged] = {}
    for answer in answers:
        before = first.setdefault(answer.request_id, answer)
        if (before.session_id, before.seq, before.answer) != (answer.session_id, answer.seq, answer.answer):
            findings.duplicated.append(f"request {answer.request_id} was answered as {before} and as {answer}")
    for answer in first.values():
        own = asked[answer.request_id]
        if not any(_holds(answer, own, *place) for place in places[answer.request_id]):
            findings.lost.append(f"turn {answer.seq} of {answer.session_id} by request {answer.request_id}")
    _check_order(findings, asked, first.values())
    return findings


def _kept(asked: Asked) -> str:
    """Return what is stored of a message: nothing of one that is refused."""
    return "" if asked.refused else asked.text


def _holds(answer: Acknowledged, asked: Asked, session_id: str, turn: Turn) -> bool:
    ended = ("blocked", "", "") if asked.refused else ("complete", asked.text, answer.answer)
    told = (answer.session_id, answer.seq, asked.replaces, len(asked.text), *ended)
    there = (session_id, turn.seq, turn.replaces, turn.user_length, turn.status, turn.user, turn.assistant)
    return there == told


def _check_numbers(findings: Findings, session_id: str, seqs: Sequence[int]) -> None:
    if list(seqs) != sorted(seqs):
        findings.reordered.append(f"{session_id} is read back as {list(seqs)[:20]} …")
    findings.duplicated += [
        f"turn {seq} of {session_id} is there {n} times" for seq, n in Counter(seqs).items() if n > 1
    ]
    missing = set(range(1, max(seqs, default=0) + 1)) - set(seqs)
    findings.holes += [f"{session_id} has no turn {seq}" for seq in sorted(missing)]


def _check_order(findings: Findings, asked: Mapping[str, Asked], answers: Iterable[Acknowledged]) -> None:
    """Find turns numbered before one that was acknowledged when they had not been sent yet."""
    by_session: dict[str, list[Acknowledged]] = defaultdict(list)
    for answer in answers:
        by_session[answer.session_id].append(answer)
    for session_id, own in by_session.items():
        ended = sorted(own, key=lambda answer: answer.at, reverse=True)
        newest = 0
        for answer in sorted(own, key=lambda answer: asked[answer.request_id].made_at):
            while ended and ended[-1].at < asked[answer.request_id].made_at:
                newest = max(newest, ended.pop().seq)
            if answer.seq <= newest:
                findings.reordered.append(f"turn {answer.seq} of {session_id} was sent after turn {newest} was stored")


async def read_back(
    store: SessionArchive, owner: Owner, ledger: Ledger, prefix: str, *, since: float
) -> dict[str, list[Turn]]:
    """Return what is stored of every session that the ledger names, and of others that hold requests of `prefix`.

    Args:
        since: when the first of them can have been opened, epoch seconds.
    """
    stored = {session_id: await _turns(store, owner, session_id) for session_id in ledger.sessions()}
    for session_id in await _opened_since(store, owner, since):
        if session_id not in stored:
            turns = await _turns(store, owner, session_id)
            if any(turn.request_id.startswith(prefix) for turn in turns):
                stored[session_id] = turns
    return stored


async def _turns(store: SessionArchive, owner: Owner, session_id: str) -> list[Turn]:
    turns: list[Turn] = []
    after = 0
    try:
        while page := await store.page(owner, session_id, limit=_PAGE, after=after):
            turns += page
            if page[-1].seq <= after:
                break  # and would begin so without end; it is found as turns that are there twice
            after = page[-1].seq
    except NotFound:
        pass  # what was acknowledged of it is lost, and is found as that
    return turns


async def _opened_since(store: SessionArchive, owner: Owner, since: float) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.sessions(owner, limit=_PAGE, cursor=cursor)
        found += [head.session_id for head in page.sessions if head.created_at >= since]
        cursor = page.cursor
        if cursor is None or page.sessions[-1].created_at < since:
            return found


def figures_of(ledger: Ledger, findings: Findings) -> dict[str, Any]:
    """Return the named figures that every measurement with a ledger has."""
    return {"acknowledged": ledger.acknowledged, **findings.counts()}
