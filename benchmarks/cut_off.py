"""What a cut-off keeps and lets through: labelled sets, each asked its own questions and those of the others.

    python benchmarks/cut_off.py DIR DIR [DIR …] [--related NAME,NAME …] [--halves N] [--cut-offs 0.30,0.35]

DIR is a folder in the BEIR layout. An index of each set is asked

- its own questions: `found` is the share that finds anything, `kept` the recall among 3 as a share of what is uncut;
- the first 150 questions of every other set that is not `--related`: `off_topic` is the share that finds anything.

With `--halves N` an index is made of every second run of N documents, and one of the others: questions about one half
are off topic for the other, in the same language. N is how many documents a subject has, in a corpus of that order.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from chatkit import wiring
from chatkit.evaluation import legs
from chatkit.evaluation.beir import BeirSet, read_set
from chatkit.evaluation.ranking import recall
from chatkit.evaluation.retrieval import judged_queries
from chatkit.retrieval.encoder import SentenceEncoder
from chatkit.retrieval.legs import Hit
from chatkit.settings import load_settings
from chatkit.types import QueryPart

_CUTS = "0.25,0.28,0.30,0.33,0.35"
_DEPTH = 3
_FOREIGN = 150


@dataclass
class Asked:
    """What an index answered: its own questions with their grades by row, and those that it has nothing about."""

    name: str
    own: list[tuple[list[Hit], dict[int, float]]] = field(default_factory=list)
    foreign: list[list[Hit]] = field(default_factory=list)

    def figures(self, cut: float) -> dict[str, float]:
        """Return the shares at a cut-off."""
        whole = statistics.fmean(recall([hit.row for hit in hits], grades, _DEPTH) for hits, grades in self.own)
        left = [([hit for hit in hits if hit.score >= cut], grades) for hits, grades in self.own]
        kept = statistics.fmean(recall([hit.row for hit in hits], grades, _DEPTH) for hits, grades in left)
        through = [any(hit.score >= cut for hit in hits) for hits in self.foreign]
        return {
            "found": statistics.fmean(bool(hits) for hits, _ in left),
            "kept": kept / whole,
            "off_topic": statistics.fmean(through),
        }


def half(data: BeirSet, run: int, which: int) -> BeirSet:
    """Return a set with every second run of documents; its questions stay all."""
    kept = {key: one for at, (key, one) in enumerate(data.corpus.items()) if at // run % 2 == which}
    return replace(data, corpus=kept)


def ask(data: BeirSet, name: str, foreign: Sequence[str], encoder: SentenceEncoder, cache: Path) -> Asked:
    """Index a set and ask it; a question without a document of the corpus is off topic as well."""
    asked = Asked(name)
    with ExitStack() as stack:
        built = legs.build(data, encoder, cache, stack, lambda *_: None)

        def hits(text: str) -> list[Hit]:
            weight = built.legs.weight()
            vector = encoder.encode_now([encoder.query_prefix + text]) if weight > 0 else None
            return built.legs.find([QueryPart(text)], None if vector is None else np.asarray(vector), _DEPTH)

        for judged in judged_queries(data, 0):
            if any(row >= 0 for row in judged.grades):
                asked.own.append((hits(judged.query.text), dict(judged.grades)))
            else:
                asked.foreign.append(hits(judged.query.text))
        asked.foreign += [hits(text) for text in foreign]
    return asked


def runs(options: argparse.Namespace) -> Iterator[Asked]:
    """Yield what each index answered."""
    settings = load_settings({})
    cache = settings.home / "evaluation"
    sets = {folder.name: read_set(folder) for folder in options.sets}
    related = [set(names.split(",")) for names in options.related]
    with ExitStack() as stack:
        encoder = wiring.open_encoder(settings)
        stack.callback(encoder.close)
        for name, data in sets.items():
            others = [one for one in sets if one != name and not any({name, one} <= each for each in related)]
            foreign = [judged.query.text for one in others for judged in judged_queries(sets[one], 0)[:_FOREIGN]]
            if options.halves:
                for which in (0, 1):
                    part = half(data, options.halves, which)
                    yield ask(part, f"{name}, half {which + 1}", foreign, encoder, cache)
            else:
                yield ask(data, name, foreign, encoder, cache)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--related", action="append", default=[])
    parser.add_argument("--halves", type=int, default=0)
    parser.add_argument("--cut-offs", default=_CUTS)
    options = parser.parse_args()
    for asked in runs(options):
        for cut in map(float, options.cut_offs.split(",")):
            told = "  ".join(f"{name} {share:.3f}" for name, share in asked.figures(cut).items())
            print(
                f"{asked.name}  {cut:.2f}  {told}  ({len(asked.own)} own, {len(asked.foreign)} off topic)", flush=True
            )


if __name__ == "__main__":
    main()
