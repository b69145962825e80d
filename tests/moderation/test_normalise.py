import random
import time
import unicodedata

import pytest

from chatkit.moderation.normalise import normalised
from chatkit.moderation.phrases import words_of


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("how\u200b to k\u200bi\u00adll", "how to kill"),
        ("ｈｏｗ ｔｏ 𝓴𝓲𝓵𝓵 ⓚⓘⓛⓛ 🅺🅸🅻🅻", "how to kill kill kill"),
        ("нow tо kіll", "how to kill"),  # Cyrillic letters in Latin words, and a word of them among Latin ones
        ("H0w t0 k1ll a pers0n", "How to kill a person"),
        ("b0mb a$$hole sh!t", "bomb asshole shit"),
        ("k i l l  a l l  p e o p l e", "kill all people"),
        ("k.i.l.l them, k-i-l-l them", "kill them, kill them"),
        ("k̷̢i̶l̴l̷ Zürich café", "kill Zurich cafe"),
        ("\u202ebmob a dliub ot woh\u202c", "how to build a bomb"),
        ("".join(chr(0xE0000 + ord(c)) for c in "ignore") + " hi", "ignore hi"),
    ],
)
def test_what_is_hidden_from_a_scorer_is_read_as_a_reader_reads_it(text, read):
    assert normalised(text) == read


@pytest.mark.parametrize(
    "text",
    [
        "Как дела, друг?",
        "αβγ δοκιμή",
        "今日は良い天気ですね。",
        "An mp3 of the covid19 talk, its sha256 sum and the 4th of @user or me@host.com in $HOME.",
        "Build it for x86_64 and run it under k8s on the M1A1 over 5G in 3D with the old tools that we have.",
        "It costs $5 or 5€ in 2001!",
        "50 of 100, or 0 !!! and 1|1 @ $$",
        "U.S.A. and F.B.I., J. R. R. Tolkien",
        "a - b + c | d",
        "if x1 == y2: return x1",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert normalised(text) == text


def test_nothing_invisible_is_left_of_any_text_and_it_grows_by_no_more_than_nfkc():
    draw = random.Random(7)
    letters = "abeiokt .-_@$!013457аеіонтκο\u200b\u0301\u202e\u202c\ufe0f\U000e0061éüн1"
    for _ in range(3000):
        text = "".join(draw.choice(letters) for _ in range(draw.randrange(30)))
        read = normalised(text)
        assert not any(unicodedata.category(character) == "Cf" for character in read)
        assert len(read) <= len(unicodedata.normalize("NFKC", text))
        assert "\ufe0f" not in read


@pytest.mark.parametrize(
    "unit",
    ["a ", "k1", "\u202e", "a.b", "аb", "1", "@", "a!", "\u0301", "b0mb ", "a\u202e", "$a", "\U000e0061",
     "!", "|", "$", "1!", "@!|$", "!a", "\u0301\u0323", "_", ".", "a\u0323\u0301", "+€", "- "],
)  # fmt: skip
def test_time_grows_with_the_text_and_no_faster(unit):
    def seconds(length):
        text = (unit * length)[:length]
        best = 9.0
        for _ in range(3):
            started = time.process_time()
            normalised(text)
            words_of(text)
            best = min(best, time.process_time() - started)
        return best

    assert seconds(80_000) < 12 * max(seconds(20_000), 2e-3)


@pytest.mark.parametrize(
    "marks", ["\u0e34", "\u05b4", "\u064e", "\u0902", "\u3099", "\u05b4" * 4, "\u0c01\u0c02\u0c03\u0c41"]
)
def test_marks_of_any_script_on_latin_letters_are_gone_and_those_on_letters_of_their_own_stay(marks):
    text = "Tell me about the harbour"
    assert normalised("".join(letter + marks if letter.isalpha() else letter for letter in text)) == text
    assert normalised("शहर की सैर, שָׁלוֹם, ที่นี่, がぎ") == normalised(normalised("शहर की सैर, שָׁלוֹם, ที่นี่, がぎ"))
    assert "\u05b8" in normalised("שָׁלוֹם hello")
