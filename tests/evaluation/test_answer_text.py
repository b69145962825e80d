"""Replies compared with accepted answers: SQuAD's rules, and characters where a script has no spaces."""

import pytest

from chatkit.evaluation.answer_text import contains, copied, exact, f1, length, quoted, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Panthers' defense, a  GREAT one!", ["panthers", "defense", "great", "one"]),
        ("U.S. $1,000", ["us", "1000"]),
        ("答案是308，对吗？", ["答", "案", "是", "308", "对", "吗"]),
        ("“Theatre”", ["theatre"]),
        (" . ", []),
    ],
)
def test_a_text_is_normalised_as_squad_does(text, expected) -> None:
    assert tokens(text) == expected


def test_an_answer_is_contained_as_whole_words_only() -> None:
    assert contains("They gave up 308 points.", ["308"])
    assert not contains("They gave up 1308 points.", ["308"])
    assert contains("It was Kawann Short, of course.", ["Jared Allen", "the Kawann Short"])
    assert not contains("Short Kawann", ["Kawann Short"])
    assert contains("黑豹队防守丢了308分", ["308分"])
    assert not contains("anything", [""])


def test_f1_is_that_of_the_best_answer() -> None:
    assert f1("a b c 308", ["308"]) == pytest.approx(2 / 4)  # "a" is an article
    assert f1("gave up 308 points", ["nothing", "308 points"]) == pytest.approx(2 * 2 / 6)
    assert f1("", ["308"]) == 0.0
    assert f1("308", []) == 0.0
    assert f1("三百", ["三百零八"]) == pytest.approx(2 * 2 / 6)


def test_exact_means_the_same_words() -> None:
    assert exact("The Rhine.", ["rhine"])
    assert not exact("The Rhine river", ["rhine"])


def test_copied_is_the_share_of_the_passage_that_the_reply_says_again_in_its_order() -> None:
    passage = "one two three four five six seven eight nine ten"
    assert copied(passage, passage) == 1.0
    assert copied("one two three four five and more", passage) == 0.5
    assert copied("ten nine eight", passage) == pytest.approx(0.1)
    assert copied("one zwei three vier five sechs seven acht nine zehn", passage) == 0.5
    assert copied("308", passage) == 0.0
    assert copied("anything", "") == 0.0


def test_quoted_is_the_share_of_the_reply_that_runs_as_it_stands_in_the_passage() -> None:
    passage = "one two three four five six"
    assert quoted("two three four", passage) == 1.0
    assert quoted("one two then five six seven", passage) == pytest.approx(2 / 6)
    assert quoted("six five", passage) == 0.5
    assert quoted("nothing", passage) == quoted("", passage) == quoted("one", "") == 0.0


def test_length_counts_words_and_the_characters_of_scripts_without_spaces() -> None:
    assert length("It gave up 308 points.") == 5
    assert length("答案 308") == 3
    assert length("") == 0
