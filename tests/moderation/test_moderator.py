"""Lists, domain, canned texts and the moderator that puts them together with scores."""

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkit.errors import ConfigError
from chatkit.moderation.domain import DomainRule
from chatkit.moderation.moderator import PolicyModerator
from chatkit.moderation.phrases import Phrases, is_covered, uncovered, words_of
from chatkit.moderation.policy import PhraseRule, Policy
from chatkit.moderation.policy_files import named
from chatkit.moderation.texts import language_of
from chatkit.types import LABELS, ModerationResult, Scores

WORDS = st.lists(st.sampled_from(["a", "b", "c", "ab"]), max_size=30)


class Fixed:
    """A scorer that says one thing."""

    def __init__(self, **scores: float) -> None:
        self.said = Scores(scores, {"casual": 1.0}, model="fixed", version="7")
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []

    async def score(self, text, *, direction, before="", history=()):
        self.asked.append((text, before, history))
        return self.said


def policy_with(**more) -> Policy:
    return Policy("test", {direction: {} for direction in ("input", "output", "passage")}, **more)


@given(WORDS, st.lists(WORDS.filter(bool), max_size=6))
def test_phrases_are_found_as_by_looking_for_each(words, phrases) -> None:
    found = {(start, end) for start, end in Phrases(map(" ".join, phrases)).spans(words)}
    every = {
        (at, at + len(phrase))
        for phrase in phrases
        for at in range(len(words))
        if words[at : at + len(phrase)] == phrase
    }
    longest = {end: min(start for start, last in every if last == end) for _, end in every}
    assert found == {(start, end) for end, start in longest.items()}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=6), st.integers(1, 12))
def test_what_is_covered_is_told_as_by_counting(pairs, count) -> None:
    spans = [(start, start + length) for start, length in pairs]
    by, of = spans[::2], spans[1::2]
    assert uncovered(of, by) == any(not any(a <= start and end <= b for a, b in by) for start, end in of)
    inside = {place for a, b in spans for place in range(a, b)}
    assert (
        is_covered(count, [span for span in spans if span[1] <= count])
        == ({place for a, b in spans if b <= count for place in range(a, b)} == set(range(count)))
        or not inside
    )


def test_phrases_match_whole_words_in_any_case_width_and_spacing() -> None:
    phrases = Phrases(["Foo bar", "赌博"])
    for text in ("xx foo  BAR.", "FOO-bar", "ｆｏｏ\u200b bar", "foo\nbar!", "网上赌博网"):
        assert phrases.spans(words_of(text)), text
    for text in ("food bar", "foo barn", "foo x bar", "赌 x 博"):
        assert not phrases.spans(words_of(text)), text


def test_lists_take_time_linear_in_the_text_and_not_in_the_list() -> None:
    text = words_of("a " * 40_000 + "b")
    few, many = Phrases(["a " * 30 + "c"]), Phrases([f"{'a ' * 30}c{n}" for n in range(3000)])

    def seconds(phrases, words) -> float:
        spent = []
        for _ in range(3):
            started = time.process_time()
            phrases.spans(words)
            spent.append(time.process_time() - started)
        return min(spent)

    assert seconds(many, text) < 5 * seconds(few, text) + 0.02
    assert seconds(many, text) < 8 * seconds(many, text[: len(text) // 4]) + 0.02


@pytest.mark.anyio
async def test_a_blocked_phrase_is_refused_unscored_and_an_allowed_one_around_it_lifts_that() -> None:
    scorer = Fixed()
    policy = policy_with(
        block=(PhraseRule(Phrases(["bank robbery"])),), allow=(PhraseRule(Phrases(["the great bank robbery film"])),)
    )
    moderator = PolicyModerator(scorer, policy)
    result = await moderator.check("plan a Bank  Robbery now", direction="input")
    assert (result.flagged, result.action, result.label, result.category) == (True, "refuse", LABELS[-1], "block_list")
    assert scorer.asked == []
    assert not (await moderator.check("I saw the great bank robbery film", direction="input")).flagged
    assert (await moderator.check("the great bank robbery film and a bank robbery", direction="input")).flagged


@pytest.mark.anyio
async def test_a_blocked_phrase_is_found_across_a_cut() -> None:
    moderator = PolicyModerator(Fixed(), policy_with(block=(PhraseRule(Phrases(["bank robbery"])),)))
    assert (await moderator.check("robbery, yes", direction="output", before="It was a bank ")).flagged


@pytest.mark.anyio
async def test_a_blocked_phrase_is_found_where_a_bidi_override_goes_on_over_a_cut() -> None:
    moderator = PolicyModerator(Fixed(), policy_with(block=(PhraseRule(Phrases(["bank robbery"])),)))
    before = "It was \u202e" + " many words of that day"[::-1] * 9
    assert (await moderator.check("yrebbor knab a", direction="output", before=before)).flagged
    assert (await moderator.check("bor knab a", direction="output", before=before + "yreb")).flagged
    assert not (await moderator.check("yrebbor knab a", direction="output", before=before + "\u202c")).flagged


@pytest.mark.anyio
@pytest.mark.parametrize(
    "written",
    ["bank r0bb3ry", "b\u200bank rob\u200dbery", "bаnk rоbbеry", "ｂａｎｋ ｒｏｂｂｅｒｙ", "b-a-n-k  r-o-b-b-e-r-y"],
    ids=["digits", "invisible", "cyrillic", "full-width", "spaced"],
)
async def test_a_blocked_phrase_is_found_through_tricks_of_writing(written: str) -> None:
    moderator = PolicyModerator(Fixed(), policy_with(block=(PhraseRule(Phrases(["bank robbery", "4chan"])),)))
    assert (await moderator.check(f"plan a {written} now", direction="input")).category == "block_list"
    assert (await moderator.check("as on 4chan", direction="input")).category == "block_list"


@pytest.mark.anyio
async def test_text_of_allowed_phrases_alone_passes_whatever_its_score_and_one_word_more_does_not() -> None:
    moderator = PolicyModerator(Fixed(harm=1.0), Policy(
        "test", named("standard").table, allow=(PhraseRule(Phrases(["Kill Switch", "pro"])),)
    ))  # fmt: skip
    assert not (await moderator.check("Kill switch, Pro!", direction="input")).flagged
    assert (await moderator.check("kill switch pro now", direction="input")).flagged


@pytest.mark.anyio
@pytest.mark.parametrize(
    "hidden",
    [
        "".join(chr(0xE0000 + ord(c)) for c in "build a bomb"),
        "".join(chr(0x1F1E6 + ord(c) - 97) for c in "kill"),
        "🅺🅸🅻🅻", "⠓⠑⠇⠏", "🔪👶", "\u202ellik\u202c", "k\u200bill", "\U000f0041", "$",
    ],
)  # fmt: skip
async def test_an_allow_list_lets_nothing_through_that_is_no_word(hidden: str) -> None:
    moderator = PolicyModerator(Fixed(harm=1.0), Policy(
        "test", named("standard").table, allow=(PhraseRule(Phrases(["hello there", "नमस्ते जी"])),)
    ))  # fmt: skip
    for said in ("hello there", "Hello… (there)!", "नमस्ते जी।"):
        assert not (await moderator.check(said, direction="input")).flagged, said
        assert (await moderator.check(f"{said} {hidden}", direction="input")).flagged
    for spelled in ("\ufe00\ufe01" * 200, "\U000e0105", "\u200b"):  # selectors are marks, and a row of them says bits
        assert (await moderator.check(f"hello there{spelled}", direction="input")).flagged, spelled


@pytest.mark.anyio
async def test_a_phrase_is_found_behind_padding_and_not_inside_a_longer_word() -> None:
    moderator = PolicyModerator(Fixed(), policy_with(block=(PhraseRule(Phrases(["bank robbery", "कि"])),)))
    before = "It was a bank" + " " * 9000
    assert (await moderator.check("robbery, yes", direction="output", before=before)).flagged
    assert (await moderator.check("वह कि यह", direction="output")).flagged
    assert not (await moderator.check("किताब अच्छी है", direction="output")).flagged


@pytest.mark.anyio
async def test_lists_over_a_long_text_leave_the_event_loop_free() -> None:
    moderator = PolicyModerator(Fixed(), policy_with(block=(PhraseRule(Phrases(["bank robbery"])),)))
    check = asyncio.create_task(moderator.check("b0mb or !t " * 9000, direction="input"))
    turns = 0
    while not check.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns >= 5
    assert not check.result().flagged


@pytest.mark.anyio
async def test_a_list_holds_in_its_directions_with_its_action() -> None:
    rule = PhraseRule(Phrases(["hush"]), ("output",), "soften")
    moderator = PolicyModerator(Fixed(), policy_with(block=(rule,)))
    assert (await moderator.check("hush", direction="input")).action == "allow"
    result = await moderator.check("hush", direction="output")
    assert (result.action, result.flagged, result.label) == ("soften", False, "needs caution")


@pytest.mark.anyio
async def test_scores_and_levels_and_what_gave_them_are_in_the_result() -> None:
    scorer = Fixed(harm=0.6, hate=0.2)
    result = await PolicyModerator(scorer, named("standard")).check(
        "x", direction="input", before="b", history=("u", "a")
    )
    assert (result.scores, result.levels) == ({"harm": 0.6, "hate": 0.2}, {"casual": 1.0})
    assert (result.model, result.version, result.action, result.category) == ("fixed", "7", "annotate", "harm")
    assert scorer.asked == [("x", "b", ("u", "a"))]


@pytest.mark.anyio
async def test_a_scorer_that_cannot_say_is_unavailable_and_not_safe() -> None:
    scorer = Fixed()
    scorer.said = Scores(unavailable=True, model="fixed")
    result = await PolicyModerator(scorer, named("monitor")).check("x", direction="output")
    assert result == ModerationResult(flagged=False, label=None, unavailable=True, model="fixed")


@pytest.mark.anyio
@pytest.mark.parametrize("scores", [{"harm": float("nan")}, {"hate": 1.5}, {"violence": -0.1}])
async def test_a_score_that_is_no_probability_is_unavailable(scores) -> None:
    result = await PolicyModerator(Fixed(**scores), named("standard")).check("x", direction="output")
    assert result.unavailable
    assert result.label is None


class Compass:
    """An encoder of two directions: bread, and everything else."""

    fingerprint, name, dim, max_tokens = "compass", "compass", 2, 64

    async def encode(self, texts):
        return np.array([[1.0, 0.0] if "bread" in text else [0.0, 1.0] for text in texts], np.float32)


DOMAIN = DomainRule(("baking bread",), 0.5)


@pytest.mark.anyio
async def test_what_is_outside_the_domain_is_refused_and_greetings_and_follow_ups_are_not() -> None:
    moderator = PolicyModerator(Fixed(), policy_with(domain=DOMAIN), encoder=Compass())
    assert not (await moderator.check("How long does bread take?", direction="input")).flagged
    outside = await moderator.check("Who won the last election there?", direction="input")
    assert (outside.action, outside.category) == ("refuse", "domain")
    assert not (await moderator.check("hello there", direction="input")).flagged
    followed = await moderator.check(
        "and how long does that take?", direction="input", history=("I bake bread.", "Good.")
    )
    assert not followed.flagged
    assert not (await moderator.check("Who won the last election there?", direction="output")).flagged


def test_a_domain_rule_without_an_encoder_is_refused_when_it_is_opened() -> None:
    with pytest.raises(ConfigError, match="no encoder"):
        PolicyModerator(Fixed(), policy_with(domain=DOMAIN))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I get to the station?", "en"),
        ("Wie komme ich zum Bahnhof und was kostet das?", "de"),
        ("Je ne sais pas comment faire avec ça", "fr"),
        ("¿Cómo estoy y qué quiero?", "es"),
        ("どうすればいいですか", "ja"),
        ("我该怎么办", "zh"),
        ("Как мне быть?", "ru"),
        ("xyzzy", ""),
        ("", ""),
    ],
)
def test_the_language_of_a_text_is_told_by_script_and_small_words(text, language) -> None:
    assert language_of(text) == language


@pytest.mark.anyio
async def test_a_refusal_speaks_the_language_of_the_message_and_of_self_harm_it_names_help() -> None:
    moderator = PolicyModerator(Fixed(self_harm=1.0, harm=1.0), named("standard"))
    result = await moderator.check("Ich will nicht mehr und weiß nicht, was ich tun kann", direction="input")
    assert result.category == "self_harm"
    assert result.notice.startswith("Es tut mir leid")
    for line in ("988", "116 123", "0800 111 0 111", "112"):
        assert line in result.notice
    assert (await PolicyModerator(Fixed(), named("standard")).check("hello", direction="input")).notice == ""


def test_a_refusal_of_the_settings_stands_for_the_usual_ones_and_not_for_those_of_a_category() -> None:
    texts = named("standard").texts.saying("No.")
    assert texts.notice("refuse", "hate", "Wie komme ich zum Bahnhof?") == "No."
    assert texts.notice("escalate", None, "hello") == "No."
    assert "988" in texts.notice("refuse", "self_harm", "I want to end it")
