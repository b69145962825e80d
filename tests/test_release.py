"""The release gate: what leaves was checked, whatever the split, the moderator or the consumer does."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkit.release import (
    MAX_WINDOW,
    MIN_WINDOW,
    OVERLAP,
    ReleaseGate,
    WindowCutter,
    checked,
    overlapping_windows,
    tail,
)
from chatkit.squeeze import squeezed
from chatkit.testing import KeywordModerator, ScriptedModel
from chatkit.types import ModerationResult, SamplingParams

TEXTS = st.lists(
    st.sampled_from(
        ["word ", "Dr. ", "1. ", "end.", "!", "? ", "\n", "。", "…", '." ', "xz" * 25, "yz" * 150, "ab c "]
    ),
    max_size=40,
).map("".join)
CUTS = st.lists(st.integers(0, 2000), max_size=10)
SENTENCES = (
    "The first sentence stands here. The second one says bad things. The third is harmless again. And a fourth one."
)


def pieces(text: str, cuts: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


def windows_of(parts: list[str]) -> list[str]:
    cutter = WindowCutter()
    windows = [window for part in parts for window in cutter.feed(part)]
    return [window for window in [*windows, cutter.flush()] if window]


class Judge:
    """Keeps what it was asked, as overlap and window; flags a word."""

    def __init__(self, word: str = "\0") -> None:
        self.word = word
        self.asked: list[tuple[str, str]] = []

    async def check(self, text, *, direction, before="", history=()):
        self.asked.append((before, text))
        await asyncio.sleep(0)
        return ModerationResult(self.word in text, label="needs caution" if self.word in text else "casual")


def gate_over(parts, moderator, mode="check_first", delay=0.0) -> tuple[ReleaseGate, ScriptedModel]:
    model = ScriptedModel(parts, delay=delay)
    generation = model.generate("prompt", SamplingParams(max_new_tokens=4096))

    async def chunks():
        async for chunk in generation:
            yield chunk

    return ReleaseGate(chunks(), moderator, mode), model


async def released(gate) -> list[str]:
    return [text async for text in gate.released()]


@given(TEXTS, CUTS)
def test_windows_depend_on_the_text_alone_and_lose_nothing(text, cuts) -> None:
    whole = windows_of([text])
    assert "".join(whole) == text
    assert windows_of(pieces(text, cuts)) == whole
    assert windows_of(list(text)) == whole
    assert all(len(window) <= MAX_WINDOW for window in whole)
    assert all(2 * len(window) >= MIN_WINDOW for window in whole[:-1])


@settings(max_examples=60)
@given(TEXTS, CUTS)
def test_the_units_of_a_whole_text_are_what_the_gate_has_checked(text, cuts) -> None:
    judge = Judge()
    text = squeezed(text)
    gate, _ = gate_over(pieces(text, cuts), judge)
    assert "".join(asyncio.run(released(gate))) == text == gate.text
    stream, whole = judge.asked[:-1], judge.asked[-1:]
    assert whole == ([("", text)] if text.strip() else [])
    if text.strip():
        assert [tail(before) + window for before, window in stream] == overlapping_windows(text)


@settings(max_examples=60)
@given(TEXTS, CUTS, st.sampled_from(["Dr", "xx", "end", "yyy", "c "]))
def test_check_first_lets_no_text_out_before_it_was_judged_and_nothing_from_a_hit_on(text, cuts, word) -> None:
    judge = Judge(word)

    async def watch() -> str:
        gate, _ = gate_over(pieces(text, cuts), judge)
        out = ""
        async for window in gate.released():
            out += window
            assert not window.strip() or window in [asked for _, asked in judge.asked]
        assert gate.blocked == (word in text)
        return out

    out = asyncio.run(watch())
    expected = ""
    for window in windows_of([text]):
        if word in window:
            break
        expected += window
    assert out == expected


def test_the_overlap_is_the_last_whole_words() -> None:
    assert tail("short") == "short"
    text = "abcdefghij " * 12
    assert len(tail(text)) <= OVERLAP
    assert text.endswith(tail(text))
    assert tail(text).startswith("abcdefghij ")
    assert tail("xy" * 100) == "xy" * (OVERLAP // 2)


def test_units_go_on_from_what_stands_before() -> None:
    assert overlapping_windows("now this.", before="It was said that ") == ["It was said that now this."]
    assert overlapping_windows("  \n ") == []


@pytest.mark.anyio
async def test_a_hit_in_the_second_window_lets_the_first_out_and_cancels_the_generation() -> None:
    gate, model = gate_over([*SENTENCES, *["more "] * 500], KeywordModerator(["bad"]), delay=0.001)
    assert await released(gate) == ["The first sentence stands here. "]
    assert gate.blocked
    assert gate.result.label == "needs intervention"
    made = model.tokens_made
    await asyncio.sleep(0.02)
    assert model.tokens_made == made < 200


@pytest.mark.anyio
async def test_text_that_is_only_bad_as_a_whole_is_caught_at_the_end() -> None:
    class Whole:
        async def check(self, text, *, direction, before="", history=()):
            return ModerationResult("harmless again" in text and "first" in text, label="needs caution")

    gate, _ = gate_over([SENTENCES], Whole())
    assert "".join(await released(gate)) == SENTENCES
    assert gate.blocked
    assert gate.result.label == "needs caution"


@pytest.mark.anyio
async def test_stream_first_lets_a_window_out_before_its_check_and_stops_at_the_hit() -> None:
    gate, _ = gate_over([SENTENCES], KeywordModerator(["bad"]), "stream_first")
    assert await released(gate) == ["The first sentence stands here. ", "The second one says bad things. "]
    assert gate.blocked


@pytest.mark.anyio
async def test_final_only_lets_everything_out_at_the_end_or_nothing() -> None:
    good, _ = gate_over(list(SENTENCES), KeywordModerator(["worse"]), "final_only")
    assert await released(good) == [SENTENCES]
    assert not good.blocked
    moderator = KeywordModerator(["bad"])
    bad, _ = gate_over(list(SENTENCES), moderator, "final_only")
    assert await released(bad) == []
    assert bad.blocked
    assert moderator.checked == [("output", SENTENCES)]


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["check_first", "final_only"])
async def test_a_moderator_that_raises_blocks_and_lets_nothing_out(mode) -> None:
    gate, _ = gate_over([SENTENCES], KeywordModerator(broken=ValueError("no model")), mode)
    assert await released(gate) == []
    assert gate.blocked
    assert gate.result.unavailable
    assert gate.result.label is None


@pytest.mark.anyio
async def test_a_verdict_of_unavailable_blocks() -> None:
    class Down:
        async def check(self, text, *, direction, before="", history=()):
            return ModerationResult(False, label=None, unavailable=True)

    gate, _ = gate_over([SENTENCES], Down())
    assert await released(gate) == []
    assert gate.blocked


@pytest.mark.anyio
async def test_a_check_that_hangs_is_unavailable_after_its_time() -> None:
    verdict = await checked(KeywordModerator(delay=60), "text", direction="output", timeout=0.02)
    assert verdict.unavailable
    assert not verdict.flagged
    assert verdict.label is None


@pytest.mark.anyio
async def test_a_consumer_that_leaves_early_leaves_no_task_and_no_generation_behind() -> None:
    before = asyncio.all_tasks()
    gate, model = gate_over([*SENTENCES, *["more "] * 1000], KeywordModerator(delay=0.005), delay=0.001)
    stream = gate.released()
    assert await anext(stream) == "The first sentence stands here. "
    await stream.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    made = model.tokens_made
    await asyncio.sleep(0.02)
    assert model.tokens_made == made


@pytest.mark.anyio
async def test_a_hit_leaves_no_check_running() -> None:
    before = asyncio.all_tasks()
    gate, _ = gate_over([SENTENCES * 5], KeywordModerator(["bad"], delay=0.01))
    await released(gate)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.anyio
async def test_a_failure_of_the_model_comes_through_after_the_text_before_it() -> None:
    gate, _ = gate_over(["The first sentence stands here. ", "And", ValueError("gone")], KeywordModerator())
    stream = gate.released()
    assert await anext(stream) == "The first sentence stands here. "
    with pytest.raises(ValueError, match="gone"):
        await anext(stream)


@pytest.mark.anyio
async def test_an_aborted_generation_lets_no_unfinished_window_out() -> None:
    model = ScriptedModel([*SENTENCES[:40], *[" "] * 100], delay=0.001)
    generation = model.generate("p", SamplingParams())
    gate = ReleaseGate(aiter(generation), KeywordModerator(), "check_first")
    stream = gate.released()
    assert await anext(stream) == "The first sentence stands here. "
    generation.cancel()
    assert [text async for text in stream] == []
    assert gate.finish_reason == "aborted"
    assert not gate.blocked


@pytest.mark.anyio
async def test_usage_and_the_first_times_are_reported() -> None:
    gate, model = gate_over(["The first sentence stands here. ", "Short."], KeywordModerator())
    await released(gate)
    assert gate.usage.completion_tokens == model.tokens_made == 2
    assert gate.usage.prompt_tokens == 1
    assert gate.finish_reason == "stop"
    assert gate.first_token_at <= gate.first_window_at
