import dataclasses
import itertools

import pytest

from chatkit.errors import InvalidRequest
from chatkit.evaluation.workload import PromptFrame
from chatkit.settings import load_settings


@pytest.fixture(scope="module")
def frame():
    return PromptFrame(dataclasses.replace(load_settings(environ={}), system_prompt="You are a storyteller."))


@pytest.mark.parametrize("tokens", [60, 61, 215, 1000])
def test_every_prompt_has_exactly_the_tokens_asked_for(frame, tokens):
    made = list(itertools.islice(frame.prompts(tokens, seed=1), 20))
    assert [len(one.ids) for one in made] == [tokens] * 20
    assert all(one.ids == frame.ids(one.message) for one in made)


def test_prompts_differ_and_the_same_seed_gives_the_same_ones(frame):
    first, again, other = (list(itertools.islice(frame.prompts(215, seed=seed), 30)) for seed in (1, 1, 2))
    assert first == again
    assert len({one.message for one in first} | {one.message for one in other}) == 60


def test_a_rendered_prompt_holds_the_system_prompt_the_message_and_the_models_own_markers(frame):
    text = frame.tokenizer.decode(frame.ids("Tell me of the sea."), skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nYou are a storyteller.")
    assert text.endswith("<|im_start|>user\nTell me of the sea.<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_shorter_than_its_frame_is_refused(frame):
    with pytest.raises(InvalidRequest, match="prompt-tokens is 10, expected at least"):
        next(frame.prompts(10, seed=1))
