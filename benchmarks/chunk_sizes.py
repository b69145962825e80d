"""How long a passage should be: whether the answer is among those found, for several sizes.

    python benchmarks/chunk_sizes.py xquad.en.json [--sizes 60,90,120,160,220,320] [--json]

The file is in the format of SQuAD: articles, their paragraphs, and questions with the place of the answer. Each article
is one document, its paragraphs one after the other, so that a passage may end anywhere in it. It is indexed with every
size and searched as `chatkit search` does, both legs, with each question. An answer counts as found where one passage
has all of it, at its own place; the same word elsewhere does not count.

| figure | meaning |
|---|---|
| `SIZE.passages`, `SIZE.tokens` | how many there are, and how long they are on average |
| `SIZE.first`, `SIZE.in_3` | share of questions whose answer is in the first passage, in the first three |
| `SIZE.tokens_of_3` | mean tokens of the first three together: what a prompt has to hold |
| `SIZE.in_N_tokens` | share whose answer is in as many of the first passages as together have at most N tokens |
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit import wiring
from chatkit.evaluation.report import Report
from chatkit.retrieval.build import build_index
from chatkit.retrieval.index import SearchOptions, VectorIndex
from chatkit.settings import load_settings
from chatkit.types import Passage

_BUDGETS = (300, 600)
_K = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and where its answer stands: in `source`, from `start` to `end`."""

    text: str
    source: str
    start: int
    end: int


class Remembering:
    """An encoder that encodes each question once for all sizes."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._known: dict[tuple[str, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Everything else is the encoder's own."""
        return getattr(self._encoder, name)

    async def encode(self, texts: Sequence[str]) -> Any:
        """Return the vectors of texts."""
        known = tuple(texts)
        if known not in self._known:
            self._known[known] = await self._encoder.encode(texts)
        return self._known[known]


def write_articles(table: dict[str, Any], folder: Path) -> list[Asked]:
    """Write each article as a file; return the questions."""
    asked = []
    for number, article in enumerate(table["data"]):
        source = f"{number:03d}.md"
        text = f"# {article.get('title', number).replace('_', ' ')}\n"
        for paragraph in article["paragraphs"]:
            begin = len(text) + 1
            text += f"\n{paragraph['context']}\n"
            for question in paragraph["qas"]:
                answer = question["answers"][0]
                start = begin + answer["answer_start"]
                asked.append(Asked(question["question"], source, start, start + len(answer["text"])))
        (folder / source).write_text(text, encoding="utf-8")
    return asked


def figures_of(asked: Sequence[Asked], found: Sequence[Sequence[Passage]], count: Any) -> Iterator[tuple[str, float]]:
    """Yield the figures of one size; `found` has the passages of each question in order."""
    places = [_place(question, hits) for question, hits in zip(asked, found, strict=True)]
    lengths = [count([hit.text for hit in hits]) for hits in found]
    yield "first", _share(place == 0 for place in places)
    yield "in_3", _share(place < 3 for place in places)
    yield "tokens_of_3", statistics.mean(sum(each[:3]) for each in lengths)
    for budget in _BUDGETS:
        yield (
            f"in_{budget}_tokens",
            _share(
                place < len(each) and sum(each[: place + 1]) <= budget
                for place, each in zip(places, lengths, strict=True)
            ),
        )


def measure(table: dict[str, Any], sizes: Sequence[int]) -> Report:
    """Index and search with every size."""
    settings = load_settings({})
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="chatkit-sizes-") as folder, closing(wiring.open_encoder(settings)) as real:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        asked = write_articles(table, corpus)
        encoder: Any = Remembering(real)
        for size in sizes:
            report = build_index(
                [corpus],
                Path(folder),
                name=f"of-{size}",
                encoder=encoder,
                chunking={"max_tokens": size, "drop_duplicates": 0, "drop_near_duplicates": 0},
            )
            options = SearchOptions(min_score=-1)
            with closing(VectorIndex.open(Path(folder) / f"of-{size}", encoder, options=options)) as index:
                found = [asyncio.run(index.search(question.text, k=_K)) for question in asked]
            figures[f"{size}.passages"] = report.passages
            different = {hit.id: hit.text for hits in found for hit in hits}
            figures[f"{size}.tokens"] = statistics.mean(real.count_tokens_of(list(different.values())))
            figures |= {f"{size}.{name}": value for name, value in figures_of(asked, found, real.count_tokens_of)}
    shown = {"articles": len(table["data"]), "questions": len(asked), "sizes": list(sizes)}
    return Report("chunk_sizes", shown, {name: round(value, 4) for name, value in figures.items()}, [])


def _place(question: Asked, hits: Sequence[Passage]) -> int:
    for place, hit in enumerate(hits):
        is_there = hit.start <= question.start and question.end <= hit.end
        if Path(hit.source).name == question.source and is_there:
            return place
    return _K


def _share(those: Iterator[bool]) -> float:
    return statistics.mean(map(float, those))


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="How long a passage should be.")
    parser.add_argument("file", type=Path, help="in the format of SQuAD")
    parser.add_argument("--sizes", default="60,90,120,160,220,320", help="most tokens of a passage")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    table = json.loads(given.file.read_text(encoding="utf-8"))
    report = measure(table, [int(size) for size in given.sizes.split(",")])
    print(report.as_json() if given.json else report.as_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
