"""`bench engine`: the whole service over HTTP against the bare pipeline it is built on, in one run, in turns."""

import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from chatkit.errors import InvalidRequest
from chatkit.evaluation.bare import BareAnswer, BarePipeline, BareRound
from chatkit.evaluation.processes import machine_cpu_seconds
from chatkit.evaluation.report import Report, Spread
from chatkit.evaluation.served import ServedAnswer, ServedChatkit, ServedRound
from chatkit.evaluation.sides import greedy
from chatkit.evaluation.workload import PromptFrame, Workload
from chatkit.models import local, sources
from chatkit.models.decoding import Decoder
from chatkit.release import WindowCutter
from chatkit.settings import Settings

# Default settings ask for short answers; the measurement wants every answer to run to its full length.
_SYSTEM_PROMPT = "You are a storyteller."
# Turns of one round: enough that the ends of a round, where not all clients are busy, weigh little.
_LEAST_TURNS = 6
_TURNS_A_CLIENT = 2
# A round in which other processes use more cores than this is disturbed; the kernel alone takes some 0.02.
_BUSY = 0.1

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineBench:
    """What is measured: `clients` at a time, each prompt and answer of that many tokens, so many rounds a side."""

    clients: tuple[int, ...] = (1, 8, 16)
    prompt_tokens: int = 215
    new_tokens: int = 64
    rounds: int = 5

    def __post_init__(self) -> None:
        """Check every bound."""
        if not self.clients or min(self.clients) < 1:
            raise InvalidRequest(f"clients is {self.clients}, expected numbers of at least 1")
        if self.rounds < 1 or self.new_tokens < 2:
            raise InvalidRequest(f"rounds is {self.rounds} and new-tokens {self.new_tokens}, expected at least 1 and 2")


def bench_engine(settings: Settings, bench: EngineBench, progress: Progress) -> Report:
    """Measure; both sides are loaded all the time and idle while the other runs.

    The gate is on and never blocks (policy `monitor`), retrieval and the prefix cache are off, the store is SQLite in
    a folder of its own. Every round has new prompts, the same on both sides, so nothing is answered from a cache.

    Raises:
        ChatkitError: a side did not start or did not answer.
        InvalidRequest: the prompts cannot be that short.
    """
    settings = measured_settings(settings)
    frame = PromptFrame(settings)
    prompts = frame.prompts(bench.prompt_tokens, seed=0)
    rows: list[dict[str, Any]] = []
    with _both_sides(settings, frame, progress) as sides:
        sides.new_tokens = bench.new_tokens
        for clients in bench.clients:
            sides.pair(_take(prompts, clients), clients, bare_first=True)  # kernels for these shapes, first connections
            for number in range(bench.rounds):
                work = _take(prompts, turns_of(clients))
                bare, served = sides.pair(work, clients, bare_first=number % 2 == 0)
                row = _row(clients, number, bare, served, frame)
                rows.append(row | {"others_cores": round(sides.others_cores, 3)})
                progress(_line(rows[-1]))
    if (busy := statistics.median(row["others_cores"] for row in rows)) > _BUSY:
        progress(f"warning: other processes used {busy:.1f} cores in half of the rounds; use an idle machine")
    return Report("bench engine", described(settings, bench), engine_figures(rows), rows)


def measured_settings(settings: Settings) -> Settings:
    """Return the settings with what the measurement wants: long answers, all judged and none blocked, no caches."""
    return replace(settings, system_prompt=_SYSTEM_PROMPT, policy="monitor", prefix_cache=False, index="")


def served_settings(settings: Settings) -> dict[str, Any]:
    """Return those that decide what is measured, by name, as a service of its own is given them."""
    return {name: getattr(settings, name) for name in (*_SERVED, *_engine_names())}


def turns_of(clients: int) -> int:
    """Return the turns of a round."""
    return max(_LEAST_TURNS, _TURNS_A_CLIENT * clients)


def quiet(row: Mapping[str, Any]) -> bool:
    """Return whether other processes left the round of a row alone."""
    return bool(row["others_cores"] <= _BUSY)


class _Sides:
    """The bare pipeline and the service, loaded.

    Attributes:
        others_cores: cores that the rest of the machine used during the last pair of rounds.
    """

    def __init__(self, bare: BarePipeline, served: ServedChatkit, eos_ids: Sequence[int]) -> None:
        self._bare = bare
        self._served = served
        self._eos_ids = list(eos_ids)
        self.new_tokens = 0
        self.others_cores = 0.0

    def pair(self, work: list[Workload], clients: int, *, bare_first: bool) -> tuple[BareRound, ServedRound]:
        """Run the same prompts on both sides, one after the other; the order alternates so that drift cancels."""
        before, began = machine_cpu_seconds(), time.perf_counter()
        if bare_first:
            bare = self._run_bare(work, clients)
            served = self._run_served(work, clients)
        else:
            served = self._run_served(work, clients)
            bare = self._run_bare(work, clients)
        used, took = machine_cpu_seconds() - before, time.perf_counter() - began
        self.others_cores = max(0.0, (used - bare.cpu_s - sum(served.cpu_s.values())) / took)
        return bare, served

    def _run_bare(self, work: list[Workload], clients: int) -> BareRound:
        config = greedy(self.new_tokens, self._eos_ids)
        return self._bare.run([one.ids for one in work], clients=clients, config=config)

    def _run_served(self, work: list[Workload], clients: int) -> ServedRound:
        served = self._served.run([one.message for one in work], clients=clients, new_tokens=self.new_tokens)
        for one, answer in zip(work, served.answers, strict=True):
            if answer.prompt_tokens != len(one.ids):
                raise AssertionError(
                    f"the service's prompt has {answer.prompt_tokens} tokens, the bare pipeline's {len(one.ids)}"
                )
        return served


def engine_options(settings: Settings, frame: PromptFrame) -> dict[str, object]:
    """Return what the bare pipeline is loaded with: exactly what the service's engine gives its own worker."""
    options = local.LocalOptions(**{name: getattr(settings, name) for name in _engine_names()})
    told: dict[str, object] = json.loads(local.LocalModel(frame.facts, frame.folder, options).command[-1])
    return told


def _engine_names() -> list[str]:
    """Return the settings that the engine takes."""
    known = {field.name for field in fields(Settings)}
    return [field.name for field in fields(local.LocalOptions) if field.name in known]


@contextlib.contextmanager
def _both_sides(settings: Settings, frame: PromptFrame, progress: Progress) -> Iterator[_Sides]:
    """Load both sides; the session store is in a temporary home."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="chatkit-bench-"))
        progress("loading the bare pipeline and the service …")
        bare = BarePipeline(engine_options(settings, frame))
        stack.callback(bare.close)
        served = ServedChatkit(Path(home), served_settings(settings))
        stack.callback(served.close)
        yield _Sides(bare, served, frame.facts.eos_ids)


# The settings that decide what is measured, beside those of the engine; the service gets them as variables.
_SERVED = ("models_dir", "profile", "chat_model", "encoder", "encoder_backend", "system_prompt", "policy", "gate")


def _take(prompts: Iterator[Workload], count: int) -> list[Workload]:
    return list(itertools.islice(prompts, count))


def _row(clients: int, number: int, bare: BareRound, served: ServedRound, frame: PromptFrame) -> dict[str, Any]:
    """Return what one pair of rounds measured."""
    bare_tokens = sum(len(answer.ids) for answer in bare.answers)
    tokens = sum(answer.tokens for answer in served.answers)
    return {
        "clients": clients,
        "round": number,
        "turns": len(served.answers),
        "bare_tokens": bare_tokens,
        "tokens": tokens,
        "bare_tokens_per_s": bare_tokens / bare.seconds,
        "tokens_per_s": tokens / served.seconds,
        "ratio_to_bare": (tokens / served.seconds) / (bare_tokens / bare.seconds),
        **_latencies(bare, served, frame),
        "bare_cpu_ms_per_token": round(bare.cpu_s / bare_tokens * 1000, 3),
        "cpu_ms_per_token": {part: round(seconds / tokens * 1000, 3) for part, seconds in served.cpu_s.items()},
        "same_answers": _same(bare, served, frame),
    }


def _latencies(bare: BareRound, served: ServedRound, frame: PromptFrame) -> dict[str, Any]:
    """Return the medians over a round's turns; differences are taken turn by turn, between twins."""
    twins = list(zip(served.answers, bare.answers, strict=True))
    return {
        "bare_ttft_ms": _median_ms(twin.at[0] for twin in bare.answers),
        "engine_ttft_ms": _median_ms(map(engine_ttft_s, served.answers)),
        "engine_ttft_over_bare_ms": _median_ms(engine_ttft_s(answer) - twin.at[0] for answer, twin in twins),
        "first_delta_ms": _median_ms(answer.first_delta_s for answer in served.answers),
        "first_delta_over_bare_window_ms": _median_ms(
            answer.first_delta_s - _first_window_s(twin, frame) for answer, twin in twins
        ),
        "stages_ms": {
            stage: _median_ms(answer.timings.get(stage, 0.0) for answer in served.answers)
            for stage in served.answers[0].timings
        },
    }


def engine_ttft_s(answer: ServedAnswer) -> float:
    """Return the seconds from the client's send to the engine's first token.

    The service counts from the start of the turn. What lies before is at most the client's wait for the headers less
    the service's time to the accepted turn, after which it sends them; the way back of the headers is in it too.
    """
    before = max(0.0, answer.headers_s - answer.timings["accept"])
    return before + answer.timings["first_token"]


def _first_window_s(answer: BareAnswer, frame: PromptFrame) -> float:
    """Return when the bare pipeline had made the first window that the release gate would cut."""
    cutter, decoder = WindowCutter(), Decoder(frame.tokenizer)
    for token, at in zip(answer.ids, answer.at, strict=True):
        if cutter.feed(decoder.feed(token)):
            return at
    return answer.at[-1]


def _same(bare: BareRound, served: ServedRound, frame: PromptFrame) -> float:
    """Return the share of answers with the same words on both sides; batches of another make-up round differently."""
    pairs = zip(bare.answers, served.answers, strict=True)
    return statistics.fmean(frame.tokenizer.decode(twin.ids) == answer.text for twin, answer in pairs)


def _median_ms(seconds: Iterable[float]) -> float:
    return round(statistics.median(seconds) * 1000, 2)


def engine_figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the named figures: medians over the rounds; the ratio is that of neighbouring rounds.

    Rounds that other processes disturbed are left out, unless all were; `quiet_rounds@C` says how many are in.
    """
    figures: dict[str, float] = {}
    for clients in dict.fromkeys(row["clients"] for row in rows):
        own = [row for row in rows if row["clients"] == clients]
        undisturbed = [row for row in own if quiet(row)]
        figures[f"quiet_rounds@{clients}"] = len(undisturbed)
        own = undisturbed or own
        ratio = Spread.of([row["ratio_to_bare"] for row in own])
        figures[f"ratio_to_bare@{clients}"] = round(ratio.median, 4)
        figures[f"ratio_to_bare_low@{clients}"] = round(ratio.low, 4)
        figures[f"ratio_to_bare_high@{clients}"] = round(ratio.high, 4)
        for name in ("tokens_per_s", "bare_tokens_per_s"):
            figures[f"{name}@{clients}"] = round(Spread.of([row[name] for row in own]).median, 2)
        if clients == 1:
            for name in ("engine_ttft_over_bare_ms", "first_delta_over_bare_window_ms"):
                figures[f"{name}@1"] = round(Spread.of([row[name] for row in own]).median, 2)
    return figures


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['clients']:>3} clients, round {row['round'] + 1}: {row['tokens_per_s']:.1f} tokens/s, "
        f"bare {row['bare_tokens_per_s']:.1f}, ratio {row['ratio_to_bare']:.3f}, others {row['others_cores']:.2f} cores"
    )


def precision_of(settings: Settings) -> str:
    """Return in words what the local engine computes in."""
    if settings.precision == "exact":
        return "weights as in the GGUF file, float32 throughout (precision exact)"
    return "weights as in the GGUF file, an eight-bit cache and the rest as OpenVINO chooses (precision fast)"


def described(settings: Settings, bench: EngineBench) -> dict[str, Any]:
    """Return the settings under which the figures hold."""
    return {
        "clients": list(bench.clients),
        "prompt_tokens": bench.prompt_tokens,
        "new_tokens": bench.new_tokens,
        "rounds": bench.rounds,
        "sampling": "greedy",
        "model": sources.name_of(settings.chat_model, "chat", settings.profile),
        "precision": f"{precision_of(settings)}; the same files on both sides",
        "retrieval": False,
        "store": "sqlite",
        "gate": settings.gate,
        "policy": settings.policy,
        "prefix_cache": settings.prefix_cache,
        "threads": settings.threads,
        "max_running": settings.max_running,
        "kv_cache_gb": settings.kv_cache_gb,
        "door": "POST /invocations, JSON lines, loopback",
    }
