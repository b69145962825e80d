"""Reading, removing and restoring sessions while answers are lost at any request of theirs: the same end, no error."""

import asyncio

import pytest

from chatkit.errors import NotFound
from chatkit.protocols import NewTurn, Outcome
from chatkit.types import Owner
from tests.faults.proxy import Fault, Faults

pytestmark = pytest.mark.anyio
TURNS = 3


class Case:
    """One verb for an owner of its own, who has two sessions."""

    def __init__(self, word: str, beside) -> None:
        self.owner, self.word = Owner(user=word), word
        self.beside = beside

    async def prepare(self) -> None:
        for session in ("session-1", "session-2"):
            for number in range(1, TURNS + 1):
                new = NewTurn(self.owner, session, f"{session}-request-{number}", "Hello", 5, after=number - 1)
                ticket = (await self.beside.accept(new)).ticket
                await self.beside.finish(ticket, Outcome("complete", "stop", f"Answer {number}"))

    async def listed(self, store) -> set[tuple[str, int]]:
        return {(head.session_id, head.turns) for head in (await store.sessions(self.owner, limit=9)).sessions}

    async def requests_known(self) -> bool:
        """Whether the first session's first request is still known: sent again, it is replayed."""
        again = NewTurn(self.owner, "session-1", "session-1-request-1", "Hello", 5)
        return (await self.beside.accept(again)).repeat is not None


async def page(case, store) -> None:
    assert [turn.seq for turn in await store.page(case.owner, "session-1", limit=9)] == [1, 2, 3]


async def sessions(case, store) -> None:
    assert await case.listed(store) == {("session-1", TURNS), ("session-2", TURNS)}


async def delete(case, store) -> None:
    await store.delete(case.owner, "session-1")
    with pytest.raises(NotFound):
        await case.beside.page(case.owner, "session-1", limit=9)
    assert await case.listed(case.beside) == {("session-2", TURNS)}
    assert not await case.requests_known()


async def purge(case, store) -> None:
    assert await store.purge(case.owner, closed_s=0) == 2
    assert await case.listed(case.beside) == set()
    assert not await case.requests_known()


async def restore(case, store) -> None:
    turns = await case.beside.page(case.owner, "session-1", limit=9)
    await case.beside.delete(case.owner, "session-1")
    await store.restore(case.owner, "session-1", turns, expires_at=None)
    assert await case.beside.page(case.owner, "session-1", limit=9) == turns
    assert await case.requests_known()


@pytest.mark.parametrize(
    ("kind", "forwarded", "times"),
    [
        ("drop", True, 1),
        ("drop", False, 1),
        ("error", True, 1),
        ("throttle", False, 1),
        ("drop", True, 3),  # all of the SDK's own tries, so the store sends it again
        ("error", True, 3),
    ],
)
@pytest.mark.parametrize("verb", [page, sessions, delete, purge, restore], ids=lambda verb: verb.__name__)
async def test_a_fault_at_any_request_of_an_archives_verb_changes_nothing_about_its_end(
    verb, kind, forwarded, times, store, proxy, beside
) -> None:
    clean = Case("clean-owner-", beside)
    await clean.prepare()
    await verb(clean, store)
    count = len(proxy.faults.operations(clean.word))
    assert count >= 1
    cases = [Case(f"owner-{at}-", beside) for at in range(1, count + 1)]
    await asyncio.gather(*(case.prepare() for case in cases))
    proxy.faults = Faults(
        *(Fault(kind, forwarded, word=case.word, at=at, times=times) for at, case in enumerate(cases, 1))
    )
    await asyncio.gather(*(verb(case, store) for case in cases))
    assert proxy.faults.struck == times * count
