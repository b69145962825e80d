"""Precision of the local engine: speed, memory of a token and agreement with float32, option by option.

    python benchmarks/precision.py [--rounds 5] [--json]

Every way to run is loaded at once and they take turns, so that what else the machine does falls on all alike. Processor
time a token is the steadier figure where others use the machine. Run it from the root of a checkout.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import openvino
import openvino_genai

from chatkit.evaluation.report import Report
from chatkit.models import local, sources
from chatkit.models.gguf import converted
from chatkit.prompt_formats import chosen
from chatkit.settings import load_settings
from chatkit.types import Message

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
WAYS: dict[str, dict[str, str]] = {
    "exact: float32 throughout": FLOAT32,
    "fast: cache u8": {"KV_CACHE_PRECISION": "u8"},
    "cache f16": {"KV_CACHE_PRECISION": "f16"},
    "cache u4": {"KV_CACHE_PRECISION": "u4"},
    "inference f32, cache u8": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "u8"},
    "no dynamic quantisation": {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    "dynamic quantisation by 128": {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"},
}
QUESTIONS = tuple(
    json.loads(line)["question"]
    for line in (Path(__file__).parent.parent / "tests/data/questions.jsonl").read_text(encoding="utf-8").splitlines()
)[:16]
BLOCKS = 1024
NEW_TOKENS = 48
PREFILL = (4, 240)


class Way:
    """One loaded pipeline."""

    def __init__(self, folder: Path, properties: dict[str, str]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = BLOCKS
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        self._numbers = itertools.count()
        self.run([[1, 2, 3]], new=2)  # weights are unpacked in the first step

    def run(self, prompts: list[list[int]], *, new: int) -> tuple[list[list[int]], float, float]:
        """Answer all at once; return the tokens, the seconds and the processor seconds."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = new, True
        cpu, began = time.process_time(), time.perf_counter()
        handles = [
            self._pipeline.add_request(next(self._numbers), openvino.Tensor(numpy.array([ids], numpy.int64)), config)
            for ids in prompts
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        spent, used = time.perf_counter() - began, time.process_time() - cpu
        return [handle.read_all()[0].generated_ids for handle in handles], spent, used

    def bytes_a_token(self) -> int:
        """Return what a token takes in the key-value cache."""
        return int(self._pipeline.get_metrics().cache_size_in_bytes) // (BLOCKS * 32)


def measure(rounds: int) -> Report:
    """Load every way, let them take turns, and compare their answers with the first one's."""
    settings = load_settings()
    file = sources.resolve("default", models_dir=settings.models, role="chat")
    folder, facts = converted(file, cache=sources.derived_dir(file, models_dir=settings.models))
    tokenizer = local.LocalModel(facts, folder, local.LocalOptions()).tokenizer
    form = chosen("auto", name=facts.name, chat_template=facts.chat_template, special_tokens=facts.special_tokens)
    prompts = [
        tokenizer.encode(form.render([Message("user", question)]), add_special_tokens=False).ids
        for question in QUESTIONS
    ]
    ways = {name: Way(folder, properties) for name, properties in WAYS.items()}
    answers = {name: way.run(prompts, new=NEW_TOKENS)[0] for name, way in ways.items()}
    rows: list[dict[str, Any]] = []
    random = numpy.random.default_rng(0)
    for number in range(rounds):
        long = random.integers(50, 40_000, PREFILL).tolist()
        for name, way in ways.items():
            _, seconds, cpu = way.run(prompts[:8], new=NEW_TOKENS)
            _, alone, alone_cpu = way.run(prompts[:1], new=NEW_TOKENS)
            _, read, read_cpu = way.run(long, new=1)
            row = {"round": number, "way": name, "tokens_per_s@8": 8 * NEW_TOKENS / seconds}
            row |= {"tokens_per_s@1": NEW_TOKENS / alone, "prefill_per_s": PREFILL[0] * PREFILL[1] / read}
            row |= {"cpu_ms@8": cpu / (8 * NEW_TOKENS) * 1e3, "cpu_ms@1": alone_cpu / NEW_TOKENS * 1e3}
            rows.append(row | {"cpu_ms_read": read_cpu / (PREFILL[0] * PREFILL[1]) * 1e3})
        print(f"round {number} of {rounds}", file=sys.stderr)
    return Report("precision", {"rounds": rounds, "new_tokens": NEW_TOKENS}, _figures(rows, ways, answers), rows)


def _figures(rows: list[dict[str, Any]], ways: dict[str, Way], answers: dict[str, list[list[int]]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    exact = next(iter(answers.values()))
    for name, way in ways.items():
        own = [row for row in rows if row["way"] == name]
        for key in [key for key in own[0] if key not in ("round", "way")]:
            values = [row[key] for row in own]
            figures[f"{name} / {key}"] = round(statistics.median(values), 3)
            figures[f"{name} / {key}_low"], figures[f"{name} / {key}_high"] = (
                round(min(values), 3),
                round(max(values), 3),
            )
        figures[f"{name} / bytes_a_token"] = way.bytes_a_token()
        figures[f"{name} / same_prefix"] = round(
            statistics.mean(_same_prefix(a, b) for a, b in zip(answers[name], exact, strict=True)), 1
        )
        figures[f"{name} / first_token_same"] = sum(a[0] == b[0] for a, b in zip(answers[name], exact, strict=True))
    return figures


def _same_prefix(a: list[int], b: list[int]) -> int:
    return next((place for place, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what the local engine's precision options change.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = measure(arguments.rounds)
    print(report.as_json() if arguments.json else report.as_table())
