"""What every TurnStore does: the same suite over every store."""

import asyncio
import hashlib

import pytest

from chatkit.errors import Conflict, NotFound, TooLarge
from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions import items
from chatkit.types import Owner, Passage, Usage
from tests.contracts.talking import OWNER, done, new, turn

pytestmark = pytest.mark.anyio
LEASE = items.LEASE_S


async def test_turns_are_numbered_from_one_and_load_in_order_as_they_were_stored(store, clock) -> None:
    for number in range(1, 4):
        clock.now += 1
        ticket = await turn(store, f"q{number}", f"request-{number}", answer=f"a{number}")
        assert (ticket.seq, ticket.attempt) == (number, 1)
    turns = (await store.load(OWNER, "my-session", limit=10)).turns
    assert [(t.seq, t.user, t.assistant, t.status, t.created_at) for t in turns] == [
        (1, "q1", "a1", "complete", 1001.0),
        (2, "q2", "a2", "complete", 1002.0),
        (3, "q3", "a3", "complete", 1003.0),
    ]
    assert (turns[0].usage, turns[0].finish_reason, turns[0].user_length) == (Usage(3, 2), "stop", 2)


async def test_order_never_depends_on_the_clock(store, clock) -> None:
    for number in range(1, 12):
        clock.now -= 10
        await turn(store, f"q{number}", f"request-{number}")
    assert [t.seq for t in await store.load(OWNER, "my-session", limit=99)] == list(range(1, 12))


async def test_the_newest_turns_are_loaded_up_to_the_limit(store) -> None:
    for number in range(1, 7):
        await turn(store, f"q{number}", f"request-{number}")
    assert [t.seq for t in await store.load(OWNER, "my-session", limit=2)] == [5, 6]


async def test_a_session_of_the_callers_own_is_empty_until_opened_and_one_of_the_server_is_not_found(store) -> None:
    assert len(await store.load(OWNER, "my-session", limit=5)) == 0
    with pytest.raises(NotFound, match="s-nothing"):
        await store.load(OWNER, "s-nothing", limit=5)
    with pytest.raises(NotFound, match="s-nothing"):
        await store.accept(new(session_id="s-nothing"))
    opened = await store.accept(new(session_id="s-new", opens_session=True))
    assert opened.session_id == "s-new"
    assert len(await store.load(OWNER, "s-new", limit=5)) == 1


async def test_owners_do_not_see_each_other(store) -> None:
    await turn(store, session_id="s-mine", opens_session=True)
    for stranger in (Owner(user="other"), Owner(tenant="other"), Owner("default#U", "anonymous")):
        with pytest.raises(NotFound):
            await store.load(stranger, "s-mine", limit=5)
        other = await store.accept(new("Theirs", owner=stranger))
        assert (other.ticket.seq, other.repeat) == (1, None)
    assert [t.user for t in await store.load(OWNER, "s-mine", limit=5)] == ["Hello"]


async def test_odd_characters_in_ids_and_owners_cannot_reach_another_partition(store) -> None:
    names = ["a#S#b-------", "a%23S%23b---", "a/b/c/d/e/f", "ä漢🙂-------", "a b c d e f", "%_'\"; --xx", "T#1"]
    for number, name in enumerate(names):
        await turn(store, f"text {number}", f"request-{name}", name, owner=Owner(name, name))
    for number, name in enumerate(names):
        loaded = await store.load(Owner(name, name), name, limit=9)
        assert [t.user for t in loaded] == [f"text {number}"]
    assert len(await store.load(Owner("a", "S#b"), "a#S#b-------", limit=9)) == 0


async def test_a_repeat_of_a_complete_turn_is_handed_back(store) -> None:
    await turn(store)
    again = await store.accept(new())
    assert again.ticket is None
    assert (again.session_id, again.repeat.seq, again.repeat.assistant) == ("my-session", 1, "Hi.")
    assert len(await store.load(OWNER, "my-session", limit=9)) == 1


async def test_a_repeat_that_opens_a_session_finds_the_one_it_opened(store) -> None:
    await turn(store, session_id="s-first", opens_session=True)
    again = await store.accept(new(session_id="s-second", opens_session=True))
    assert (again.session_id, again.repeat.seq) == ("s-first", 1)
    with pytest.raises(NotFound):
        await store.load(OWNER, "s-second", limit=9)


async def test_a_request_id_used_for_another_message_or_session_is_a_conflict(store) -> None:
    await turn(store)
    for other in (new("Other"), new("Hello!"), new(session_id="other-session")):
        with pytest.raises(Conflict, match="'request-1' was used for another message"):
            await store.accept(other)


async def test_a_pending_turn_is_a_conflict_until_its_lease_runs_out(store, clock) -> None:
    first = await store.accept(new())
    clock.now += LEASE - 1
    with pytest.raises(Conflict, match="is being answered"):
        await store.accept(new())
    assert (await store.load(OWNER, "my-session", limit=9)).turns[0].status == "pending"
    clock.now += 2
    assert (await store.load(OWNER, "my-session", limit=9)).turns[0].status == "aborted"
    second = await store.accept(new())
    assert (second.ticket.seq, second.ticket.attempt) == (first.ticket.seq, 2)


async def test_renewing_extends_the_lease(store, clock) -> None:
    ticket = (await store.accept(new())).ticket
    for _ in range(4):
        clock.now += LEASE - 1
        await store.renew(ticket)
    with pytest.raises(Conflict):
        await store.accept(new())


async def test_after_a_take_over_the_first_attempt_can_neither_renew_nor_finish(store, clock) -> None:
    zombie = (await store.accept(new())).ticket
    clock.now += LEASE + 1
    heir = (await store.accept(new())).ticket
    with pytest.raises(Conflict):
        await store.renew(zombie)
    with pytest.raises(Conflict, match="no longer attempt 1's"):
        await store.finish(zombie, done("zombie"))
    await store.finish(heir, done("heir"))
    with pytest.raises(Conflict):
        await store.finish(zombie, done("zombie"))
    (kept,) = await store.load(OWNER, "my-session", limit=9)
    assert (kept.assistant, kept.attempt) == ("heir", 2)


async def test_a_turn_finishes_once(store) -> None:
    ticket = await turn(store)
    with pytest.raises(Conflict):
        await store.finish(ticket, done("twice"))


async def test_an_aborted_turn_runs_again_under_its_number_though_others_came_after_it(store) -> None:
    first = (await store.accept(new())).ticket
    await store.finish(first, Outcome("aborted", "aborted", "Hal"))
    await turn(store, "next", "request-2")
    again = (await store.accept(new())).ticket
    assert (again.seq, again.attempt) == (1, 2)
    await store.finish(again, done("Hallo."))
    assert [(t.seq, t.assistant) for t in await store.load(OWNER, "my-session", limit=9)] == [(1, "Hallo."), (2, "Hi.")]
    assert (await store.accept(new())).repeat.assistant == "Hallo."


async def test_a_session_that_was_removed_after_it_was_loaded_is_not_opened_again(store) -> None:
    await turn(store)
    newest = (await store.load(OWNER, "my-session", limit=9)).newest
    await store.delete(OWNER, "my-session")
    with pytest.raises(NotFound, match="my-session"):
        await store.accept(new("And then?", "request-2", after=newest))
    assert len(await store.load(OWNER, "my-session", limit=9)) == 0


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_what_the_session_looked_like_when_it_was_loaded_may_be_out_of_date(store, after) -> None:
    for number in range(1, 4):
        await turn(store, f"q{number}", f"request-{number}", session_id="s-mine", opens_session=number == 1)
    accepted = await store.accept(new("q4", "request-4", "s-mine", after=after))
    assert accepted.ticket.seq == 4


async def test_a_refused_message_has_no_text_and_is_handed_back_to_a_repeat(store) -> None:
    refused = NewTurn(OWNER, "my-session", "request-1", "", 11, status="blocked", label="needs caution")
    await store.accept(refused)
    (kept,) = await store.load(OWNER, "my-session", limit=9)
    assert (kept.status, kept.blocked, kept.label, kept.user, kept.user_length) == (
        "blocked", "input", "needs caution", "", 11,
    )  # fmt: skip
    assert (await store.accept(refused)).repeat == kept


async def test_a_blocked_answer_keeps_neither_sides_text(store) -> None:
    ticket = (await store.accept(new("The question"))).ticket
    await store.finish(ticket, Outcome("blocked", "content_filter", "text", label="needs caution"))
    (kept,) = await store.load(OWNER, "my-session", limit=9)
    assert (kept.status, kept.blocked, kept.label, kept.user, kept.assistant, kept.user_length) == (
        "blocked", "output", "needs caution", "", "", 12,
    )  # fmt: skip


async def test_passages_are_kept_as_references_with_the_hash_of_their_text(store) -> None:
    passage = Passage("p1", "the text", "Title", "a.md", "Section", 5, 13, 0.123456, page=3, document="a.md#2")
    ticket = (await store.accept(new())).ticket
    await store.finish(ticket, Outcome("complete", "stop", "Hi.", passages=(passage,)))
    (kept,) = await store.load(OWNER, "my-session", limit=9)
    digest = hashlib.sha256(b"the text").hexdigest()[:16]
    assert kept.passages == (Passage("p1", "", "Title", "a.md", "Section", 5, 13, 0.1235, digest, 3, "a.md#2"),)


async def test_any_text_comes_back_as_it_was(store) -> None:
    text = "NUL \0 quote ' \" back\\slash 漢字 🙂 \u2028 \r\n\t" + "long " * 5000
    await turn(store, text, answer=text)
    (kept,) = await store.load(OWNER, "my-session", limit=9)
    assert (kept.user, kept.assistant) == (text, text)


async def test_turns_accepted_at_once_get_numbers_without_holes(store) -> None:
    accepted = await asyncio.gather(*(store.accept(new(f"q{n}", f"request-{n}")) for n in range(20)))
    assert sorted(a.ticket.seq for a in accepted) == list(range(1, 21))


async def test_the_same_request_at_once_is_accepted_once(store) -> None:
    results = await asyncio.gather(*(store.accept(new()) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 4
    assert len(await store.load(OWNER, "my-session", limit=9)) == 1


async def test_a_passage_that_came_from_a_store_keeps_the_hash_it_came_with(store) -> None:
    passage = Passage("p1", "", "Title", "a.md", "", 5, 13, 0.5, "0123456789abcdef")
    ticket = (await store.accept(new())).ticket
    await store.finish(ticket, Outcome("complete", "stop", "Hi.", passages=(passage,)))
    (kept,) = await store.load(OWNER, "my-session", limit=9)
    assert kept.passages == (passage,)


@pytest.mark.parametrize("letter", ["q", "ä", "漢"])
async def test_a_message_may_have_so_many_bytes_and_not_one_more(store, letter) -> None:
    width = len(letter.encode())
    text = "q" * (store.most % width) + letter * (store.most // width)
    assert len(text.encode()) == store.most
    with pytest.raises(TooLarge, match=f"the message has {store.most + 1} bytes, at most {store.most}"):
        await store.accept(new(text + "q", "request-2"))
    assert (await store.sessions(OWNER, limit=9)).sessions == ()
    assert (await turn(store, text)).seq == 1
    assert (await store.accept(new(text))).repeat.user == text
