"""`eval retrieval` on a small set: figures that are what their definitions say, conversations, cache and picture."""

import json
import math
import xml.etree.ElementTree
from itertools import pairwise

import numpy as np
import pytest

from chatkit.errors import InvalidRequest, NotFound
from chatkit.evaluation import curve_picture, ranking
from chatkit.evaluation.curve import Point
from chatkit.evaluation.retrieval import RetrievalEval, eval_retrieval
from chatkit.settings import load_settings

DOCUMENTS = {
    "ports": ("Ports", "The service listens on port 8080 of the loopback address."),
    "backup": ("Backups", "Copy the database with the backup command while the service runs."),
    "lease": ("Leases", "A worker keeps a turn for thirty seconds and then loses it to another."),
    "quota": ("Quotas", "Every owner may send sixty messages in a minute."),
    "stream": ("Streams", "Answers are sent as events, a few words at a time."),
    "prune": ("Pruning", "Versions of an index that nobody needs are removed by gc."),
}
QUERIES = {
    "q1": ("Which port does the service listen on?", {"ports": 2}, None),
    "q2": ("How do I save a copy of the sessions?", {"backup": 1}, None),
    "q3": ("What is the rate limit for messages?", {"quota": 1, "absent": 1}, None),
    "q4": ("And after that?", {"lease": 1}, ["When does a worker lose a turn to another?"]),
    "unjudged": ("Nothing is known of this.", {}, None),
}
HEADINGS = "query-id\tcorpus-id\tscore"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": key, "title": title, "text": text} for key, (title, text) in DOCUMENTS.items()]
    queries = []
    for key, (text, _, said) in QUERIES.items():
        history = [{"role": "user", "text": each} for each in said or []] + [{"role": "agent", "text": "Yes."}]
        queries.append({"_id": key, "text": text} | ({"metadata": {"history": history}} if said else {}))
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grades = [f"{query}\t{document}\t{grade}" for query, row in QUERIES.items() for document, grade in row[1].items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join([HEADINGS, *grades]) + "\n")
    (folder / "qrels" / "train.tsv").write_text(f"{HEADINGS}\nq1\tports\t1\n")
    return folder


@pytest.fixture
def settings(tmp_path, models_dir):
    return load_settings({"home": str(tmp_path / "home"), "models_dir": str(models_dir)})


def test_every_leg_has_its_figures_and_a_conversation_its_own(folder, settings, tmp_path) -> None:
    picture = tmp_path / "recall.svg"
    report = eval_retrieval(settings, folder, RetrievalEval(cache=tmp_path / "cache", picture=picture))
    told, found = report.settings, report.figures
    assert (told["documents"], told["queries"], told["dense_weight"], told["vectors"]) == (6, 4, 0.5, "flat")
    names = {f"{leg}.{name}" for leg in ("dense", "lexical", "hybrid") for name in ("ndcg@10", "recall@10", "mrr@10")}
    assert names <= found.keys()
    # Half of what q3 asks for is not in the corpus; all else is found by both legs together, q1 to q3 as the first.
    assert found["hybrid.recall@10"] == pytest.approx(3.5 / 4)
    half = 1 / (1 + 1 / math.log2(3))
    rows = {row["query"]: row for row in report.rows if "query" in row}
    assert [rows[name]["hybrid.ndcg@10"] for name in ("q1", "q2", "q3")] == [1, 1, pytest.approx(half, abs=1e-4)]
    assert rows["q1"]["found"][0] == "ports"
    assert found["lexical.recall@10"] < found["dense.recall@10"]
    assert found["last.ndcg@10"] == found["hybrid.ndcg@10"]
    assert rows["q4"]["conversation.ndcg@10"] == 1
    assert found["conversation.ndcg@10"] == pytest.approx((1 + 1 + half + 1) / 4, abs=1e-4)
    assert all(found[f"{leg}.ms"] > 0 for leg in ("dense", "lexical", "hybrid"))
    ways = [row for row in report.rows if "way" in row]
    assert {row["series"] for row in ways} == {"dense", "lexical", "hybrid"}
    assert len([row for row in ways if row["series"] == "hybrid"]) == 6
    drawn = picture.read_text()
    xml.etree.ElementTree.fromstring(drawn)
    assert "6 documents, 4 queries" in drawn

    (kept,) = (tmp_path / "cache").glob("*.npy")
    assert np.load(kept).shape == (6, 384)
    made = kept.stat().st_mtime_ns
    progress = []
    again = eval_retrieval(
        settings, folder, RetrievalEval(split="train", cache=tmp_path / "cache"), lambda what, *_: progress.append(what)
    )
    assert "encoded" not in progress
    assert kept.stat().st_mtime_ns == made
    assert again.figures["hybrid.ndcg@10"] == again.figures["dense.mrr@10"] == 1
    assert "conversation.ndcg@10" not in again.figures


def test_the_weight_of_the_settings_goes_before_the_chosen_one(folder, settings, tmp_path) -> None:
    words = load_settings({"home": str(tmp_path), "models_dir": str(settings.models), "dense_weight": "0"})
    found = eval_retrieval(words, folder, RetrievalEval())
    assert found.settings["tuned_on"] == "the setting dense_weight"
    figures = found.figures
    assert [figures[f"hybrid.{name}"] for name in ("ndcg@10", "recall@100", "mrr@10")] == [
        figures[f"lexical.{name}"] for name in ("ndcg@10", "recall@100", "mrr@10")
    ]
    assert not (tmp_path / "evaluation").exists()


def test_what_cannot_be_measured_is_said(folder, settings) -> None:
    with pytest.raises(NotFound, match="the splits there are: test, train"):
        eval_retrieval(settings, folder, RetrievalEval(split="dev"))
    with pytest.raises(InvalidRequest, match="limit is -1"):
        RetrievalEval(limit=-1)
    (folder / "qrels" / "none.tsv").write_text(f"{HEADINGS}\nq1\tports\t0\n")
    with pytest.raises(InvalidRequest, match=r"no query of queries\.jsonl has a judgement above 0"):
        eval_retrieval(settings, folder, RetrievalEval(split="none"))
    (folder / "corpus.jsonl").write_text("")
    with pytest.raises(InvalidRequest, match="no document, expected at least one"):
        eval_retrieval(settings, folder, RetrievalEval())


def test_figures_are_what_their_definitions_say() -> None:
    order, grades = [7, 3, 9, 1], {3: 2.0, 1: 1.0, 8: 1.0}
    best = 2 + 1 / math.log2(3) + 1 / 2
    assert ranking.ndcg(order, grades, 10) == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / best)
    assert ranking.ndcg(order, grades, 1) == 0
    assert ranking.recall(order, grades, 10) == pytest.approx(2 / 3)
    assert ranking.recall(order, grades, 2) == pytest.approx(1 / 3)
    assert ranking.reciprocal_rank(order, grades, 10) == 0.5
    assert ranking.reciprocal_rank(order, grades, 1) == 0
    assert ranking.reciprocal_rank([], grades, 10) == 0


@pytest.mark.parametrize("recalls", [(0.9, 0.91, 0.95), (0.5, 0.5, 0.5), (0.0, 1.0, 0.3), (1.0, 1.0, 1.0)])
def test_no_label_of_the_picture_covers_another_or_is_crossed_by_a_line_or_leaves_it(recalls) -> None:
    names = ("flat", "sq8", "ivf_sq8", "hnsw_sq8", "ivf_rabitq")
    points = [Point("dense", name, 0.3 + number / 50, recalls[0]) for number, name in enumerate(names)]
    points += [Point("lexical", "words", 0.4, recalls[1])]
    points += [Point("hybrid", str(pool), 1 + pool / 2000, recalls[2] - pool % 3 / 40) for pool in (10, 25, 50, 100)]
    drawn = curve_picture.picture(points, {"set": "a/<b>", "documents": 5, "queries": 2, "encoder": "e & f"})
    root = xml.etree.ElementTree.fromstring(drawn)
    assert "&lt;b&gt;: 5 documents, 2 queries, e &amp; f" in drawn
    boxes = []
    for text in root.iter(f"{SVG}text"):
        words, x, y = text.text, float(text.get("x")), float(text.get("y"))
        if words in {point.label for point in points}:
            left = x - 6.6 * len(words) if text.get("text-anchor") == "end" else x
            boxes.append((left, y - 11, left + 6.6 * len(words), y + 2))
    assert len(boxes) >= len(points)
    for place, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= 720
        assert top >= 0
        assert all(right < a or left > c or bottom < b or top > d for a, b, c, d in boxes[:place]), boxes
    runs = [[float(line.get(name)) for name in ("x1", "y1", "x2", "y2")] for line in root.iter(f"{SVG}line")]
    corners = [tuple(map(float, pair.split(","))) for pair in root.find(f"{SVG}polyline").get("points").split()]
    runs += [[*start, *end] for start, end in pairwise(corners)]
    assert len(runs) > 12
    inked = np.concatenate([np.linspace(run[:2], run[2:], 2000) for run in runs])
    for left, top, right, bottom in boxes:
        inside = (inked > (left, top)).all(axis=1) & (inked < (right, bottom)).all(axis=1)
        assert not inside.any(), (left, top, right, bottom, inked[inside][0])
