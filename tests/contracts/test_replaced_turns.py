"""Said again or edited: what a replacing turn hides, on every store, and that nothing is lost."""

import pytest

from chatkit.errors import Conflict, InvalidRequest
from chatkit.protocols import Outcome
from chatkit.sessions import items
from tests.contracts.talking import OWNER, done, kept, new, talk, turn, visible

pytestmark = pytest.mark.anyio


async def test_a_replaced_turn_and_what_followed_it_are_hidden_from_the_start_and_kept(store) -> None:
    await talk(store, 3)
    ticket = (await store.accept(new("again", "r-4", replaces=2))).ticket
    assert await visible(store) == [1, 4]
    await store.finish(ticket, done("better"))
    assert await visible(store) == [1, 4]
    page = await store.page(OWNER, "my-session", limit=9)
    assert [(one.seq, one.replaces, one.assistant) for one in page] == [
        (1, None, "a-my-session-1"),
        (2, None, "a-my-session-2"),
        (3, None, "a-my-session-3"),
        (4, 2, "better"),
    ]
    await turn(store, "and then", "r-5")
    assert await visible(store) == [1, 4, 5]
    assert (await store.load(OWNER, "my-session", limit=9)).newest == 5


@pytest.mark.parametrize(
    "ended", [Outcome("aborted", "aborted", "hal"), Outcome("blocked", "content_filter", label="needs caution")]
)
async def test_what_was_hidden_shows_again_when_the_replacing_turn_ends_without_an_answer(store, ended) -> None:
    await talk(store, 3)
    ticket = (await store.accept(new("again", "r-4", replaces=2))).ticket
    assert await visible(store) == [1, 4]
    await store.finish(ticket, ended)
    assert await visible(store) == [1, 2, 3, 4]
    assert (await store.load(OWNER, "my-session", limit=9)).turns[-1].replaces == 2


async def test_a_refused_message_hides_nothing(store) -> None:
    await talk(store, 2)
    await store.accept(new("", "r-3", status="blocked", label="needs caution", replaces=1))
    assert await visible(store) == [1, 2, 3]


async def test_a_replacing_turn_that_nobody_finishes_hides_nothing_until_it_runs_again(store, clock) -> None:
    await talk(store, 3)
    await store.accept(new("again", "r-4", replaces=2))
    clock.now += items.LEASE_S + 1
    assert await visible(store) == [1, 2, 3, 4]
    again = (await store.accept(new("again", "r-4", replaces=2))).ticket
    assert (again.seq, again.attempt) == (4, 2)
    assert await visible(store) == [1, 4]
    await store.finish(again, done())
    assert await visible(store) == [1, 4]


async def test_replacing_turns_can_be_replaced(store) -> None:
    await talk(store, 3)
    await turn(store, "edited", "r-4", replaces=2)
    await turn(store, "next", "r-5")
    await turn(store, "edited once more", "r-6", replaces=4)
    assert await visible(store) == [1, 6]
    await turn(store, "the one before", "r-7", replaces=3)  # what it replaces was hidden already
    assert await visible(store) == [1, 7]
    await turn(store, "from the start", "r-8", replaces=1)
    assert await visible(store) == [8]
    assert await kept(store) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_older_turns_that_replace_further_back_keep_hiding(store) -> None:
    await talk(store, 4)
    await turn(store, "from the second", "r-5", replaces=2)
    await turn(store, "that one again", "r-6", replaces=5)
    assert await visible(store) == [1, 6]


@pytest.mark.parametrize("number", [-1, 0, 4, 99, 10**12])
async def test_a_number_that_the_session_does_not_have_is_invalid_and_stores_nothing(store, number) -> None:
    await talk(store, 3)
    with pytest.raises(InvalidRequest, match=f"replaces is {number}, .* it has turns 1 to 3"):
        await store.accept(new("again", "r-4", replaces=number))
    assert await kept(store) == [1, 2, 3]
    assert (await store.accept(new("again", "r-4"))).ticket.seq == 4


async def test_a_session_that_is_not_open_has_nothing_to_replace(store) -> None:
    for name in ("my-session", "s-new"):
        with pytest.raises(InvalidRequest, match=r"replaces is 1, .* it has none yet"):
            await store.accept(new(session_id=name, opens_session=name == "s-new", replaces=1))
    assert (await store.sessions(OWNER, limit=9)).sessions == ()


async def test_the_same_request_id_for_another_place_is_a_conflict(store) -> None:
    await talk(store, 3)
    await turn(store, "again", "r-4", replaces=2)
    for other in (1, 3, None):
        with pytest.raises(Conflict, match="'r-4' was used for another message"):
            await store.accept(new("again", "r-4", replaces=other))
    with pytest.raises(Conflict, match="was used for another message"):
        await store.accept(new("q-my-session-3", "r-my-session-3", replaces=1))
    repeat = (await store.accept(new("again", "r-4", replaces=2))).repeat
    assert (repeat.seq, repeat.replaces, repeat.assistant) == (4, 2, "Hi.")


async def test_the_limit_counts_what_is_visible_however_much_is_hidden_between(store) -> None:
    await talk(store, 3)
    for number in range(4, 45):
        await turn(store, "again", f"r-{number}", replaces=3 if number == 4 else number - 1)
    assert await visible(store, limit=9) == [1, 2, 44]
    assert await visible(store, limit=2) == [2, 44]
    assert await visible(store, limit=1) == [44]
