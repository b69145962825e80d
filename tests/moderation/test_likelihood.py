"""Answers scored as a tree in one pass are as likely as each of them is alone, whatever model and whatever is kept."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatkit.errors import TooLarge
from chatkit.models.likelihood import Likelihoods, Tree
from tests.moderation import tiny_judges

ANSWERS = (" casual", " needs caution", " needs intervention", " possibly needs caution", " x")
LEAD = "Some words that every prompt begins with.\n\n"


@pytest.fixture(scope="module", params=list(tiny_judges.CONFIGS))
def judged(request, tmp_path_factory):
    folder = tiny_judges.make(tmp_path_factory.mktemp("judge") / request.param, request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, lambda text: tokenizer(text, add_special_tokens=False).input_ids


def test_answers_are_as_likely_as_alone(judged) -> None:
    model, ids = judged
    judge = Likelihoods(model)
    prompts = [ids(LEAD + text) for text in ("Input: short\nOutput:", "Input: a good deal longer than that\nOutput:")]
    answers = [ids(answer) for answer in ANSWERS]
    expected = [[tiny_judges.chances(model, prompt, answer) for answer in answers] for prompt in prompts]
    found = judge.score(prompts, answers)
    assert judge.forwards == 1
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-4)
    assert judge.keep(ids(LEAD + "a"), ids(LEAD + "b")) > 10
    for _ in range(2):  # what is kept is not changed by its use
        assert torch.allclose(torch.tensor(judge.score(prompts, answers)), torch.tensor(expected), atol=1e-4)
        one = torch.tensor(judge.score(prompts[:1], answers))
        assert torch.allclose(one, torch.tensor(expected[:1]), atol=1e-4)
    assert judge.forwards == 6


def test_a_prompt_that_begins_otherwise_is_read_from_its_start(judged) -> None:
    model, ids = judged
    judge = Likelihoods(model)
    judge.keep(ids(LEAD + "a"), ids(LEAD + "b"))
    other = ids("Nothing of the kind:")
    expected = tiny_judges.chances(model, other, ids(" x"))
    assert judge.score([other], [ids(" x")])[0][0] == pytest.approx(expected, abs=1e-4)


def test_what_is_longer_than_the_window_is_refused(judged) -> None:
    model, ids = judged
    with pytest.raises(TooLarge, match=f"at most {tiny_judges.WINDOW}"):
        Likelihoods(model).score([[1] * tiny_judges.WINDOW], [ids(" x")])


def test_a_tree_holds_each_beginning_once() -> None:
    tree = Tree.of([(1, 2, 3), (1, 2, 4), (5,), (1, 2)])
    assert tree.tokens == (1, 2, 3, 4, 5)
    assert tree.parents == (-1, 0, 1, 1, -1)
    assert tree.depths == (0, 1, 2, 2, 0)
    assert tree.ends == (2, 3, 4, 1)
    assert tree.sees()[3].tolist() == [True, True, False, True, False]
    with pytest.raises(ValueError, match="without a token"):
        Tree.of([()])
