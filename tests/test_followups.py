"""What a turn searches by: the message, and what the user said before it, the older the less it counts."""

import pytest

from chatkit.conversation import Conversation
from chatkit.planning import query_parts, weighed
from chatkit.retrievers import in_one
from chatkit.types import QueryPart, Turn


def test_the_first_question_is_searched_by_itself():
    assert weighed("Where are sessions kept?", []) == (QueryPart("Where are sessions kept?", 1.0),)


def test_earlier_messages_count_less_the_older_they_are_and_four_of_them_at_most():
    parts = weighed("And in Docker?", ["one", "two", "three", "four", "five"])
    assert [part.text for part in parts] == ["And in Docker?", "five", "four", "three", "two"]
    assert [part.weight for part in parts] == pytest.approx([1, 0.4, 0.24, 0.144, 0.0864])


def test_of_a_conversation_only_what_the_user_said_counts():
    turns = tuple(
        Turn(seq, f"r{seq}", 1, "complete", text, f"answer {seq}")
        for seq, text in enumerate(["first", " ", "third"], 1)
    )
    parts = query_parts(Conversation(turns), "and now?")
    assert [part.text for part in parts] == ["and now?", "third", "first"]


def test_a_retriever_that_takes_one_text_gets_a_short_message_with_the_one_before_it():
    assert in_one(weighed("And in Docker?", ["Where are sessions kept?"])) == "Where are sessions kept?\nAnd in Docker?"
    whole = "Which port does the service listen on in Docker?"
    assert in_one(weighed(whole, ["Where are sessions kept?"])) == whole
    assert in_one(weighed("Docker?", [])) == "Docker?"
