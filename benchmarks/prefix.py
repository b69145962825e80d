"""How much of a prompt an engine computes again: turn by turn, with and without passages, and after a drop.

    python benchmarks/prefix.py [--engine transformers] [--turns 24] [--json]

The pipeline of `local` does not say how many tokens it took from its cache. So it is given steps of 8 tokens, and the
steps until an answer's first token are counted: what is computed is known to within 8. The scheduler of `transformers`
counts what it reads. Seconds are processor time to the first token with the usual steps. Cold is the same prompt
without a prefix cache. Run it from the root of a checkout.
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
from chatkit.models.chat_convert import dequantized
from chatkit.models.engine import EngineModel
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


@dataclass(frozen=True)
class Taken:
    """What an answer took: its tokens, those of the prompt that were computed, processor seconds to the first token."""

    answer: list[int]
    computed: int
    warm: float
    cold: float


class Pipeline:
    """An OpenVINO pipeline that tells what the first token of an answer took."""

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


class Local:
    """The engine `local`: a pipeline with short steps to count by, one as it is, one without the cache."""

    def __init__(self, file: Path, cache: Path) -> None:
        folder, facts = converted(file, cache=cache)
        self.model: EngineModel = local.LocalModel(facts, folder, local.LocalOptions())  # never started: only its words
        self._counting = Pipeline(folder, step=STEP, cached=True)
        self._warm = Pipeline(folder, step=256, cached=True)
        self._cold = Pipeline(folder, step=256, cached=False)

    def take(self, ids: list[int]) -> Taken:
        """Answer a prompt in all three."""
        answer, steps, _ = self._counting.answer(ids)
        _, _, warm = self._warm.answer(ids)
        _, _, cold = self._cold.answer(ids)
        return Taken(answer, min(steps * STEP, len(ids)), warm, cold)


class Transformers:
    """The engine `transformers`: its scheduler with and without kept rows, on one model."""

    def __init__(self, file: Path, cache: Path) -> None:
        from chatkit.models import chat, chat_load, chat_runner, chat_scheduler

        options = chat.ChatOptions()
        self.model: EngineModel = chat.open_chat(file, cache=cache, options=options, name="prefix")  # never started
        loaded = chat_load.load_model(dequantized(file, cache=cache), chat_load.LoadOptions())
        self._events: list[dict[str, Any]] = []
        self._numbers = itertools.count()
        self._sides = []
        for keep in (True, False):
            runner = chat_runner.Runner(loaded)
            runner.check()
            limits = chat_scheduler.Limits(
                65536, self.model.context_window, max_running=1, piece=256, keep_prefixes=keep
            )
            scheduler = chat_scheduler.Scheduler(runner, self.model.tokenizer, limits, self._events.append)
            self._sides.append(scheduler)
            self._answer(scheduler, [1, 2, 3], 1)  # torch sets itself up in the first step

    def take(self, ids: list[int]) -> Taken:
        """Answer a prompt with kept rows, and read it without."""
        answer, computed, warm = self._answer(self._sides[0], ids, ANSWER)
        _, _, cold = self._answer(self._sides[1], ids, 1)
        return Taken(answer, computed, warm, cold)

    def _answer(self, scheduler: Any, ids: list[int], tokens: int) -> tuple[list[int], int, float]:
        """Return the answer, the prompt's tokens that were read, and the processor seconds to the first token."""
        config = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": None}
        config |= {"max_new_tokens": tokens, "stop_words": [], "eos_ids": []}
        self._events.clear()
        began, seconds = time.process_time(), 0.0
        scheduler.apply({"add": next(self._numbers), "ids": ids, "config": config})
        while not scheduler.idle:
            scheduler.work()
            if not seconds and any(event["step"] for event in self._events):
                seconds = time.process_time() - began
        answer = [token for event in self._events for row in event["step"] for token in row[1]]
        return answer, sum(event["read"] for event in self._events), seconds


SIDES = {"local": Local, "transformers": Transformers}


class Bench:
    """Conversations with one engine."""

    def __init__(self, engine: str) -> None:
        settings = load_settings()
        file = sources.resolve("default", models_dir=settings.models, role="chat")
        self._side = SIDES[engine](file, sources.derived_dir(file, models_dir=settings.models))
        self.model = self._side.model

    def turn(self, prompt: Prompt) -> tuple[str, dict[str, Any]]:
        """Answer a prompt; return the answer and what it took."""
        ids = self.model.tokenizer.encode(prompt.text, add_special_tokens=False).ids
        taken = self._side.take(ids)
        row = {"prompt_tokens": len(ids), "computed_tokens": taken.computed}
        row |= {"share": round(taken.computed / len(ids), 3), "cpu_s": round(taken.warm, 3)}
        row |= {"cold_cpu_s": round(taken.cold, 3), "dropped_turns": prompt.dropped_turns}
        return self.model.tokenizer.decode(taken.answer), row

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


def measure(engine: str, turns: int) -> Report:
    """Hold a conversation of every kind."""
    bench = Bench(engine)
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
    settings = {"engine": engine, "turns": turns, "answer": ANSWER, "question": QUESTION, "passage": PASSAGE}
    return Report("prefix", settings, figures, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what the prefix cache spares.")
    parser.add_argument("--engine", choices=SIDES, default="local")
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = measure(arguments.engine, max(12, arguments.turns))
    print(report.as_json() if arguments.json else report.as_table())
