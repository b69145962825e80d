"""What a kill costs a build, and what those who search the index notice of it.

    python benchmarks/build_kills.py [--kills 20] [--seed 6] [--json]

A corpus in releases: every passage but those of a part that never changes says of which release it is. In each round
all files go to the next release, `chatkit prepare-index` starts on them in a process of its own and gets SIGKILL at a
random moment of a random stage, then runs again until it completes; now and then that one is killed as well. All the
time four threads ask the index through what a service searches with. In the end the two newest versions are swapped to
and fro under the same threads. Ends with 1 when a promise was broken.

| figure | meaning |
|---|---|
| `kills`, `kills_in_STAGE` | of running builds; start is before the first file is looked at, read takes the digests |
| `rounds`, `completed` | builds, and those that completed with every passage in the end |
| `batch` | chunks between two writes |
| `begun_again_most`, `_mean` | chunks a kill: given to the encoder by the killed process, and by a later one again |
| `embedded_again_most` | the same of chunks whose vector the killed process had computed |
| `unchanged_embedded` | chunks embedded although their text was in the version before |
| `rerun_embedded` | chunks that runs with nothing changed embedded |
| `disturbed` | kills after which the live version, opened anew with every byte checked, answered otherwise |
| `queries`, `failed` | asked meanwhile; those that raised or found nothing |
| `mixed`, `untimely` | answers with passages of two releases; of a release that was not live |
| `swaps`, `swap_queries`, `swap_failed`, `swap_mixed` | the same while two versions take each other's place |
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from build_kills_asking import NAME, THREADS, Asking, question, releases, swap

from chatkit import wiring
from chatkit.errors import BadIndex
from chatkit.evaluation.report import Report
from chatkit.retrieval.building.embedding import BATCH
from chatkit.retrieval.building.keys import key_of
from chatkit.retrieval.chunking import Chunk
from chatkit.retrieval.index import SearchOptions, VectorIndex
from chatkit.retrieval.layout import IndexFolder
from chatkit.retrieval.manifest import Manifest
from chatkit.retrieval.passages import read_table
from chatkit.settings import load_settings

CHILD = Path(__file__).with_name("build_kills_child.py")
STAGES = ("start", "read", "cut", "embed", "write")
_WORDS = ("alpha", "river", "copper", "signal", "garden", "engine", "bottle", "forest", "bridge", "silver", "winter")
_FILES = 12
_LONGEST_S = 600
# Rounds of which one is run again with nothing changed.
_RERUN_EVERY = 4


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured.

    Attributes:
        chunks: that change in every round.
        kept: chunks that never change.
        batch: in place of the build's own; 0 leaves it.
        weights: how often a kill is meant for each stage; embedding is nearly all of a build's time.
        within: the share of a stage, from its beginning, in which kills fall.
        models: the folder of models; that of the settings where none is given.
        after_kill: called with the index's folder; a fault that the measurement has to notice.
    """

    kills: int = 20
    seed: int = 6
    chunks: int = 600
    kept: int = 100
    swaps: int = 40
    batch: int = 0
    weights: tuple[int, ...] = (1, 1, 2, 8, 4)
    within: float = 1.0
    models: Path | None = None
    after_kill: Callable[[Path], None] = lambda _: None


def measure(options: Options, folder: Path) -> Report:
    """Kill builds in an empty folder, and return the figures."""
    settings = load_settings({"home": folder / "home", "models_dir": options.models or load_settings({}).models})
    with closing(wiring.open_encoder(settings)) as encoder:
        place = _Place(folder, options, settings.models)
        took = place.durations()
        with Asking(settings.indexes, encoder) as asking:
            rounds = _Rounds(place, options, encoder, asking, took)
            rounds.run()
            figures = rounds.figures() | asking.figures()
            figures |= swap(settings.indexes, options.swaps, asking)
    shown = {name: getattr(options, name) for name in ("kills", "seed", "chunks", "kept", "swaps")}
    return Report("build_kills", shown | {"threads": THREADS, "stage_s": took}, figures, rounds.rows)


def broken(figures: dict[str, float]) -> list[str]:
    """Return the promises that were not kept."""
    zero = ("unchanged_embedded", "rerun_embedded", "disturbed", "failed", "mixed", "untimely")
    wrong = [name for name in (*zero, "swap_failed", "swap_mixed") if figures[name]]
    if figures["completed"] != figures["rounds"]:
        wrong.append("completed")
    if max(figures["begun_again_most"], figures["embedded_again_most"]) > figures["batch"]:
        wrong.append("begun_again_most")
    return wrong


class _Place:
    """The corpus and the processes that index it."""

    def __init__(self, folder: Path, options: Options, models: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.index = IndexFolder(folder / "home" / "indexes", NAME)
        self._options = options
        self._models = models

    def write(self, release: int) -> None:
        """Bring all files to a release."""
        corpus = self.folder / "corpus"
        corpus.mkdir(exist_ok=True)
        for number in range(_FILES):
            own = range(number, self._options.chunks, _FILES)
            text = "".join(
                f"## Shelf {n}\n\nIn release {release} shelf {n} holds {_words(release * 1_000_003 + n)}.\n\n"
                for n in own
            )
            (corpus / f"part-{number:02d}.md").write_text(f"# Store {number}\n\n{text}", encoding="utf-8")
        kept = "".join(f"## Cellar {n}\n\nCellar {n} keeps {_words(-1 - n)}.\n\n" for n in range(self._options.kept))
        (corpus / "cellar.md").write_text(f"# The cellars\n\n{kept}", encoding="utf-8")

    def start(self) -> "subprocess.Popen[bytes]":
        """Start a build whose log is empty."""
        self.log.unlink(missing_ok=True)
        arguments = ["prepare-index", "corpus", "--name", NAME]
        arguments += ["--home", str(self.folder / "home"), "--models-dir", str(self._models)]
        command = [sys.executable, str(CHILD), str(self.log), str(self._options.batch), *arguments]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def run(self, begun: list[list[str]]) -> str:
        """Build to the end; returns what went wrong. Appends the texts that were begun."""
        process = self.start()
        said = process.communicate(timeout=_LONGEST_S)[1].decode(errors="replace")
        begun.append(self.noted("begun"))
        return "" if process.returncode == 0 else said.strip()[-300:]

    def kill_in(self, stage: str, delay: float) -> tuple[bool, str]:
        """Kill a build `delay` s after a stage began; returns whether it was there still, and the last stage."""
        process = self.start()
        deadline = time.monotonic() + _LONGEST_S
        while stage not in self.noted("stage") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL, (self.noted("stage") or ["start"])[-1]

    def noted(self, kind: str) -> list[str]:
        """Return the lines of one kind in the log, whole ones."""
        try:
            lines = self.log.read_text(encoding="ascii").split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]

    def durations(self) -> dict[str, float]:
        """Return the seconds that each stage takes in a build that nobody stops."""
        self.write(1)
        process = self.start()
        seen: dict[str, float] = {}
        while process.poll() is None:
            for stage in self.noted("stage"):
                seen.setdefault(stage, time.monotonic())
            time.sleep(0.002)
        process.communicate()
        ends = [*list(seen.values())[1:], time.monotonic()]
        return {stage: round(end - seen[stage], 3) for stage, end in zip(seen, ends, strict=True) if stage in STAGES}

    def release_of(self, version: str) -> int:
        """Return the release that a version is of."""
        found = {
            int(n)
            for text in read_table(self.index.version_folder(version))["text"].to_pylist()
            for n in releases(text)
        }
        return found.pop() if len(found) == 1 else -1

    def embedded(self) -> set[str]:
        """Return what the texts of the live version are called in a log."""
        rows = read_table(self.index.version_folder(self.index.current())).to_pylist()
        return {key_of(Chunk.embedded_of(row["title"], row["section"], row["text"])).hex() for row in rows}


@dataclass
class _Rounds:
    """Rounds of killed builds, counted."""

    place: _Place
    options: Options
    encoder: Any
    asking: "Asking"
    took: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    kills: "Counter[str]" = field(default_factory=Counter)

    def run(self) -> None:
        """Kill as often as asked."""
        chance = random.Random(self.options.seed)
        release = 1
        while self.kills.total() < self.options.kills:
            release += 1
            self.rows.append(self._round(release, chance))

    def figures(self) -> dict[str, float]:
        """Return the figures of all rounds."""
        again = [number for row in self.rows for number in row["begun_again"]] or [0]
        return {
            "kills": self.kills.total(),
            **{f"kills_in_{stage}": self.kills[stage] for stage in STAGES},
            "rounds": len(self.rows),
            "completed": sum(row["completed"] for row in self.rows),
            "batch": self.options.batch or BATCH,
            "begun_again_most": max(again),
            "begun_again_mean": round(sum(again) / len(again), 1),
            "embedded_again_most": max([n for row in self.rows for n in row["embedded_again"]] or [0]),
            "unchanged_embedded": sum(row["unchanged_embedded"] for row in self.rows),
            "rerun_embedded": sum(row["rerun_embedded"] for row in self.rows),
            "disturbed": sum(row["disturbed"] for row in self.rows),
        }

    def _round(self, release: int, chance: random.Random) -> dict[str, Any]:
        before = self.place.embedded()
        live, answers = self.place.index.current(), self._answers()
        self.place.write(release)
        begun: list[list[str]] = []
        done: list[list[str]] = []
        disturbed, stages = 0, []
        for _ in range(chance.choice((1, 1, 2))):
            (stage,) = chance.choices(STAGES, self.options.weights)
            killed, where = self.place.kill_in(stage, chance.uniform(0, self.options.within * self.took[stage]))
            begun.append(self.place.noted("begun"))
            done.append(self.place.noted("done"))
            if not killed or where == "end":
                break  # it was done before
            self.kills[where] += 1
            stages.append(where)
            self.options.after_kill(self.place.index.folder)
            if self.place.index.pointer().text == live:  # type: ignore[union-attr]
                disturbed += self._answers() != answers
        problem = self.place.run(begun)
        completed = not problem and self._is_whole(release)
        if completed:
            self.asking.wait_for(self.place.index.current(), release)
        rerun: list[list[str]] = [[]]
        if release % _RERUN_EVERY == 2:
            self.place.run(rerun)
        mine = self.place.embedded() if completed else set()
        new = mine - before
        later = [set().union(*begun[number + 1 :]) for number in range(len(begun))]
        return {
            "release": release,
            "killed_in": stages,
            "completed": completed,
            "problem": problem,
            "begun_again": [len(set(own) & new & after) for own, after in zip(begun, later, strict=True)][
                : len(stages)
            ],
            "embedded_again": [
                len(set(own) & new & after) for own, after in zip(done, later[: len(done)], strict=True)
            ][: len(stages)],
            "unchanged_embedded": sum(text in before & mine for own in begun for text in own),
            "rerun_embedded": sum(text in mine for text in rerun[-1]),
            "disturbed": disturbed,
        }

    def _answers(self) -> object:
        """Return what the live version, opened anew, answers; every byte of it is checked."""
        index = self.place.index
        try:
            folder = index.version_folder(index.current())
            Manifest.read(folder).verify(folder, hashes=True)
            with closing(VectorIndex.open(index.folder, self.encoder, options=SearchOptions(min_score=-1))) as opened:
                hits = [asyncio.run(opened.search(question(number), k=5)) for number in (1, 17, 33)]
        except (BadIndex, OSError) as error:
            return str(error)
        return [[(hit.id, round(hit.score, 6)) for hit in each] for each in hits]

    def _is_whole(self, release: int) -> bool:
        """Return whether the live version is of a release and has all its passages."""
        live = self.place.index.current()
        manifest = Manifest.read(self.place.index.version_folder(live))
        return (
            self.place.release_of(live) == release
            and manifest.passages == self.options.chunks + self.options.kept
            and not list(self.place.index.folder.glob(".building-*"))
        )


def _words(seed: int) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=8))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="What a kill costs a build, and who notices.")
    for name, meaning in (("kills", "how many"), ("seed", "decides the moments"), ("chunks", "that change in a round")):
        parser.add_argument(f"--{name}", type=int, default=getattr(Options(), name), help=meaning)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chatkit-kills-") as folder:
        report = measure(Options(kills=given.kills, seed=given.seed, chunks=given.chunks), Path(folder))
    print(report.as_json() if given.json else report.as_table())
    wrong = broken(dict(report.figures))
    for name in wrong:
        print(f"broken: {name} is {report.figures[name]}", file=sys.stderr)
    if wrong:
        rows = [row for row in report.rows if row["problem"] or row["disturbed"] or not row["completed"]]
        print(json.dumps(rows[:3]), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
