"""Turns for the tests of stores: accepted and finished in one line."""

from chatkit.protocols import NewTurn, Outcome
from chatkit.types import Owner, Usage

OWNER = Owner()


def new(text="Hello", request_id="request-1", session_id="my-session", owner=OWNER, **more) -> NewTurn:
    return NewTurn(owner, session_id, request_id, text, len(text), **more)


def done(text="Hi.") -> Outcome:
    return Outcome("complete", "stop", text, usage=Usage(3, 2))


async def turn(store, text="Hello", request_id="request-1", session_id="my-session", answer="Hi.", **more):
    """Accept and finish a turn; return its ticket."""
    accepted = await store.accept(new(text, request_id, session_id, **more))
    await store.finish(accepted.ticket, done(answer))
    return accepted.ticket


async def talk(store, count, session_id="my-session", *, first=1, owner=OWNER) -> None:
    """Have turns `first` and on; message, answer and request id say the session and the number."""
    for number in range(first, first + count):
        name = f"{session_id}-{number}"
        opens = number == 1 and session_id.startswith("s-")
        await turn(store, f"q-{name}", f"r-{name}", session_id, f"a-{name}", owner=owner, opens_session=opens)


async def visible(store, session_id="my-session", *, limit=99, owner=OWNER) -> list[int]:
    """Return the numbers of the turns that are part of the conversation."""
    return [kept.seq for kept in await store.load(owner, session_id, limit=limit)]


async def kept(store, session_id="my-session", *, owner=OWNER) -> list[int]:
    """Return the numbers of the turns that are stored."""
    return [one.seq for one in await store.page(owner, session_id, limit=999)]
