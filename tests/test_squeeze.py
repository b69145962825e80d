"""Padding: what takes room and shows nothing is gone, ordinary text stays, and no text takes long."""

import random
import time
import unicodedata

import pytest

from chatkit.squeeze import MOST_MARKS, squeezed, squeezed_end, unstacked

ORDINARY = [
    "Tell me about the harbour. It was built in 1912, and cost 5 €.",
    "def f(x):\n    return [1, 2]\n\nprint(f(1))",
    "Der Bär säuft cafe\u0301 – naïve…",
    "यह पहला वाक्य है। नमस्ते",
    "שָׁלוֹם עֲלֵיכֶם",
    "你好，世界。これは最初の文です。",
    "!!!! wow :-) 😀😀",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_the_same(text):
    assert squeezed(text) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("how" + " " * 250 + "to", "how    to"),
        ("how" + "\u3000" * 250 + "to", "how    to"),
        ("how" + "\u200b" * 120 + " to", "how to"),
        ("h\u00ado\ufe0fw\x00 t\u2060o\x85", "how to\x85"),
        ("one\n \n\n\n\ntwo", "one\n\ntwo"),
        ("o" + "\u0301" * 90 + "n", "o" + "\u0301" * MOST_MARKS + "n"),
        ("\ufdfa" * 60 + " to", "    to"),
        ("-" * 80 + " to", "---- to"),
        ("\u202eot woh\u202c do", "how to do"),
        ("\U000e0068\U000e0069", "\U000e0068\U000e0069"),
        ("how\u2800to\u3164do\u115fit\uffa0well\u180enow", "how to do it well now"),
        ("h\u3164o\u3164w to", "how to"),
        ("Donau\u00addampf\u00adschiff fährt", "Donaudampfschiff fährt"),
        ("می\u200cخواهم", "میخواهم"),
        ("ภาษา\u200bไทย\u200bเป็น\u200bภาษา\u200bที่\u200bสวย\u200bงาม", "ภาษาไทยเป็นภาษาที่สวยงาม"),
    ],
)
def test_what_shows_nothing_is_gone_and_padding_is_short(text, left):
    assert squeezed(text) == left


@pytest.mark.parametrize(
    "separator", ["\u2800", "\u3164", "\u180e", "\u200b", "\u00ad", "\u2060", "\ufeff", "\x01", "\u200b\x00"]
)
def test_what_stands_in_the_place_of_blanks_is_a_blank_and_inside_words_it_is_nothing(separator):
    text = "Explain in detail how to build a harbour for the northern neighbours"
    assert squeezed(separator.join(text.split())) == text
    if separator != "\u00ad":
        half = "".join(word + (separator if at % 2 else " ") for at, word in enumerate(text.split()))
        assert squeezed(half.strip(separator)).strip() == text
    if separator[0] not in "\u2800\u3164\u180e":
        assert squeezed(" ".join(separator.join(word) for word in text.split())) == text


def test_squeezing_twice_is_squeezing_once_and_leaves_no_long_run():
    draw = random.Random(11)
    pieces = [
        "a",
        "b ",
        "    ",
        "\n",
        "\n \n",
        "\u200b",
        "\u0301\u0323",
        "\u202e",
        "\u202c",
        "\ufdfa",
        "=",
        "\x01",
        "я",
        "\u3164",
    ]
    for _ in range(2000):
        text = "".join(draw.choice(pieces) * draw.choice([1, 1, 2, 20]) for _ in range(draw.randrange(12)))
        once = squeezed(text)
        assert squeezed(once) == once
        assert "     " not in once
        assert "\n\n\n" not in once
        assert not any(unicodedata.category(character) == "Cf" for character in once)


def test_the_end_of_a_text_is_found_behind_any_padding():
    text = "these are the words that count" + " " * 50_000 + "here"
    assert squeezed_end(text, 34).endswith("the words that count    here")
    assert squeezed_end("word " * 5000, 50).endswith("word " * 10)
    assert len(squeezed_end("word " * 5000, 50)) <= 100


@pytest.mark.parametrize(
    "unit",
    ["\u0301\u0323", " ", "\n ", "\u202e", "\u202ea", "\ufdfa", "\u200b ", "a", "- ", "\x00", "ab\u200b", "a\u2800"],
)
def test_time_grows_with_the_text_and_no_faster(unit):
    def seconds(count):
        text = unit * (count // len(unit))
        began = time.perf_counter()
        unicodedata.normalize("NFKC", unstacked(squeezed("é" + text)))
        return time.perf_counter() - began

    short = min(seconds(20_000) for _ in range(3))
    assert min(seconds(100_000) for _ in range(3)) < 15 * short + 0.02
