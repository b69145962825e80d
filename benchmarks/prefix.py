"""How much of a prompt the local engine computes again: turn by turn, with and without passages, and after a drop.

    python benchmarks/prefix.py [--turns 24] [--json]

The pipeline does not say how many tokens it took from its cache. So it is given steps of 8 tokens, and the steps until
an answer's first token are counted: what is computed is known to within 8. Seconds are processor time to the first
token of a pipeline with its usual steps. Cold is the same prompt without a prefix cache. Run it from the root of a
checkout.
"""

import argparse
import itertools
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import openvino
import openvino_genai

from chatkit.evaluation.report import Report
from chatkit.models import local, sources
from chatkit.models.gguf import converted
from chatkit.prompts import Prompt, build_prompt
from chatkit.settings import load_settings
from chatkit.types import Passage, Turn

STEP = 8
ANSWER = 30
QUESTION = 30
PASSAGE = 150
SYSTEM = "You are a helpful AI assistant. Today is Saturday, 21 November 2026."
WORDS = (
    *("river", "stone", "bread", "window", "garden", "letter", "mountain", "winter", "music", "paper", "silver"),
    *("morning", "captain", "village", "market", "island", "yellow", "forest", "engine", "summer", "doctor"),
    *("bridge", "orange", "kitchen", "harbour", "teacher", "history", "machine", "corner", "valley"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of conversation: passages a turn, and the tokens that prompt and answer may take."""

    name: str
    passages: int
    window: int


KINDS = (Kind("plain", 0, 8192), Kind("passages", 3, 8192), Kind("cut", 0, 1024))


class Engine:
    """A pipeline that tells what the first token of an answer took."""

    def __init__(self, folder: Path, *, step: int, cached: bool) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = 2048
        scheduler.max_num_batched_tokens = step
        scheduler.enable_prefix_caching = cached
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {})
        self._numbers = itertools.count()
        self.answer([1, 2, 3])  # weights are unpacked in the first step

    def answer(self, ids: list[int]) -> tuple[list[int], int, float]:
        """Return the answer, the steps until its first token, and the processor seconds until then."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = ANSWER, True
        began = time.process_time()
        handle = self._pipeline.add_request(
            next(self._numbers), openvino.Tensor(numpy.array([ids], numpy.int64)), config
        )
        steps = 0
        while not handle.can_read():
            self._pipeline.step()
            steps += 1
        seconds = time.process_time() - began
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return [token for part in handle.read_all() for token in part.generated_ids], steps, seconds


class Bench:
    """The three pipelines and the model's own words."""

    def __init__(self) -> None:
        settings = load_settings()
        file = sources.resolve("default", models_dir=settings.models, role="chat")
        folder, facts = converted(file, cache=sources.derived_dir(file, models_dir=settings.models))
        self.model = local.LocalModel(facts, folder, local.LocalOptions())  # never started: only its words
        self._counting = Engine(folder, step=STEP, cached=True)
        self._warm = Engine(folder, step=256, cached=True)
        self._cold = Engine(folder, step=256, cached=False)

    def turn(self, prompt: Prompt) -> tuple[str, dict[str, Any]]:
        """Answer a prompt in all three; return the answer and what it took."""
        ids = self.model.tokenizer.encode(prompt.text, add_special_tokens=False).ids
        answer, steps, _ = self._counting.answer(ids)
        _, _, warm = self._warm.answer(ids)
        _, _, cold = self._cold.answer(ids)
        computed = min(steps * STEP, len(ids))
        row = {"prompt_tokens": len(ids), "computed_tokens": computed, "share": round(computed / len(ids), 3)}
        row |= {"cpu_s": round(warm, 3), "cold_cpu_s": round(cold, 3), "dropped_turns": prompt.dropped_turns}
        return self.model.tokenizer.decode(answer), row

    def text(self, source: random.Random, tokens: int) -> str:
        """Return words of that many tokens."""
        ids = self.model.tokenizer.encode(" ".join(source.choices(WORDS, k=tokens)), add_special_tokens=False).ids
        return str(self.model.tokenizer.decode(ids[:tokens]))

    def conversation(self, kind: Kind, turns: int) -> list[dict[str, Any]]:
        """Hold one conversation and return a row a turn."""
        source = random.Random(kind.name)
        done: list[Turn] = []
        rows = []
        for number in range(1, turns + 1):
            question = self.text(source, QUESTION)
            found = [Passage(f"p{n}", self.text(source, PASSAGE), title=f"Page {n}") for n in range(kind.passages)]
            prompt = build_prompt(
                self.model.format,
                self.model.count_tokens,
                system=SYSTEM,
                turns=done,
                passages=found,
                text=question,
                window=kind.window,
                reserve=ANSWER,
            )
            answer, row = self.turn(prompt)
            done.append(Turn(number, f"turn-{number}", 1, "complete", question, answer, "length"))
            rows.append({"kind": kind.name, "turn": number, **row})
        return rows


def measure(turns: int) -> Report:
    """Hold a conversation of every kind."""
    bench = Bench()
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        rows += bench.conversation(kind, turns)
        print(f"{kind.name}: done", file=sys.stderr)
    figures: dict[str, float] = {}
    for kind in ("plain", "passages"):
        row = next(row for row in rows if row["kind"] == kind and row["turn"] == 10)
        figures |= {f"{kind}@10.{name}": row[name] for name in ("prompt_tokens", "computed_tokens", "share")}
        figures[f"{kind}@10.cpu_share"] = round(row["cpu_s"] / row["cold_cpu_s"], 3)
    cut = [row for row in rows if row["kind"] == "cut"]
    for before, at, after in zip(cut, cut[1:], cut[2:], strict=False):
        if at["dropped_turns"] > before["dropped_turns"]:
            figures |= {"drop.turn": at["turn"], "drop.share": at["share"], "after_drop.share": after["share"]}
            figures["drop.prompt_tokens"] = at["prompt_tokens"]
            break
    shares = [row["share"] for row in cut[10:]]
    figures["cut.mean_share"] = round(sum(shares) / len(shares), 3)
    return Report("prefix", {"turns": turns, "answer": ANSWER, "question": QUESTION, "passage": PASSAGE}, figures, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what the prefix cache spares.")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = measure(max(12, arguments.turns))
    print(report.as_json() if arguments.json else report.as_table())
