import pytest

from chatkit.retrieval.building.near import NearDuplicates
from chatkit.retrieval.building.staging import Stage
from chatkit.retrieval.chunking import Chunk, Chunking

POLICY = (
    "An employee who works from Germany for more than a month must be sent a letter that says which rules apply. "
    "The costs of travel are paid in full within 30 days, unless the office in Paris has agreed to another date."
)


def chunk(text, *, title="Policy", section="", source="policy.md"):
    return Chunk(source, source, title, section, 0, 0, len(text), text)


def near(*texts):
    return NearDuplicates().add([chunk(text) for text in texts])


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("Germany", "France"),
        ("must be sent", "must not be sent"),
        ("in full", "in half"),
        ("30 days", "60 days"),
        ("from Germany", "to Germany"),
        ("more than", "less than"),
        ("unless", "if"),
        ("a month", "a month, i.e. 31 days,"),
    ],
)
def test_a_passage_that_says_something_else_in_nearly_the_same_words_is_kept(words, others):
    assert words in POLICY
    assert near(POLICY, POLICY.replace(words, others)) == [False, False]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("set it to -5", "set it to 5"),
        ("n is .5", "n is 5"),
        ("C# is used", "C is used"),
        ("plan A", "plan"),
        ("5!", "5"),
    ],
)
def test_signs_that_mean_something_count(text, other):
    assert near(text, other) == [False, False]


@pytest.mark.parametrize(
    "other",
    [
        POLICY.replace("employee", "EMPLOYEE"),
        POLICY.replace(",", "").replace(".", ""),
        POLICY.replace(" ", "\n"),
        POLICY.replace("Germany", "**Germany**").replace("30 days", "`30 days`"),
        "- " + POLICY,
        POLICY.replace("the office", "an office").replace("are paid", "are also paid"),
    ],
)
def test_case_punctuation_markup_and_articles_make_no_other_passage(other):
    assert near(POLICY, other) == [False, True]


def test_the_same_words_under_another_title_or_section_are_kept():
    seen = NearDuplicates()
    assert seen.add([chunk(POLICY), chunk(POLICY, title="Other"), chunk(POLICY, section="Part")]) == [False] * 3
    assert seen.add([chunk(POLICY, source="copy.md")]) == [True]


def staged(tmp_path, *sources):
    stage = Stage(tmp_path / "spool", Chunking())
    for number, texts in enumerate(sources):
        stage.begin(f"{number}", "")
        stage.document(0, [chunk(text, source=f"{number}") for text in texts])
    return stage.finish()


def test_a_duplicate_in_a_later_batch_is_dropped_however_many_were_before_it(tmp_path):
    lines = [f"line {number}" for number in range(256)]
    counts = staged(tmp_path, ["see above"] * 256 + lines, lines[1:] + ["see above"] * 257)
    assert (counts.passages, counts.duplicates, counts.near_duplicates) == (257, 767, 0)
