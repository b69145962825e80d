"""Excerpts: of a passage the sentences nearest to what is asked, and all of it where nothing tells which."""

import pytest

from chatkit.excerpts import nearest_sentences

TEXT = (
    "# The port of Hale\n\nPort Hale lies on the river Teal. Its lighthouse was built in 1871 by Ada Brandt. "
    "The port has four piers and the river freezes in winter.\n- The library opened in 1902."
)


def excerpt(question: str, most: int = 1, text: str = TEXT, before: str = "") -> str:
    return nearest_sentences(text, [question, before], most)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("When was the lighthouse built?", "Its lighthouse was built in 1871 by Ada Brandt."),
        ("How many piers does the port have?", "The port has four piers and the river freezes in winter."),
        ("When did the libraries open?", "- The library opened in 1902."),
        ("WHO BUILT IT?", "Its lighthouse was built in 1871 by Ada Brandt."),
    ],
)
def test_the_sentence_that_shares_the_most_with_the_question_is_kept(question, sentence) -> None:
    assert excerpt(question) == sentence


def test_a_rare_word_counts_more_than_a_common_one() -> None:
    text = "The port is old. The port is deep. The port is new. A crane stands here."
    assert excerpt("Which port has a crane?", text=text) == "A crane stands here."


def test_several_sentences_keep_their_order() -> None:
    assert excerpt("Who opened the library, and who built the lighthouse?", 2) == (
        "Its lighthouse was built in 1871 by Ada Brandt. - The library opened in 1902."
    )


def test_an_earlier_message_decides_only_where_the_newest_does_not() -> None:
    before = "When was the lighthouse of Port Hale on the river Teal built by Ada Brandt?"
    assert excerpt("And the library?", before=before) == "- The library opened in 1902."
    assert excerpt("And when?", before="When was the lighthouse built?") == (
        "Its lighthouse was built in 1871 by Ada Brandt."
    )


@pytest.mark.parametrize(("question", "most"), [("Where is it?", 1), ("Who eats bananas?", 1), ("lighthouse", 0)])
def test_the_whole_text_is_kept_where_no_word_is_shared_or_it_is_asked_for(question, most) -> None:
    assert excerpt(question, most) == TEXT


@pytest.mark.parametrize("text", ["", "  ", "# Only a heading", "One sentence about piers."])
def test_a_text_of_one_sentence_or_none_stays_as_it_is(text) -> None:
    assert excerpt("piers", text=text) == text


def test_scripts_without_spaces_have_sentences_and_words_too() -> None:
    assert excerpt("灯塔是什么时候建成的？", text="港口在河边。灯塔建成于1871年。图书馆很大。") == "灯塔建成于1871年。"
