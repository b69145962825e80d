"""Whether the synthetic vectors of a set are as hard to search as its real ones: equal graphs over as many of each."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.evaluation.vector_set import Array, VectorSet
from chatkit.retrieval.kinds import EF_CONSTRUCTION
from chatkit.retrieval.vector_writer import recall_of
from chatkit.retrieval.vectors import import_faiss

_K = 10
# Rows of each at most, and the least that say anything.
_MOST, _LEAST = 20_000, 200
# The graph, and a search with little enough effort that it misses some.
_FACTORY, _EF = "HNSW32,Flat", 32
# Neighbours that the local dimension is estimated from.
_NEIGHBOURS = 100


def compare(made: VectorSet, folder: Path) -> dict[str, float]:
    """Return figures of the same questions over real rows alone and over as many synthetic ones.

    `recall@10` is what a graph of the same form finds with the same effort, `tenth` the mean score of the tenth true
    neighbour, `local_dimension` the median estimate of Levina and Bickel (2004) from the distances of a question's 100
    nearest: the higher, the harder. Nothing where there are too few of either.
    """
    count = min(made.real, made.count - made.real, _MOST)
    if count < _LEAST:
        return {}
    asked = hashlib.sha256(made.questions.tobytes()).hexdigest()[:8]
    kept = folder / f"hardness-{made.key}-{asked}.json"
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    rows = made.rows()
    synthetic = np.linspace(made.real, made.count - 1, count).astype(np.int64)
    sides = {"real": rows[:count], "synthetic": rows[synthetic]}
    found = {
        f"{name}_alone.{figure}": value
        for name, side in sides.items()
        for figure, value in _figures(np.ascontiguousarray(side), made.questions).items()
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def _figures(rows: Array, questions: Array) -> dict[str, float]:
    faiss = import_faiss()
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    scores, truth = flat.search(questions, _NEIGHBOURS)
    graph: Any = faiss.index_factory(rows.shape[1], _FACTORY, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    graph.add(rows)
    _, found = graph.search(questions, _K, params=faiss.SearchParametersHNSW(efSearch=_EF))
    return {
        "recall@10": round(recall_of(found, truth[:, :_K]), 4),
        "tenth": round(float(scores[:, _K - 1].mean()), 4),
        "local_dimension": round(float(np.median(_dimensions(scores))), 1),
    }


def _dimensions(scores: Array) -> NDArray[np.float64]:
    """Return the local dimension at each question from the cosines of its nearest, (n, k), best first."""
    distances = np.sqrt(np.maximum(2 - 2 * scores.astype(np.float64), 1e-9))
    return np.asarray(1 / np.mean(np.log(distances[:, -1:] / distances[:, :-1]), axis=1))
