"""Every kind of vectors against exact search: nearest rows, selections of rows, and what comes back of a row."""

import numpy as np
import pytest

from chatkit.errors import BadIndex, BrokenIndex, ConfigError
from chatkit.retrieval import vectors as vectors_module
from chatkit.retrieval.kinds import KINDS, choose
from chatkit.retrieval.manifest import EncoderEntry, FusionEntry, Manifest
from chatkit.retrieval.vector_writer import VectorWriter
from chatkit.retrieval.vectors import Vectors, normalised

COUNT, DIM = 4000, 48
# How far a stored vector may be from what was added: one byte a dimension gives about two digits.
BYTES = 0.02


def clustered(count, dim=DIM, seed=0):
    """Vectors in clusters, as those of texts are, of lengths from .5 to 2."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(40, dim))
    made = centres[chance.integers(40, size=count)] + 0.5 * chance.normal(size=(count, dim))
    return (normalised(made.astype(np.float32)) * chance.uniform(0.5, 2, size=(count, 1))).astype(np.float32)


def manifest_of(count, dim, entry, metric):
    encoder = EncoderEntry("", "", dim, metric=metric)
    parts = {"chunker": "", "chunking": {}, "sources_sha256": "", "built_at": "", "built_by": "", "files": {}}
    counts = {"documents": count, "passages": count, "duplicates": 0, "near_duplicates": 0, "skipped": 0}
    return Manifest("v", encoder, entry, None, FusionEntry(), **parts, **counts)


def write(folder, stored, kind, metric="cosine"):
    folder.mkdir(exist_ok=True)
    chosen = choose(len(stored), stored.shape[1], kind=kind)
    writer = VectorWriter(folder, stored.shape[1], chosen, metric)
    if chosen.train_rows:
        writer.train(stored[: chosen.train_rows])
    for start in range(0, len(stored), 1500):
        writer.add(stored[start : start + 1500])
    _, entry = writer.finish()
    return manifest_of(len(stored), stored.shape[1], entry, metric)


@pytest.fixture(scope="module")
def stored():
    return clustered(COUNT)


@pytest.fixture(scope="module")
def queries():
    return clustered(60, seed=1)


@pytest.fixture(scope="module", params=KINDS)
def opened(request, stored, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    found = Vectors.open(folder, write(folder, stored, request.param))
    yield found
    found.close()


def exact(stored, queries, rows, k):
    """Return cosines (n, k) and rows (n, k) by comparing with every one."""
    scores = normalised(queries) @ normalised(stored[rows]).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), rows[order]


def recall(found, true):
    return np.mean([len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(found, true, strict=True)])


def test_every_kind_finds_the_true_neighbours_with_their_cosines(opened, stored, queries):
    scores, rows = opened.search(queries, 10)
    true_scores, true_rows = exact(stored, queries, np.arange(COUNT), 10)
    assert rows.shape == scores.shape == (60, 10)
    assert recall(rows, true_rows) >= 0.95
    assert np.abs(scores - true_scores).max() < 0.05
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("share", [0.002, 0.05, 0.4])
def test_a_selection_of_rows_is_searched_inside_the_index(opened, stored, queries, share):
    rows = np.sort(np.random.default_rng(3).permutation(COUNT)[: int(COUNT * share)]).astype(np.int64)
    scores, found = opened.search(queries, 10, rows)
    true_scores, true_rows = exact(stored, queries, rows, 10)
    assert found.shape == (60, min(10, len(rows)))
    assert np.isin(found[found >= 0], rows).all()
    assert recall(found, true_rows) >= 0.95
    assert np.abs(scores[:, 0] - true_scores[:, 0]).max() < 0.05


def test_a_row_comes_back_as_it_was_stored(opened, stored):
    rows = np.array([0, COUNT - 1, 17, 17, 2500], dtype=np.int64)
    assert np.abs(opened.of(rows) - normalised(stored[rows])).max() < BYTES
    assert opened.of(rows[:0]).shape == (0, DIM)
    for wrong in (-1, COUNT):
        with pytest.raises(IndexError, match=f"expected 0 to {COUNT - 1}"):
            opened.of(np.array([wrong], dtype=np.int64))


def test_more_than_there_are_and_none_at_all_are_no_errors(opened, queries):
    assert opened.search(queries[:2], 10, np.array([5, 9], dtype=np.int64))[1].shape == (2, 2)
    assert opened.search(queries[:2], 0)[1].shape == (2, 0)
    assert opened.search(queries[:2], 3, np.empty(0, np.int64))[1].shape == (2, 0)
    found = opened.search(queries[:1], 10 * COUNT)[1][0]
    there = (found >= 0).sum()
    assert len(set(found[:there].tolist())) == there >= 500
    assert (found[there:] == -1).all()


def test_an_exact_search_is_exact_as_far_as_bytes_go(opened, stored, queries):
    products = normalised(queries) @ opened.of(np.arange(COUNT)).T
    assert recall(opened.exactly(queries, 10), np.argsort(-products, axis=1)[:, :10]) >= 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_by_inner_product_longer_vectors_are_nearer(stored, queries, tmp_path, kind):
    found = Vectors.open(tmp_path, write(tmp_path, stored, kind, "ip"))
    scores, rows = found.search(queries, 10)
    products = queries @ stored.T
    assert recall(rows, np.argsort(-products, axis=1)[:, :10]) >= 0.95
    assert scores[:, 0] == pytest.approx(products.max(axis=1), abs=0.1)
    assert np.abs(found.of(np.arange(50)) - stored[:50]).max() < 2 * BYTES
    found.close()


@pytest.mark.parametrize("kind", ["sq8", "hnsw_sq8", "ivf_sq8"])
def test_a_mapped_file_answers_alike_and_one_cut_short_is_an_error(stored, queries, tmp_path, monkeypatch, kind):
    manifest = write(tmp_path, stored, kind)
    in_memory = Vectors.open(tmp_path, manifest)
    monkeypatch.setattr(vectors_module, "MAPPED_FROM", 1000)
    mapped = Vectors.open(tmp_path, manifest)
    for given in (None, np.arange(0, COUNT, 7)):
        assert (in_memory.search(queries, 5, given)[1] == mapped.search(queries, 5, given)[1]).all()
    file = tmp_path / "vectors.faiss"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(BrokenIndex, match=r"'v' were cut short.*chatkit prepare-index SOURCE… --name v"):
        mapped.search(queries, 5)
    with pytest.raises(BrokenIndex, match="cut short"):
        mapped.of(np.array([COUNT - 1]))
    assert in_memory.search(queries, 5)[1].shape == (60, 5) or kind == "ivf_sq8"
    in_memory.close()
    mapped.close()


def test_one_vector_alone_is_found_in_every_kind(tmp_path):
    one = clustered(1)
    for kind in KINDS:
        found = Vectors.open(tmp_path / kind, write(tmp_path / kind, one, kind))
        scores, rows = found.search(one, 3)
        assert rows.tolist() == [[0]], kind
        assert scores[0, 0] == pytest.approx(1, abs=0.02), kind
        found.close()


def test_a_row_of_zeros_is_far_from_everything_and_breaks_nothing(tmp_path):
    stored = np.vstack([np.zeros((1, DIM), np.float32), clustered(20)])
    found = Vectors.open(tmp_path, write(tmp_path, stored, "flat"))
    scores, rows = found.search(np.zeros((1, DIM), np.float32), 3)
    assert (scores == 0).all()
    scores, rows = found.search(stored[5:6], 21)
    assert rows[0, 0] == 5
    assert np.isfinite(scores).all()
    found.close()


def test_the_kind_goes_by_size_and_recall():
    sizes = {1: "flat", 50_000: "flat", 50_001: "sq8", 400_000: "hnsw_sq8", 10**7: "ivf_sq8", 5 * 10**7: "ivf_rabitq"}
    assert {count: choose(count, 384).name for count in sizes} == sizes
    assert choose(10**7, 384, recall=0.999).name == "flat"
    assert choose(10, 384, kind="ivf_sq8").factory == "IVF1,SQ8"
    with pytest.raises(ConfigError, match="kind of vectors is 'tree', expected one of flat"):
        choose(10, 8, kind="tree")
    for wrong in (0, 1.5):
        with pytest.raises(ConfigError, match="the recall is"):
            choose(10, 8, recall=wrong)


def test_files_that_are_not_what_the_manifest_says_are_refused(stored, tmp_path):
    manifest = write(tmp_path, stored, "flat")
    few = write(tmp_path / "few", stored[:100], "sq8")
    (tmp_path / "few" / "vectors.faiss").replace(tmp_path / "vectors.faiss")
    with pytest.raises(BrokenIndex, match=r"counts 4000 passages and 48 dimensions.*holds 100 vectors"):
        Vectors.open(tmp_path, manifest)
    as_graph = choose(100, DIM, kind="hnsw_sq8")
    with pytest.raises(BrokenIndex, match="is no index of the kind hnsw_sq8"):
        Vectors.open(tmp_path, manifest_of(100, DIM, type(few.vectors)("hnsw_sq8", as_graph.factory), "cosine"))
    (tmp_path / "vectors.faiss").write_bytes(b"no index at all")
    with pytest.raises(BrokenIndex, match="cannot be read by Faiss"):
        Vectors.open(tmp_path, manifest)


def test_vectors_that_come_before_the_sample_are_refused(tmp_path, stored):
    writer = VectorWriter(tmp_path, DIM, choose(COUNT, DIM, kind="ivf_sq8"))
    with pytest.raises(BadIndex, match=r"kind ivf_sq8 were added before train\(\)"):
        writer.add(stored)
    writer.close()
