"""StopWordsCriteria alone and inside `generate`: words over tokens, characters over tokens, many rows, the prompt."""

import pytest
import torch
from transformers import AutoModelForCausalLM, StoppingCriteriaList

from chatkit.models.chat import StopWordsCriteria
from chatkit.models.chat_stopping import RowStop
from tests.models import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def steps(criteria, prompt: list[list[int]], new: list[list[int]]) -> list[list[bool]]:
    """Feed rows of new tokens one step at a time and return what is over after each."""
    rows = [list(row) for row in prompt]
    seen = []
    for column in zip(*new, strict=True):
        for row, token in zip(rows, column, strict=True):
            row.append(token)
        seen.append(criteria(torch.tensor(rows), None).tolist())
    return seen


def test_a_word_spread_over_tokens_ends_the_row_with_its_last_one(tokenizer) -> None:
    new = ids(tokenizer, "ok <human>: hi")
    assert len(ids(tokenizer, "<human>")) > 3
    seen = steps(StopWordsCriteria(tokenizer, ["<human>"], prompt_tokens=0), [[]], [new])
    first = [over for (over,) in seen].index(True)
    assert tokenizer.decode(new[: first + 1]) == "ok <human>"
    assert all(over for (over,) in seen[first:])


@pytest.mark.parametrize("word", ["漢字", "🙂", "né"])
def test_a_word_of_characters_that_are_several_tokens_is_found_whole(tokenizer, word) -> None:
    text = f"abc {word}x"
    new = ids(tokenizer, text)
    seen = [over for (over,) in steps(StopWordsCriteria(tokenizer, [word], prompt_tokens=0), [[]], [new])]
    assert tokenizer.decode(new[: seen.index(True) + 1]) == f"abc {word}"


def test_half_a_character_never_matches(tokenizer) -> None:
    new = ids(tokenizer, "漢")
    assert len(new) == 3
    seen = steps(StopWordsCriteria(tokenizer, ["\ufffd"], prompt_tokens=0), [[]], [new])
    assert not any(over for (over,) in seen)


def test_the_prompt_is_never_scanned_even_where_it_ends_with_half_a_word(tokenizer) -> None:
    prompt = ids(tokenizer, "stop here: st")
    criteria = StopWordsCriteria(tokenizer, ["stop"], prompt_tokens=len(prompt))
    assert steps(criteria, [prompt], [ids(tokenizer, "op go")]) == [[False]] * len(ids(tokenizer, "op go"))
    assert steps(criteria, [[0] * (len(prompt) + len(ids(tokenizer, "op go")))], [ids(tokenizer, " stop")])[-1] == [
        True
    ]


def test_every_row_ends_by_its_own_text(tokenizer) -> None:
    rows = [ids(tokenizer, text) for text in ("aaENDaa", "aaaaEND", "aaaaaaa")]
    assert {len(row) for row in rows} == {7}
    seen = steps(StopWordsCriteria(tokenizer, ["END", "zzz"], prompt_tokens=2), [[1, 2]] * 3, rows)
    ends = [[step[row] for step in seen].count(False) for row in range(3)]
    assert ends == [4, 6, 7]


def test_the_cancel_flag_is_read_at_every_step(tokenizer) -> None:
    asked = []
    criteria = StopWordsCriteria(tokenizer, [], prompt_tokens=0, cancelled=lambda: asked.append(1) or len(asked) > 2)
    assert steps(criteria, [[], []], [[5] * 4, [6] * 4]) == [[False] * 2, [False] * 2, [True] * 2, [True] * 2]
    assert len(asked) == 4


def test_control_tokens_are_no_text(tokenizer) -> None:
    row = RowStop(tokenizer.backend_tokenizer, ["<|end|>"])
    assert not row.hit(0)


def test_generate_stops_where_the_word_ends_in_a_batch_with_padding(tmp_path) -> None:
    folder = tiny.make(tmp_path / "neox")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    batch = tokenizer(["the quick brown fox", "snow"], return_tensors="pt", padding=True)
    length = batch["input_ids"].shape[1]
    plain = model.generate(**batch, do_sample=False, max_new_tokens=12, pad_token_id=0)[:, length:]
    texts = [[tokenizer.decode(row[:n], skip_special_tokens=True) for n in range(13)] for row in plain]
    pairs = [tokenizer.decode(plain[0][place : place + 2]) for place in range(1, 10)]
    word = next(text for text in pairs if text.isascii() and len(text) > 1 and "<" not in text)
    criteria = StopWordsCriteria(tokenizer, [word], prompt_tokens=length)
    stopped = model.generate(
        **batch, do_sample=False, max_new_tokens=12, pad_token_id=0, stopping_criteria=StoppingCriteriaList([criteria])
    )[:, length:]
    end = [word in text for text in texts[0]].index(True)
    assert stopped[0][:end].tolist() == plain[0][:end].tolist()
    assert end < 12
    assert set(stopped[0][end:].tolist()) == {0}
    assert word not in texts[1][-1]
    assert stopped[1].tolist() == plain[1].tolist()
