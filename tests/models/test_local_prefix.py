"""The prefix cache of the local engine: the tenth turn of a conversation computes a quarter of its prompt at most."""

import json
import random

import openvino
import openvino_genai
import pytest

from chatkit.models import gguf, local, local_worker, sources
from chatkit.prompts import build_prompt
from chatkit.types import Turn

# Tokens that the pipeline computes in one step: so the steps until the first token tell what was not in the cache.
STEP = 32
TURN = 60
WORDS = ("river", "stone", "bread", "window", "garden", "letter", "mountain", "winter", "music", "paper", "silver")


class ShortSteps(openvino_genai.SchedulerConfig):
    """The engine's settings with steps of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.max_num_batched_tokens = STEP


def computed(pipeline: openvino_genai.ContinuousBatchingPipeline, number: int, ids: list[int]) -> int:
    """Return how many tokens were computed for the first of an answer, in whole steps."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos = 1, True
    handle = pipeline.add_request(number, openvino.Tensor([ids]), config)
    steps = 0
    while pipeline.has_non_finished_requests():
        pipeline.step()
        steps += 1
    assert len(handle.read_all()[0].generated_ids) == 1
    return steps * STEP


@pytest.mark.parametrize("kept", [True, False], ids=("prefix_cache", "no_prefix_cache"))
def test_the_tenth_turn_computes_at_most_a_quarter_of_a_cold_one_and_all_without_the_cache(
    models_dir, monkeypatch, kept
) -> None:
    file = sources.resolve("default", models_dir=models_dir, role="chat")
    folder, facts = gguf.converted(file, cache=sources.derived_dir(file, models_dir=models_dir))
    options = local.LocalOptions(threads=1, kv_cache_gb=0.05, prefix_cache=kept)
    model = local.LocalModel(facts, folder, options)
    monkeypatch.setattr(openvino_genai, "SchedulerConfig", ShortSteps)
    pipeline = local_worker.open_pipeline(json.loads(model.command[-1]))
    source = random.Random(1)
    turns = [
        Turn(seq, f"turn-{seq}", 1, "complete", *(" ".join(source.choices(WORDS, k=TURN // 2)) for _ in range(2)))
        for seq in range(1, 11)
    ]

    def prompt(seq: int) -> list[int]:
        made = build_prompt(
            model.format,
            model.count_tokens,
            system="You are a helpful AI assistant.",
            turns=turns[: seq - 1],
            passages=(),
            text=turns[seq - 1].user,
            window=2048,
            reserve=64,
        )
        assert made.dropped_turns == 0
        return model.tokenizer.encode(made.text, add_special_tokens=False).ids

    ninth, tenth = prompt(9), prompt(10)
    assert len(tenth) - len(ninth) >= TURN
    assert computed(pipeline, 0, ninth) >= len(ninth)  # cold
    warm = computed(pipeline, 1, tenth)
    assert warm <= len(tenth) * 0.25 if kept else warm >= len(tenth)
