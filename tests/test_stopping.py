"""Stop words: held back, cut at the first, flushed at the end; the same however the text is split."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkit.errors import InvalidRequest
from chatkit.service import OpenChatKitService
from chatkit.stopping import StopWords, hold_back
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedModel
from chatkit.types import ChatRequest, Owner, SamplingParams

LETTERS = st.text("abc<\n>", max_size=40)
WORDS = st.lists(st.text("abc<\n>", min_size=1, max_size=5), max_size=4)


def pieces(text: str, cuts: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


def first_cut(text: str, words: list[str]) -> str:
    """The text up to the stop word that ends first; of those that end there, the longest."""
    for end in range(len(text) + 1):
        starts = [end - len(word) for word in words if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


@given(LETTERS, WORDS, st.lists(st.integers(0, 200), max_size=8))
def test_any_split_of_a_text_gives_the_text_cut_at_the_first_stop_word(text, words, cuts) -> None:
    stop = StopWords(words)
    out = "".join(stop.feed(piece) for piece in pieces(text, cuts)) + stop.flush()
    assert out == first_cut(text, words)
    assert stop.hit == (any(word in text for word in words))
    assert not any(word in out for word in words)


def test_a_partial_stop_word_is_held_and_comes_out_when_it_turns_out_to_be_none() -> None:
    stop = StopWords(["<human>"])
    assert stop.feed("Hello <hum") == "Hello "
    assert stop.feed("mus>") == "<hummus>"
    assert stop.flush() == ""


def test_flush_gives_back_the_beginning_of_a_word_that_never_ended() -> None:
    stop = StopWords(["<human>"])
    assert stop.feed("a <hu") == "a "
    assert stop.flush() == "<hu"
    assert stop.flush() == ""


def test_of_overlapping_words_the_one_that_ends_first_cuts() -> None:
    whole, split = StopWords(["abc", "b"]), StopWords(["abc", "b"])
    assert whole.feed("xabcy") == "xa"
    assert split.feed("xa") + split.feed("b") == "xa"


def test_of_words_that_end_together_the_longest_cuts() -> None:
    assert StopWords(["c", "abc"]).feed("xabc") == "x"


def test_after_a_hit_nothing_comes_out_any_more() -> None:
    stop = StopWords(["."])
    assert stop.feed("one. two") == "one"
    assert stop.feed(" three") == ""
    assert stop.flush() == ""


@pytest.mark.anyio
async def test_a_hit_cancels_the_generation_and_counts_every_token_made() -> None:
    model = ScriptedModel(["one ", "two ", "st", "op", " three", " four"])
    generation = model.generate("a prompt of five words", SamplingParams())
    chunks = [chunk async for chunk in hold_back(generation, ["stop"])]
    assert "".join(chunk.text for chunk in chunks) == "one two "
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert sum(chunk.tokens for chunk in chunks) == model.tokens_made == 4
    assert chunks[-1].prompt_tokens == 1


@pytest.mark.anyio
async def test_a_stop_word_in_the_first_piece_plays_nothing_twice() -> None:
    model = ScriptedModel(["stop", "again"])
    chunks = [chunk async for chunk in hold_back(model.generate("p", SamplingParams()), ["stop"])]
    assert [chunk.text for chunk in chunks] == [""]
    assert model.tokens_made == 1


@pytest.mark.anyio
async def test_without_a_hit_the_models_own_end_and_the_held_text_come_out() -> None:
    model = ScriptedModel(["one ", "st"])
    chunks = [chunk async for chunk in hold_back(model.generate("p", SamplingParams()), ["stop"])]
    assert "".join(chunk.text for chunk in chunks) == "one st"
    assert chunks[-1].finish_reason == "stop"
    limited = [c async for c in hold_back(model.generate("p", SamplingParams(max_new_tokens=1)), ["stop"])]
    assert limited[-1].finish_reason == "length"


@pytest.mark.anyio
async def test_as_many_stop_words_as_a_caller_may_send_leave_room_for_those_of_the_format() -> None:
    service = OpenChatKitService(ScriptedModel(["One. ", "ST", "OP two."]), KeywordModerator(), store := MemoryStore())
    words = (*(f"never {number}" for number in range(15)), "STOP")

    def ask(*more: str) -> ChatRequest:
        return ChatRequest("Hi", "request-1", session_id="my-session", sampling=SamplingParams(stop_words=words + more))

    assert service.model.format.stop_words
    reply = await service.reply(ask())
    assert (reply.text, reply.finish_reason) == ("One. ", "stop")
    (turn,) = (await store.load(Owner(), "my-session", limit=9)).turns
    assert (turn.status, turn.assistant) == ("complete", "One. ")
    with pytest.raises(InvalidRequest, match="stop_words has 17 entries, at most 16 are taken"):
        ask("one more")
