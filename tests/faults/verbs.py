"""The verbs of a turn, each in a session of its own that faults strike, and what is stored after."""

import time
from dataclasses import dataclass

from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import dynamodb
from chatkit.types import Owner, Usage

OWNER = Owner()
DONE = Outcome("complete", "stop", "Hi.", usage=Usage(3, 2))
# What calls may take in all; the store's own time-out ends each there, seven at once on a busy machine end later.
BUDGET_S = 2 * dynamodb._BUDGET_S
# What each verb sends when nothing goes wrong.
SENT = {
    "open": ["TransactWriteItems"],
    "accept": ["TransactWriteItems"],
    "stale": ["TransactWriteItems"] * 2,
    "finish": ["TransactWriteItems"],
    "load": ["Query"],
    "renew": ["UpdateItem"],
    "repeat": ["TransactWriteItems", "GetItem", "GetItem"],
    "takeover": ["TransactWriteItems", "GetItem", "GetItem", "TransactWriteItems"],
}


def new(word: str, number: int, after: int = 0) -> NewTurn:
    text = f"Message {number} in {word}"
    return NewTurn(OWNER, f"{word}-session", f"{word}-request-{number}", text, len(text), after=after)


async def talk(store, word: str, turns: int) -> None:
    for number in range(1, turns + 1):
        await store.finish((await store.accept(new(word, number, number - 1))).ticket, DONE)


@dataclass
class Verb:
    """A verb of the store: what is there before, what it is given, and the (seq, attempt) that its turn has after."""

    turns: int
    pending: bool
    act: object
    place: tuple[int, int]


async def open_session(store, word, _):
    return (await store.accept(new(word, 1))).ticket


async def accept_next(store, word, _):
    return (await store.accept(new(word, 3, after=2))).ticket


async def accept_with_an_old_number(store, word, _):
    return (await store.accept(new(word, 3, after=1))).ticket


async def finish(store, word, ticket):
    await store.finish(ticket, DONE)


async def load(store, word, _):
    assert (await store.load(OWNER, f"{word}-session", limit=9)).newest == 2


async def renew(store, word, ticket):
    await store.renew(ticket)


async def repeat(store, word, _):
    found = await store.accept(new(word, 2, after=2))
    assert (found.ticket, found.repeat.seq, found.repeat.assistant) == (None, 2, "Hi.")


async def take_over(store, word, _):
    return (await store.accept(new(word, 1, after=1))).ticket


VERBS = {
    "open": Verb(0, False, open_session, (1, 1)),
    "accept": Verb(2, False, accept_next, (3, 1)),
    "stale": Verb(2, False, accept_with_an_old_number, (3, 1)),
    "finish": Verb(0, True, finish, (1, 1)),
    "load": Verb(2, False, load, (2, 1)),
    "renew": Verb(0, True, renew, (1, 1)),
    "repeat": Verb(2, False, repeat, (2, 1)),
    "takeover": Verb(0, True, take_over, (1, 2)),
}


class Case:
    """One verb in a session of its own: `prepare`, `act`, and `check` what is stored."""

    def __init__(self, name: str, word: str, beside) -> None:
        self.verb, self.name, self.word = VERBS[name], name, word
        self._beside = beside
        self._ticket = None

    async def prepare(self) -> None:
        await talk(self._beside, self.word, self.verb.turns)
        if self.verb.pending:
            self._ticket = (await self._beside.accept(new(self.word, 1))).ticket

    async def act(self, store) -> float:
        """Do it, and return how long that took."""
        started = time.monotonic()
        given = await self.verb.act(store, self.word, self._ticket)
        spent = time.monotonic() - started
        self._ticket = given or self._ticket
        return spent

    async def check(self) -> None:
        """End what is pending and find every turn once, in order, under its one request."""
        seq, attempt = self.verb.place
        count = max(self.verb.turns, seq)
        if self._ticket is not None:
            assert (self._ticket.seq, self._ticket.attempt) == (seq, attempt), self.word
            if self.name != "finish":
                await self._beside.finish(self._ticket, DONE)
        turns = await self._beside.page(OWNER, f"{self.word}-session", limit=99)
        expected = [(n, f"{self.word}-request-{n}", attempt if n == seq else 1) for n in range(1, count + 1)]
        assert [(t.seq, t.request_id, t.attempt) for t in turns] == expected, self.word
        assert {(t.status, t.assistant) for t in turns} == {("complete", "Hi.")}, self.word
