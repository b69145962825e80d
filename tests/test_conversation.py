"""A conversation: turns in order, and which of them a model may see."""

from dataclasses import replace

import pytest

from chatkit.conversation import Conversation, messages, turns_of
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
