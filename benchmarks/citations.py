"""Precision and recall of what counts as supported, on pairs of a sentence and a passage whose label is known.

    python benchmarks/citations.py DIR [DIR …] [--json]

DIR is a folder in the BEIR layout with answers. Its pairs:

| kind | label | sentence, held against the passages judged relevant |
|---|---|---|
| stated | supported | a question with its short answer made a statement, "Who led X?" to "A led X." |
| written | supported | a sentence of an answer that a person wrote: `long_answer`, or answers of many words |
| elsewhere | not | the same sentences, held against other passages of the set, the nearest by their words |
| number | not | the same sentences, a number changed |
| swapped | not | the statement with another short answer of the same document |

A sentence a person wrote may say more than its passage does, and another passage may say the same: both count as faults
here, so the figures are floors. Queries are split by their order: the threshold was chosen on every second one, figures
are those of the others. `--choose` prints a sweep over the first half.
"""

import argparse
import asyncio
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit import citations, wiring
from chatkit.citations import Attributor, Evidence
from chatkit.evaluation.beir import BeirSet, Query, read_set
from chatkit.evaluation.report import Report
from chatkit.sentences import sentence_spans
from chatkit.settings import load_settings
from chatkit.types import Passage

# Passages of the set that a sentence is also held against.
_ELSEWHERE = 3
_SHORT_ANSWER = 8  # words
_SUBJECT = re.compile(
    r"^(?:who|what|which [\w ]+?) (?!is |are |was |were |did |do |does |has |have |had |can |could )", re.I
)
_PREDICATE = re.compile(r"^(?:who|what|when|where) (is|are|was|were) (.+)\?$", re.I)


@dataclass(frozen=True)
class Pair:
    """A sentence, the passages it is held against, and whether they support it."""

    kind: str
    sentence: str
    passages: tuple[Passage, ...]
    supported: bool


def pairs_of(data: BeirSet, queries: Sequence[Query], rng: random.Random) -> Iterator[Pair]:
    """Yield the labelled pairs of some queries."""
    passages = {one.id: Passage(one.id, one.text, title=one.title) for one in data.corpus.values()}
    words = {key: set(re.findall(r"\w{4,}", one.text.lower())) for key, one in passages.items()}
    short = _short_answers(data)
    for query in queries:
        gold = tuple(passages[key] for key in data.qrels.get(query.id, {}) if key in passages)
        if not gold or query.metadata.get("answerability", "ANSWERABLE") != "ANSWERABLE":
            continue
        for kind, sentence in _sentences(query):
            yield Pair(kind, sentence, gold, True)
            others = sorted(passages.values(), key=lambda one: -len(words[one.id] & _words(sentence)))
            near = [one for one in others if one not in gold][:_ELSEWHERE]
            yield Pair("elsewhere", sentence, tuple(near), False)
            if changed := _other_number(sentence, gold, rng):
                yield Pair("number", changed, gold, False)
            others_said = [a for a in short.get(gold[0].id, ()) if a not in query.answers]
            if kind == "stated" and others_said:
                yield Pair("swapped", _stated(query.text, rng.choice(others_said)) or "", gold, False)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", text.lower()))


def _short_answers(data: BeirSet) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for query in data.queries:
        for key in data.qrels.get(query.id, {}):
            found.setdefault(key, []).extend(a for a in query.answers if len(a.split()) <= _SHORT_ANSWER)
    return found


def _sentences(query: Query) -> Iterator[tuple[str, str]]:
    """Yield what a right answer to a query says, sentence by sentence."""
    written = query.metadata.get("long_answer") or next(
        (answer for answer in query.answers if len(answer.split()) > _SHORT_ANSWER), ""
    )
    for start, end in sentence_spans(written):
        if len(written[start:end].split()) >= 5:
            yield "written", written[start:end]
    if not written and query.answers and (said := _stated(query.text, query.answers[0])):
        yield "stated", said


def _stated(question: str, answer: str) -> str:
    """Return a question and its answer as a statement; "" where its form is not one of two simple ones."""
    question = question.strip()
    if match := _PREDICATE.match(question):
        return f"{match[2][0].upper()}{match[2][1:]} {match[1]} {answer}."
    if question.endswith("?") and (match := _SUBJECT.match(question)):
        return f"{answer[0].upper()}{answer[1:]} {question[match.end() : -1]}."
    return ""


def _other_number(sentence: str, passages: Sequence[Passage], rng: random.Random) -> str:
    """Return the sentence with one number changed to one that the passages do not have, "" where it has none."""
    found = list(re.finditer(r"\d+", sentence))
    if not found:
        return ""
    match = rng.choice(found)
    text = " ".join(passage.text for passage in passages)
    for _ in range(20):
        other = "".join(rng.choice("123456789") for _ in match[0])
        if other != match[0] and other not in text:
            return sentence[: match.start()] + other + sentence[match.end() :]
    return ""


async def judged(pairs: Sequence[Pair], attributor: Attributor) -> list[Evidence]:
    """Return the best evidence of each pair."""
    best = []
    for at, pair in enumerate(pairs):
        row = (await attributor.evidence([pair.sentence], pair.passages))[0]
        best.append(max(row, key=lambda one: one.score))
        if at % 200 == 0:
            print(f"{at} of {len(pairs)} pairs", file=sys.stderr)
    return best


def figures_of(pairs: Sequence[Pair], scores: Sequence[float], threshold: float) -> dict[str, float]:
    """Return precision, recall, and the share that counts as supported of each kind."""
    said = [score >= threshold for score in scores]
    right = sum(pair.supported and one for pair, one in zip(pairs, said, strict=True))
    figures = {
        "precision": right / max(1, sum(said)),
        "recall": right / max(1, sum(pair.supported for pair in pairs)),
        "pairs": len(pairs),
    }
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        own = [one for pair, one in zip(pairs, said, strict=True) if pair.kind == kind]
        figures[f"supported.{kind}"] = sum(own) / len(own)
        figures[f"pairs.{kind}"] = len(own)
    return {name: round(value, 4) for name, value in figures.items()}


def rows_of(folder: str, pairs: Sequence[Pair], evidence: Sequence[Evidence]) -> dict[str, Any]:
    """Return one set's row: both halves of the evidence alone beside the two together."""
    scores = [one.score for one in evidence]
    alone = [one.cosine for one in evidence]
    return {
        "set": Path(folder).name,
        **figures_of(pairs, scores, citations.THRESHOLD),
        "cosine_alone": {f"{t:.2f}": figures_of(pairs, alone, t) for t in (0.5, 0.6, 0.7, 0.8)},
    }


def sweep(pairs: Sequence[Pair], evidence: Sequence[Evidence]) -> None:
    """Print precision and recall for shares of the cosine and thresholds."""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        for threshold in (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8):
            scores = [one.mixed(share) for one in evidence]
            found = figures_of(pairs, scores, threshold)
            kinds = " ".join(
                f"{name.split('.')[1]} {value:.2f}" for name, value in found.items() if "supported" in name
            )
            print(f"{share:.2f} {threshold:.2f}  P {found['precision']:.3f} R {found['recall']:.3f}  {kinds}")


async def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="DIR")
    parser.add_argument("--limit", type=int, default=0, help="Queries of each set; 0 takes all.")
    parser.add_argument("--choose", action="store_true", help="Print a sweep over the half the threshold is chosen on.")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    encoder = wiring.open_encoder(load_settings())
    attributor = Attributor(encoder)
    rows = []
    try:
        for folder in told.folders:
            data = read_set(Path(folder))
            queries = data.queries[0 if told.choose else 1 :: 2][: told.limit or None]
            pairs = [pair for pair in pairs_of(data, queries, random.Random(0)) if pair.sentence]
            evidence = await judged(pairs, attributor)
            if told.choose:
                print(folder)
                sweep(pairs, evidence)
            rows.append(rows_of(folder, pairs, evidence))
    finally:
        encoder.close()
    figures = {f"{row['set']}.{name}": row[name] for row in rows for name in ("precision", "recall")}
    settings = {"encoder": encoder.name, "threshold": citations.THRESHOLD, "cosine_share": citations.COSINE_SHARE}
    report = Report("benchmarks/citations.py", settings, figures, rows)
    print(report.as_json() if told.json else report.as_table())


if __name__ == "__main__":
    asyncio.run(main())
