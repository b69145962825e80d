"""What the checker says of a store: nothing where it holds what was acknowledged, each planted fault by its name."""

from dataclasses import replace

import pytest

from chatkit.evaluation.ledger import Acknowledged, Asked, Findings, Ledger, compare, read_back
from chatkit.protocols import NewTurn, Outcome
from chatkit.testing import MemoryStore
from chatkit.types import Owner, Turn

SESSION = "my-session"


def turn(seq: int, request: str | None = None, *, text: str | None = None, answer: str | None = None, **more) -> Turn:
    own = request or f"request-{seq}"
    said = text or f"Question of {own}"
    fields = {"status": "complete", "user": said, "assistant": answer or f"Answer to {own}", **more}
    return Turn(seq, own, 1, finish_reason="stop", user_length=len(said), **fields)


def told(count: int = 3) -> Ledger:
    """A ledger of turns that were asked one after the other."""
    ledger = Ledger()
    for seq in range(1, count + 1):
        own = f"request-{seq}"
        ledger.ask(Asked(own, SESSION, f"Question of {own}", made_at=10.0 * seq))
        ledger.acknowledge(Acknowledged(own, SESSION, seq, f"Answer to {own}", at=10.0 * seq + 5))
    return ledger


def found(ledger: Ledger, *turns: Turn, **others: list[Turn]) -> dict[str, int]:
    """Return how many there are of what is wrong at all."""
    counts = compare(ledger, {SESSION: turns, **others}).counts()
    return {name: count for name, count in counts.items() if count}


def test_a_store_that_holds_what_was_acknowledged_has_nothing_wrong() -> None:
    assert found(told(), turn(1), turn(2), turn(3)) == {}
    assert compare(told(), {SESSION: [turn(n) for n in (1, 2, 3)]}).lines() == []


def test_a_turn_that_was_asked_and_not_acknowledged_may_be_there_or_not() -> None:
    ledger = told(2)
    ledger.ask(Asked("request-3", SESSION, "Question of request-3", made_at=30.0))
    assert ledger.unanswered() == ["request-3"]
    assert found(ledger, turn(1), turn(2)) == {}
    assert found(ledger, turn(1), turn(2), turn(3, status="pending", answer="-")) == {}


@pytest.mark.parametrize(
    ("planted", "wrong"),
    [
        ([turn(1), turn(2)], {"lost": 1}),
        ([], {"lost": 3}),
        ([turn(1), turn(3)], {"lost": 1, "holes": 1}),
        ([turn(2), turn(3)], {"lost": 1, "holes": 1}),
        ([turn(1), turn(2, answer="Another."), turn(3)], {"lost": 1}),
        ([turn(1), turn(2, text="Another?"), turn(3)], {"lost": 1, "unknown": 1}),
        ([turn(1), turn(2, status="aborted"), turn(3)], {"lost": 1}),
        ([turn(1), turn(2, status="pending"), turn(3)], {"lost": 1}),
        ([turn(1), turn(3), turn(2)], {"reordered": 1}),
        ([turn(1), turn(2), turn(3), turn(4, "request-2")], {"duplicated": 1}),
        ([turn(1), turn(2), turn(2), turn(3)], {"duplicated": 2}),
        ([turn(1), turn(2), turn(3), turn(4, "request-of-nobody")], {"unknown": 1}),
        ([turn(1), turn(2), turn(3), turn(6, "request-of-nobody")], {"unknown": 1, "holes": 2}),
        ([turn(1, "request-2"), turn(2, "request-1"), turn(3)], {"lost": 2}),
    ],
)
def test_each_planted_fault_is_found_and_named(planted, wrong) -> None:
    assert found(told(), *planted) == wrong


REFUSED = {"status": "blocked", "user": "", "assistant": "", "user_length": 12}


@pytest.mark.parametrize(
    ("planted", "wrong"),
    [
        ({}, {}),
        ({"status": "complete"}, {"lost": 1}),
        ({"user": "Unspeakable!"}, {"lost": 1, "unknown": 1}),
        ({"assistant": "I cannot"}, {"lost": 1}),
        ({"user_length": 11}, {"lost": 1}),
        ({"replaces": 2}, {"lost": 1}),
        ({"replaces": None}, {"lost": 1}),
    ],
)
def test_a_refused_message_is_there_as_blocked_without_text_and_in_the_place_it_was_to_take(planted, wrong) -> None:
    ledger = Ledger()
    for seq in (1, 2, 3):
        one = f"request-{seq}"
        ledger.ask(Asked(one, SESSION, "Unspeakable!", refused=True, replaces=1 if seq == 3 else None, made_at=seq))
        ledger.acknowledge(Acknowledged(one, SESSION, seq, "I cannot help with that.", at=seq + 0.5))
    turns = [Turn(seq, f"request-{seq}", 1, replaces=1 if seq == 3 else None, **REFUSED) for seq in (1, 2, 3)]
    turns[2] = replace(turns[2], **planted)
    assert found(ledger, *turns) == wrong


def test_a_request_that_is_sent_again_in_the_end_is_unanswered_until_it_is_answered_again() -> None:
    ledger = told()
    ledger.ask_again("request-2")
    assert ledger.unanswered() == ["request-2"]
    ledger.acknowledge(Acknowledged("request-2", SESSION, 2, "Answer to request-2"))
    assert ledger.unanswered() == []


def test_a_request_that_is_stored_in_a_second_session_is_duplicated() -> None:
    assert found(told(1), turn(1), other=[turn(1)]) == {"duplicated": 1}


def test_a_request_that_was_answered_in_two_ways_is_duplicated() -> None:
    for second in (Acknowledged("request-2", SESSION, 2, "Another."), Acknowledged("request-2", SESSION, 4, "Answer")):
        ledger = told()
        ledger.acknowledge(second)
        assert found(ledger, turn(1), turn(2), turn(3)) == {"duplicated": 1}
    ledger = told()
    ledger.acknowledge(Acknowledged("request-2", SESSION, 2, "Answer to request-2"))
    assert found(ledger, turn(1), turn(2), turn(3)) == {}
    assert ledger.acknowledged == 3


def test_a_turn_that_was_sent_after_another_was_stored_and_numbered_before_it_is_reordered() -> None:
    ledger = Ledger()
    for own, seq, sent, ended in (("first", 2, 1.0, 2.0), ("then", 1, 3.0, 4.0)):
        ledger.ask(Asked(own, SESSION, f"Question of {own}", made_at=sent))
        ledger.acknowledge(Acknowledged(own, SESSION, seq, f"Answer to {own}", at=ended))
    assert found(ledger, turn(1, "then"), turn(2, "first")) == {"reordered": 1}


def test_turns_that_were_on_their_way_together_may_have_either_order() -> None:
    ledger = Ledger()
    for own, seq, sent, ended in (("first", 2, 1.0, 4.0), ("then", 1, 3.0, 5.0)):
        ledger.ask(Asked(own, SESSION, f"Question of {own}", made_at=sent))
        ledger.acknowledge(Acknowledged(own, SESSION, seq, f"Answer to {own}", at=ended))
    assert found(ledger, turn(1, "then"), turn(2, "first")) == {}


def test_of_a_request_that_several_send_the_first_sending_counts() -> None:
    ledger = Ledger()
    for sent in (5.0, 1.0, 3.0):
        ledger.ask(Asked("request-1", SESSION, "Question", made_at=sent))
    assert ledger.asked["request-1"].made_at == 1.0


def test_the_findings_are_named_as_the_figures_are() -> None:
    assert Findings.__slots__ == ("lost", "duplicated", "holes", "reordered", "unknown")
    assert Findings(lost=["turn 2"], holes=["none 3"]).lines() == ["lost: turn 2", "holes: none 3"]


@pytest.mark.anyio
async def test_everything_is_read_back_with_sessions_that_nobody_was_told_of() -> None:
    now = [1000.0]
    store = MemoryStore(clock=lambda: now[0])

    async def talk(session: str, request: str) -> None:
        ticket = (await store.accept(NewTurn(Owner(), session, request, "Question", 8))).ticket
        await store.finish(ticket, Outcome("complete", "stop", "Answer"))

    await talk("before-it-all", "run-request-0")
    now[0] = 2000.0
    await talk("session-1", "run-request-1")
    await talk("session-1", "run-request-2")
    await talk("told-to-nobody", "run-request-3")
    await talk("somebody-elses", "other-request")
    ledger = Ledger()
    ledger.ask(Asked("run-request-1", "session-1", "Question"))
    ledger.ask(Asked("run-request-9", "never-stored", "Question"))
    stored = await read_back(store, Owner(), ledger, "run-", since=1500.0)
    assert {session: [t.seq for t in turns] for session, turns in stored.items()} == {
        "session-1": [1, 2],
        "never-stored": [],
        "told-to-nobody": [1],
    }


@pytest.mark.anyio
async def test_a_store_that_gives_one_page_again_and_again_has_turns_twice_and_an_end() -> None:
    class Stuck(MemoryStore):
        async def page(self, owner, session_id, *, limit, after=0):
            return turn(1), turn(2)

    stored = await read_back(Stuck(), Owner(), told(2), "run-", since=0.0)
    assert {name: count for name, count in compare(told(2), stored).counts().items() if count} == {
        "duplicated": 4,
        "reordered": 1,
    }
