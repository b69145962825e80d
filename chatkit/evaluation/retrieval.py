"""`eval retrieval`: the dense leg, the lexical leg and both together, on a labelled set."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit import wiring
from chatkit.errors import InvalidRequest
from chatkit.evaluation import curve, curve_picture, legs, ranking
from chatkit.evaluation.beir import BeirSet, Query, read_set
from chatkit.evaluation.report import Report
from chatkit.planning import weighed
from chatkit.retrieval.legs import Legs
from chatkit.settings import Settings
from chatkit.types import QueryPart

Vector = NDArray[np.float32]
Order = list[int]

# Documents that are looked up for a query: as many as the deepest figure counts.
_DEPTH = 100
LEGS = ("dense", "lexical", "hybrid")
_FIGURES: Mapping[str, Callable[[Order, Mapping[int, float]], float]] = {
    "ndcg@10": lambda order, grades: ranking.ndcg(order, grades, 10),
    "recall@10": lambda order, grades: ranking.recall(order, grades, 10),
    "recall@100": lambda order, grades: ranking.recall(order, grades, 100),
    "mrr@10": lambda order, grades: ranking.reciprocal_rank(order, grades, 10),
}


@dataclass(frozen=True, slots=True)
class RetrievalEval:
    """What is measured.

    Attributes:
        split: of the judgements: `qrels/SPLIT.tsv`.
        limit: the first so many judged queries; 0 takes all.
        cache: folder in which the vectors of corpora are kept; None keeps none.
        picture: where the curve of recall against latency is written; None draws none.
    """

    split: str = "test"
    limit: int = 0
    cache: Path | None = None
    picture: Path | None = None

    def __post_init__(self) -> None:
        """Check the bound."""
        if self.limit < 0:
            raise InvalidRequest(f"limit is {self.limit}, expected 0 for all queries, or how many")


@dataclass(slots=True)
class _Judged:
    """A query with grades by row, and what each way found for it, with the milliseconds that took."""

    query: Query
    grades: dict[int, float]
    orders: dict[str, Order] = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)


def eval_retrieval(
    settings: Settings, folder: Path, what: RetrievalEval, progress: legs.Progress | None = None
) -> Report:
    """Index the corpus of a set with the encoder of the settings and search it for every judged query.

    The legs are the product's own, with a document as a passage: title and text, cut where the encoder cuts. Times are
    those of one query after another, the encoding of its text included.

    Raises:
        NotFound: the folder has no set in the BEIR layout, or no such split.
        InvalidRequest: a file is malformed, or no query has a judged document.
        ChatkitError: the encoder cannot be opened.
    """
    tell = progress or (lambda what, done, total: None)
    data = read_set(folder, split=what.split)
    judged = judged_queries(data, what.limit)
    with ExitStack() as stack:
        encoder = wiring.open_encoder(settings)
        stack.callback(encoder.close)
        built = legs.build(data, encoder, what.cache, stack, tell)
        asked = None if settings.dense_weight < 0 else settings.dense_weight
        encode = _encoder_of(encoder.query_prefix, encoder.encode_now)
        encode([QueryPart("a first text, so that the first query is not the slower one")])
        for done, one in enumerate(judged, 1):
            _search(one, built.legs, encode, asked)
            tell("asked", done, len(judged))
        told = {
            "set": str(folder),
            "split": what.split,
            "documents": len(data.corpus),
            "queries": len(judged),
            "encoder": encoder.name,
            "vectors": built.kind,
            "dense_weight": built.legs.weight(asked),
            "tuned_on": built.fusion.tuned_on if asked is None else "the setting dense_weight",
        }
        rows = [_row(one, data) for one in judged]
        if what.picture is not None:
            points = curve.measure(built, encoder.metric, [(one.query.text, one.grades) for one in judged], encode)
            what.picture.write_text(curve_picture.picture(points, told), encoding="utf-8")
            rows = [*rows, *(point.row() for point in points)]
    return Report("eval retrieval", told, figures(judged), rows)


def judged_queries(data: BeirSet, limit: int) -> list[_Judged]:
    """Return the queries that have a document above grade 0, with their grades by row of the corpus.

    A graded document that the corpus lacks counts as one that was not found.

    Raises:
        InvalidRequest: there is none, or the corpus is empty.
    """
    if not data.corpus:
        raise InvalidRequest("corpus.jsonl has no document, expected at least one")
    rows = {identity: row for row, identity in enumerate(data.corpus)}
    judged = []
    for query in data.queries:
        grades = data.qrels.get(query.id)
        if grades:
            missing = iter(range(-1, -len(grades) - 1, -1))
            judged.append(
                _Judged(query, {rows[d] if d in rows else next(missing): float(g) for d, g in grades.items()})
            )
    judged = judged[: limit or None]
    if not judged:
        raise InvalidRequest("no query of queries.jsonl has a judgement above 0, expected ids that are in both files")
    return judged


def _encoder_of(prefix: str, encode: Callable[[Sequence[str]], Vector]) -> Callable[[Sequence[QueryPart]], Vector]:
    def vector(parts: Sequence[QueryPart]) -> Vector:
        found = encode([prefix + part.text for part in parts])
        weights = np.array([[part.weight] for part in parts], dtype=np.float32)
        summed: Vector = (found * weights).sum(axis=0, keepdims=True, dtype=np.float32)
        return summed

    return vector


def _search(
    one: _Judged, searched: Legs, encode: Callable[[Sequence[QueryPart]], Vector], weight: float | None
) -> None:
    """Search each way; the time of the encoding, done once, is counted to each that needs it."""
    parts = [QueryPart(one.query.text)]
    started = time.perf_counter()
    vector = encode(parts)
    encoding = 1000 * (time.perf_counter() - started)
    hybrid = searched.weight(weight)
    ways: dict[str, tuple[Vector | None, float | None]] = {
        "dense": (vector, 1.0),
        "lexical": (None, 0.0),
        "hybrid": (vector if hybrid > 0 else None, weight),
    }
    for name, (given, share) in ways.items():
        started = time.perf_counter()
        hits = searched.find(parts, given, _DEPTH, weight=share)
        one.ms[name] = 1000 * (time.perf_counter() - started) + (encoding if given is not None else 0.0)
        one.orders[name] = [hit.row for hit in hits]
    said = _said_before(one.query)
    if said:
        parts = list(weighed(one.query.text, said))
        hits = searched.find(parts, encode(parts) if hybrid > 0 else None, _DEPTH, weight=weight)
        one.orders["conversation"] = [hit.row for hit in hits]


def _said_before(query: Query) -> list[str]:
    """Return what the user said before the query, where the set has conversations, oldest first."""
    history = query.metadata.get("history") or []
    if not isinstance(history, list):
        return []
    said = [entry for entry in history if isinstance(entry, dict) and entry.get("role") == "user"]
    texts = [str(entry.get("text") or entry.get("content") or "") for entry in said]
    return [text for text in texts if text.strip()]


def figures(judged: Sequence[_Judged]) -> dict[str, float]:
    """Return every figure, means over the queries; times are medians in milliseconds.

    Where a set has conversations, `last` is the question alone and `conversation` the query that a turn searches by,
    over all queries; one without a conversation before it counts alike in both.
    """
    found: dict[str, float] = {}
    for leg in LEGS:
        for name, figure in _FIGURES.items():
            found[f"{leg}.{name}"] = round(statistics.fmean(figure(one.orders[leg], one.grades) for one in judged), 6)
        found[f"{leg}.ms"] = round(statistics.median(one.ms[leg] for one in judged), 3)
    if any("conversation" in one.orders for one in judged):
        for name, figure in _FIGURES.items():
            found[f"last.{name}"] = found[f"hybrid.{name}"]
            found[f"conversation.{name}"] = round(
                statistics.fmean(
                    figure(one.orders.get("conversation", one.orders["hybrid"]), one.grades) for one in judged
                ),
                6,
            )
    return found


def _row(one: _Judged, data: BeirSet) -> dict[str, Any]:
    """Return what became of one query: the figures that count most, and the best three documents of both legs."""
    names = list(data.corpus)
    return {
        "query": one.query.id,
        **{f"{leg}.ndcg@10": round(_FIGURES["ndcg@10"](order, one.grades), 4) for leg, order in one.orders.items()},
        "found": [names[row] for row in one.orders["hybrid"][:3]],
    }
