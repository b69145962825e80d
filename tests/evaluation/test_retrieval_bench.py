import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from chatkit import cli
from chatkit.errors import EngineFailed, InvalidRequest, NotFound
from chatkit.evaluation import retrieval_bench
from chatkit.evaluation.retrieval_bench import RetrievalBench
from chatkit.evaluation.vector_hardness import compare
from chatkit.evaluation.vector_set import VectorSet
from chatkit.evaluation.vector_sides import find_peer, open_peer

DOCS = Path(__file__).parents[2] / "docs"
# What the script of the peers needs of hnswlib: an exact search that misses rows unless it is given effort.
LIBRARY = """
import numpy as np

class Index:
    def __init__(self, space, dim):
        assert space == "ip"
        self.rows, self.ef = np.empty((0, dim), np.float32), 10

    def init_index(self, max_elements, M, ef_construction, random_seed): pass

    def add_items(self, rows, num_threads):
        self.rows = np.concatenate([self.rows, rows])

    def save_index(self, path):
        np.save(open(path, "wb"), self.rows)

    def load_index(self, path):
        self.rows = np.load(path)

    def set_num_threads(self, threads):
        assert threads == 1

    def set_ef(self, ef):
        self.ef = ef

    def knn_query(self, query, k):
        scores = self.rows @ query
        scores[self.ef * 20 :] = -1
        return np.argsort(-scores)[np.newaxis, :k], None
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """A folder that says where hnswlib is: in this environment, with a library of its own."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "hnswlib.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", f"{library}:{DOCS.parent}")
    (tmp_path / "vectors.json").write_text(json.dumps({"command": [sys.executable], "versions": {"hnswlib": "0"}}))
    return tmp_path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A BEIR folder of lines of the documentation, with their first words as questions."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [line for file in sorted(DOCS.glob("*.md")) for line in file.read_text(encoding="utf-8").splitlines()]
    found = list({line[:40]: line[:120] for line in lines if re.match(r"[A-Za-z][\w ,.:`-]{40}", line)}.items())[:250]
    rows = [{"_id": n, "title": "", "text": line} for n, (_, line) in enumerate(found)]
    asked = [{"_id": n, "text": first} for n, (first, _) in enumerate(found[:120:2])]
    assert (len(rows), len(asked)) == (250, 60)
    for name, entries in (("corpus", rows), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries), encoding="utf-8")
    return folder


def test_the_figures_hold_for_real_and_synthetic_vectors_and_a_second_run_uses_what_the_first_has_kept(
    texts, peers, tmp_path, capsys
):
    given = ["--vectors", "1500", "--texts", str(texts), "--rounds", "2", "--kind", "hnsw_sq8", "--json"]
    places = ["--keep", str(tmp_path / "keep"), "--peers", "hnswlib", "--peers-home", str(peers), "--threads", "1"]
    cli.main(["bench", "retrieval", *given, *places])
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    told, figures = report["settings"], report["figures"]
    assert report["command"] == "bench retrieval"
    assert (told["vectors"], told["real"], told["dim"]) == (1500, 250, 384)
    assert told["synthetic"].startswith("1250: each a mix of a real vector")
    assert told["queries"].startswith("60 questions of the texts")
    assert (told["kind"], told["factory"]) == ("hnsw_sq8", "HNSW32,SQ8")
    assert figures["recall@10"] >= 0.97
    assert 640 <= figures["bytes_per_vector"] <= 700
    assert 0 < figures["load_s"] < 1
    assert 0 < figures["second_worker_mb"] < 50
    assert 0.1 < figures["real_neighbours"] < 1
    assert min(figures["real_neighbours.recall"], figures["synthetic_neighbours.recall"]) >= 0.95
    assert figures["real_alone.local_dimension"] == pytest.approx(figures["synthetic_alone.local_dimension"], rel=0.5)
    assert figures["hnswlib.recall@10"] >= figures["recall@10"]
    assert figures["hnswlib.bytes_per_vector"] == pytest.approx(4 * 384, rel=0.01)
    ratios = sorted(row["chatkit"] / row["flat"] for row in report["rows"])
    assert ratios[0] <= figures["ratio_to_flat_qps"] + 0.1
    assert figures["ratio_to_flat_qps"] - 0.1 <= ratios[-1]
    assert [row["round"] for row in report["rows"]] == [0, 1]
    assert "added 1500 of 1500 vectors" in printed.err

    cli.main(["bench", "retrieval", *given, *places])
    again = capsys.readouterr()
    assert not re.search("encoded|made|added|exactly", again.err)
    kept = json.loads(again.out)
    assert kept["settings"] == told
    for name in ("recall@10", "bytes_per_vector", "real_alone.recall@10", "hnswlib.recall@10"):
        assert kept["figures"][name] == figures[name]


def a_set(tmp_path, real, rest, questions):
    """Return a set of unit vectors that are given."""
    file = tmp_path / "rows.f32"
    file.write_bytes(np.concatenate([real, rest]).tobytes())
    return VectorSet(file, real.shape[1], len(real) + len(rest), len(real), questions, ["text"], "given", "key")


def units(rng, count, dim=256, of=256):
    found = np.zeros((count, dim), np.float32)
    found[:, :of] = rng.standard_normal((count, of))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_synthetic_vectors_that_are_easier_than_real_ones_are_seen_to_be(tmp_path):
    rng = np.random.default_rng(0)
    easy = compare(a_set(tmp_path, units(rng, 1000), units(rng, 1000, of=6), units(rng, 50, of=6)), tmp_path)
    assert easy["synthetic_alone.local_dimension"] < 0.5 * easy["real_alone.local_dimension"]
    assert easy["synthetic_alone.recall@10"] > easy["real_alone.recall@10"] + 0.05
    assert compare(a_set(tmp_path, units(rng, 300), units(rng, 10), units(rng, 50)), tmp_path) == {}


def test_the_truth_is_what_a_comparison_with_every_vector_finds(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    made = a_set(tmp_path, units(rng, 700), units(rng, 333), units(rng, 20))
    monkeypatch.setattr(retrieval_bench, "_SLICE", 100)
    found = retrieval_bench._truth(made, tmp_path, lambda line: None)
    assert found.tolist() == np.argsort(-(made.questions @ made.rows().T), axis=1)[:, :10].tolist()


def test_a_peer_that_is_not_there_is_named_with_the_command_that_makes_it_and_one_that_ends_with_its_last_words(
    tmp_path, peers, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"no usearch in .*python benchmarks/peers/make\.py vectors"):
        find_peer("usearch", peers)
    (tmp_path / "library" / "hnswlib.py").write_text("raise RuntimeError('no such instruction')")
    rng = np.random.default_rng(0)
    made = a_set(tmp_path, units(rng, 50), units(rng, 0), units(rng, 2))
    with (
        pytest.raises(EngineFailed, match=r"hnswlib ended with code 1, its last words: .*no such instruction"),
        open_peer("hnswlib", peers, made, np.zeros((2, 10), np.int64), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"vectors": 10}, "--vectors is 10"), ({"rounds": 0}, "--rounds 0"), ({"peers": ("annoy",)}, "holds 'annoy'")],
)
def test_a_bound_that_is_passed_is_named(wrong, told):
    with pytest.raises(InvalidRequest, match=told):
        RetrievalBench(**wrong)
