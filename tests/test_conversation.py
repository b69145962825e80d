"""A conversation: turns in order, and which of them a model may see."""

from dataclasses import replace

import pytest

from chatkit.conversation import Conversation, Newest, messages, turns_of
from chatkit.testing import turn_with
from chatkit.types import Message

TURNS = (
    turn_with(1, "one", "first"),
    replace(turn_with(2, "two", "sec"), status="aborted"),
    replace(turn_with(3, "", ""), status="blocked"),
    replace(turn_with(4, "four", ""), status="pending"),
    turn_with(5, "five", "fifth"),
)


def test_only_complete_turns_are_context() -> None:
    assert [turn.seq for turn in Conversation(TURNS).context()] == [1, 5]


def test_a_turn_that_runs_again_sees_only_what_came_before_it() -> None:
    assert [turn.seq for turn in Conversation(TURNS).context(before=5)] == [1]
    assert Conversation(TURNS).context(before=1) == ()


def test_a_conversation_has_a_length_and_an_order() -> None:
    assert len(Conversation(TURNS)) == 5
    assert [turn.seq for turn in Conversation(TURNS)] == [1, 2, 3, 4, 5]
    assert len(Conversation()) == 0


def test_a_turn_is_a_user_and_an_assistant_message() -> None:
    assert messages(TURNS[0]) == (Message("user", "one"), Message("assistant", "first"))


def test_the_newest_number_is_the_last_turns() -> None:
    assert (Conversation(TURNS).newest, Conversation().newest) == (5, 0)


U, A = "user", "assistant"


@pytest.mark.parametrize(
    ("sides", "turns"),
    [
        ([], []),
        ([(U, "q"), (A, "a")], [("q", "a")]),
        ([(A, "hi"), (U, "q"), (A, "a")], [("", "hi"), ("q", "a")]),
        ([(U, "q"), (U, "r"), (A, "a"), (A, "b")], [("q\n\nr", "a\n\nb")]),
    ],
)
def test_messages_that_a_caller_kept_become_turns(sides, turns) -> None:
    made = turns_of([Message(role, text) for role, text in sides])
    assert [(turn.user, turn.assistant) for turn in made] == turns
    assert [turn.seq for turn in made] == list(range(1, len(turns) + 1))
    assert {turn.status for turn in made} <= {"complete"}


def test_a_greeting_that_nobody_asked_for_is_one_message() -> None:
    (greeting,) = turns_of([Message("assistant", "Ahoy!")])
    assert messages(greeting) == (Message("assistant", "Ahoy!"),)


def newest(turns, limit: int) -> list[int]:
    """Hand turns in as a store reads them, the newest first, and return the numbers that were taken."""
    collected = Newest(limit)
    for turn in reversed(turns):
        collected.take(turn)
    return [turn.seq for turn in collected.conversation()]


def test_the_newest_turns_are_collected_oldest_first_up_to_the_limit() -> None:
    assert newest(TURNS, 9) == [1, 2, 3, 4, 5]
    assert newest(TURNS, 2) == [4, 5]
    assert newest((), 2) == []


def test_a_collection_is_full_at_its_limit_and_knows_when_the_session_ends() -> None:
    collected = Newest(2)
    for number, full in ((5, False), (4, True), (3, True)):
        collected.take(turn_with(number, "q", "a"))
        assert collected.full is full
    assert collected.conversation(1100.0) == Conversation((turn_with(4, "q", "a"), turn_with(5, "q", "a")), 1100.0)
    assert collected.conversation().expires_at is None


@pytest.mark.parametrize(
    ("replaced", "visible"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({6: 5}, [1, 2, 3, 4, 6]),
        ({6: 1}, [6]),
        ({4: 2}, [1, 4, 5, 6]),
        ({3: 2, 6: 5}, [1, 3, 4, 6]),
        ({4: 3, 6: 4}, [1, 2, 6]),
        ({4: 1, 6: 5}, [4, 6]),
        ({4: 1, 6: 2}, [6]),
        ({2: 1, 3: 2, 4: 3, 5: 4, 6: 5}, [6]),
    ],
)
def test_a_replaced_turn_and_what_followed_it_are_hidden(replaced, visible) -> None:
    turns = [replace(turn_with(n, "q", "a"), replaces=replaced.get(n)) for n in range(1, 7)]
    assert newest(turns, 9) == visible
    assert newest(turns, 2) == visible[-2:]


@pytest.mark.parametrize("status", ["pending", "complete", "aborted", "blocked"])
def test_a_replacing_turn_hides_while_it_may_have_or_has_an_answer(status) -> None:
    turns = [turn_with(1, "q", "a"), turn_with(2, "q", "a"), replace(turn_with(3, "q", ""), replaces=2, status=status)]
    assert newest(turns, 9) == ([1, 3] if status in ("pending", "complete") else [1, 2, 3])
