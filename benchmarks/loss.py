"""What the whole service loses against the bare engine, part by part.

    python benchmarks/loss.py [--clients 1,8] [--new-tokens 64] [--rounds 5] [--json]

The same prompts over the same door, in turns, by services that differ in one thing each:

| side | what it leaves out of the one before |
|---|---|
| chatkit | nothing: gate in check_first, sessions in SQLite |
| memory-store | the disk: sessions in memory |
| no-store | the store: the caller keeps the conversation |
| final-only | the checks while the answer grows; the whole text is checked at its end |
| unmoderated | the checks of the message and of the whole answer; what is left of the gate waits for the end |
| bare | HTTP, the event loop and the service itself: the pipeline in a plain loop |

A part's cost is what two neighbours differ by in milliseconds a token: the difference in each round, and of these the
median, for the machine drifts from round to round. Its share is that of the median difference between chatkit and bare,
and is left out where that is not above 0; a share below 0 lies within the spread of the rounds. The parts' medians need
not add up to that of all.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatkit.evaluation import bench
from chatkit.evaluation.bare import BarePipeline
from chatkit.evaluation.peer_bench import Rounds, peer_figures
from chatkit.evaluation.report import Report
from chatkit.evaluation.served import ServedChatkit
from chatkit.evaluation.sides import BareSide, HttpSide, Side, chatkit_body, unstored_body
from chatkit.evaluation.workload import PromptFrame, Workload
from chatkit.settings import Settings, load_settings

UNMODERATED = (str(Path(__file__).resolve().with_name("unmoderated.py")),)
CHATKIT = ("-m", "chatkit")
Body = Callable[[Workload, int], dict[str, Any]]
# Name, what the settings differ in, the program, how it is asked; each leaves out one thing more than the one before.
SERVICES: tuple[tuple[str, Mapping[str, str], Sequence[str], Body], ...] = (
    ("chatkit", {}, CHATKIT, chatkit_body),
    ("memory-store", {"store": "memory"}, CHATKIT, chatkit_body),
    ("no-store", {"store": "memory"}, CHATKIT, unstored_body),
    ("final-only", {"store": "memory", "gate": "final_only"}, CHATKIT, unstored_body),
    ("unmoderated", {"store": "memory", "gate": "final_only"}, UNMODERATED, unstored_body),
)
# The part that lies between a side and the one before it.
PARTS = {
    "memory-store": "disk",
    "no-store": "store",
    "final-only": "checks_while_it_grows",
    "unmoderated": "other_checks",
    "bare": "http_and_service",
}


def loss_figures(rows: Sequence[Mapping[str, Any]], length: int) -> dict[str, float]:
    """Return each part's milliseconds a token and its share of the whole loss, beside the sides' own figures."""
    figures = peer_figures(rows, length)
    for clients in dict.fromkeys(row["clients"] for row in rows):
        tail = f"@{clients}"
        rounds = _rounds(row for row in rows if row["clients"] == clients)
        figures[f"quiet_rounds{tail}"] = sum(quiet for quiet, _ in rounds)
        kept = [costs for quiet, costs in rounds if quiet] or [costs for _, costs in rounds]
        whole = statistics.median(costs[0] - costs[-1] for costs in kept)
        for at, part in enumerate(PARTS.values()):
            lost = statistics.median(costs[at] - costs[at + 1] for costs in kept)
            figures[f"{part}_ms_per_token{tail}"] = round(lost, 4)
            if whole > 0:  # a share of nothing says nothing
                figures[f"{part}_share{tail}"] = round(lost / whole, 3)
        figures[f"loss{tail}"] = round(statistics.median(1 - costs[-1] / costs[0] for costs in kept), 4)
    return figures


def _rounds(rows: Iterable[Mapping[str, Any]]) -> list[tuple[bool, list[float]]]:
    """Return of each round whether other processes left it alone, and its sides' milliseconds a token in order."""
    rounds: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        rounds.setdefault(row["round"], {})[row["side"]] = row
    order = (SERVICES[0][0], *PARTS)
    return [
        (all(map(bench.quiet, sides.values())), [1000 / sides[side]["tokens_per_s"] for side in order])
        for sides in rounds.values()
    ]


@contextlib.contextmanager
def services(settings: Settings, frame: PromptFrame) -> Iterator[list[Side]]:
    """Start all; each has a home of its own."""

    def recount(text: str) -> int:
        return len(frame.tokenizer.encode(text, add_special_tokens=False).ids)

    with contextlib.ExitStack() as stack:
        sides: list[Side] = []
        for name, changed, program, body in SERVICES:
            said(f"starting {name} …")
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatkit-bench-")))
            served = ServedChatkit(home, bench.served_settings(settings) | changed, program=program)
            stack.callback(served.close)
            sides.append(HttpSide(name, served, body, recount, precision="the same files"))
        pipeline = BarePipeline(bench.engine_options(settings, frame))
        stack.callback(pipeline.close)
        yield [*sides, BareSide(pipeline, frame.facts.eos_ids, "the same files")]


def measure(clients: tuple[int, ...], new_tokens: int, rounds: int) -> Report:
    """Take turns."""
    settings = bench.measured_settings(load_settings())
    frame = PromptFrame(settings)
    wanted = bench.EngineBench(clients, new_tokens=new_tokens, rounds=rounds)
    failed: dict[str, str] = {}
    with services(settings, frame) as sides:
        runs = Rounds(sides, frame.prompts(wanted.prompt_tokens, seed=0), failed, said)
        for many in clients:
            runs.measure(many, new_tokens, rounds)
    if failed:
        raise SystemExit(f"error: {'; '.join(failed.values())}")
    described = bench.described(settings, wanted) | {"door": "POST /v1/chat/completions, events, loopback"}
    for differs in ("store", "gate", "policy"):
        described[differs] = "as its name says, for each side"
    return Report("loss", described, loss_figures(runs.rows, new_tokens), runs.rows)


def said(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what each part of the service costs.")
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = measure(tuple(map(int, arguments.clients.split(","))), arguments.new_tokens, arguments.rounds)
    print(report.as_json() if arguments.json else report.as_table())
