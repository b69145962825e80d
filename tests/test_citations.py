"""Attribution: sentences are found where they stand, and only a passage that says them is named."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkit import citations, wiring
from chatkit.citations import Attributor
from chatkit.errors import Unavailable
from chatkit.sentences import sentence_spans
from chatkit.settings import load_settings
from chatkit.types import Passage
from tests.word_encoder import WordEncoder

pytestmark = pytest.mark.anyio

GAME = Passage(
    "game",
    "The defense gave up just 308 points, which ranked sixth in the league. Kawann Short led the team in sacks "
    "with 11. He also forced three fumbles and recovered two.",
    title="Super Bowl 50",
)
RIVER = Passage("river", "The Rhine rises in the Swiss canton of Graubünden. It is about 1,233 km long.", title="Rhine")
EMPTY = Passage("empty", "")


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n", []),
        ("One is here. Two follows!", ["One is here.", "Two follows!"]),
        (
            "Dr. No met J. R. Smith at 5 p.m. on Monday. He left.",
            ["Dr. No met J. R. Smith at 5 p.m. on Monday.", "He left."],
        ),
        ("See e.g. the U.S. army, vs. 3.5 million. End", ["See e.g. the U.S. army, vs. 3.5 million.", "End"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("1. First step\n2. Second step", ["1. First step", "2. Second step"]),
        ("- one\n- two\n", ["- one", "- two"]),
        ("308", ["308"]),
        ("答案是三百零八。他们是第六名！", ["答案是三百零八。", "他们是第六名！"]),
        ("It is version 2.1. it goes on", ["It is version 2.1. it goes on"]),
    ],
)
def test_a_text_is_cut_where_its_sentences_end(text, expected) -> None:
    assert sentences(text) == expected


@given(st.text(alphabet=st.sampled_from("ab1 .!?\n。\"'Ü一二\u3000-)")))
def test_spans_are_in_order_and_hold_every_word(text) -> None:
    spans = sentence_spans(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    held = "".join(text[start:end] for start, end in spans)
    assert [c for c in held if c in "abÜ一二"] == [c for c in text if c in "abÜ一二"]
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)


@settings(max_examples=25)
@given(st.lists(st.sampled_from([GAME, RIVER, EMPTY]), max_size=3), st.text(max_size=60))
async def test_a_citation_never_names_what_was_not_among_the_passages(passages, text) -> None:
    found = await Attributor(WordEncoder(), threshold=0.0).cite(f"{text} It gave up 308 points.", passages)
    given_ids = {passage.id for passage in passages if passage.text}
    for citation in found:
        assert set(citation.passage_ids) <= given_ids
        assert citation.supported is bool(citation.passage_ids)
        assert 0.0 <= citation.score <= 1.0
    assert bool(found) is bool(given_ids)


async def test_each_sentence_gets_the_passage_that_says_it_and_the_rest_is_marked() -> None:
    text = "The defense gave up 308 points. The Rhine rises in the Swiss canton of Graubünden. Bananas are yellow."
    found = await Attributor(WordEncoder()).cite(text, [RIVER, GAME])
    assert [text[one.start : one.end] for one in found] == sentences(text)
    assert [one.passage_ids for one in found] == [("game",), ("river",), ()]
    assert [one.supported for one in found] == [True, True, False]
    assert found[1].score == 1.0


@pytest.mark.parametrize(
    ("sentence", "supported"),
    [
        ("The defense gave up 308 points.", True),
        ("The defense gave up 380 points.", False),
        ("Kawann Short led the team with 11 sacks.", True),
        ("Kawann Short led the team with 12 sacks.", False),
        ("The team's Kurt Coleman led in sacks with 11.", False),
        ("Kawann Short", True),
        ("Yes.", False),
    ],
)
async def test_a_number_or_a_name_that_the_passage_lacks_is_never_supported(sentence, supported) -> None:
    (found,) = await Attributor(WordEncoder()).cite(sentence, [GAME])
    assert found.supported is supported, found


async def test_two_passages_that_say_it_are_both_named_best_first_and_once() -> None:
    copy = Passage("copy", "In the final the defense gave up just 308 points.")
    found = await Attributor(WordEncoder()).cite("The defense gave up just 308 points.", [copy, GAME, GAME])
    assert len(found) == 1
    assert sorted(found[0].passage_ids) == ["copy", "game"]


async def test_the_vectors_of_a_passage_are_made_once_and_again_when_its_text_changes(monkeypatch) -> None:
    monkeypatch.setattr(citations, "KEPT_PASSAGES", 1)
    encoder = WordEncoder()
    attributor = Attributor(encoder)
    await attributor.cite("One sentence.", [GAME])
    assert len(encoder.texts) == 1 + 5  # three sentences of the passage and two pairs
    await attributor.cite("Another sentence.", [GAME])
    assert encoder.texts[6:] == ["Another sentence."]
    await attributor.cite("Another sentence.", [Passage("game", "Another text.")])
    assert encoder.texts[7:] == ["Another sentence.", "Another text."]
    await attributor.cite("One sentence.", [GAME])
    assert len(encoder.texts) == 9 + 6


async def test_an_encoder_that_fails_costs_the_citations_and_not_the_answer(caplog) -> None:
    class Broken(WordEncoder):
        async def encode(self, texts):
            raise Unavailable("the encoder is closed; open it again")

    assert await Attributor(Broken()).cite("A sentence.", [GAME]) == ()
    assert "not attributed" in caplog.text
    assert "A sentence" not in caplog.text


async def test_the_default_encoder_knows_a_sentence_said_in_other_words() -> None:
    encoder = wiring.open_encoder(load_settings())
    try:
        text = "Short had the most sacks of the team. The game was watched by many people on television."
        said, unsaid = await Attributor(encoder).cite(text, [RIVER, GAME])
    finally:
        encoder.close()
    assert (said.passage_ids, said.supported) == (("game",), True), said
    assert (unsaid.passage_ids, unsaid.supported) == ((), False), unsaid
