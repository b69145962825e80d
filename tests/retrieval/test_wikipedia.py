"""OpenChatKit's layout: the neighbour rule, articles, every kind of index, and the sidecar of texts."""

import asyncio
import json
import logging
import multiprocessing
import threading

import faiss
import numpy as np
import pytest

from chatkit.errors import BadIndex, BrokenIndex, IndexMismatch, InvalidRequest, NotFound
from chatkit.retrieval import sidecar, wikipedia
from chatkit.retrieval.sidecar import open_sidecar
from chatkit.retrieval.wikipedia import INDEX, PARQUET, WikipediaIndex, WikipediaRetriever, lay_out
from tests.retrieval.published_layout import (
    ARTICLES,
    DIM,
    RelatedEncoder,
    WordEncoder,
    rows_of,
    vectors_of,
    write_layout,
)

LAMP = "lighthouse lamp cape gas"


@pytest.fixture
def open_(tmp_path):
    opened = []

    def run(folder=None, encoder=None, **layout):
        folder = folder or write_layout(tmp_path / "wikipedia", **layout)
        opened.append(WikipediaIndex(folder, encoder or WordEncoder()))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def merged_by_the_reference(rows, query, w, w_th):
    """What the ancestor's rule gives where it behaves: all compared with the hit; joined with spaces here."""
    vectors = vectors_of([row[0] for row in rows])
    hit = int(np.argmax(vectors @ vectors_of([query])[0]))
    first = last = hit
    same = [row[2] == rows[hit][2] for row in rows]
    while first > max(0, hit - w) and same[first - 1] and vectors[first - 1] @ vectors[hit] > w_th:
        first -= 1
    while last < min(len(rows) - 1, hit + w) and same[last + 1] and vectors[last + 1] @ vectors[hit] > w_th:
        last += 1
    return " ".join(row[0] for row in rows[first : last + 1])


def test_a_hit_is_merged_with_neighbours_above_the_threshold_inside_its_article(open_) -> None:
    index = open_()
    assert (len(index), index.neighbours) == (9, "stored")
    # The row after the third is about bread; the one before the first is the file's edge.
    assert index.search(LAMP) == [" ".join(ARTICLES["Lighthouses"][:3])]
    assert index.search(LAMP, w=1) == [" ".join(ARTICLES["Lighthouses"][1:3])]
    assert index.search(LAMP, w=0) == [ARTICLES["Lighthouses"][2]]
    assert index.search(LAMP, w_th=1.0) == [ARTICLES["Lighthouses"][2]]
    assert index.search(LAMP, w_th=-1.0) == [" ".join(ARTICLES["Lighthouses"])]


def test_a_window_ends_where_another_article_begins(open_) -> None:
    index = open_()
    assert index.search("wasps sting", w_th=-1.0) == [" ".join(ARTICLES["Bees"])]
    assert index.search("candles drip", w_th=-1.0) == [" ".join(ARTICLES["Lamps"])]


@pytest.mark.parametrize("columns", [("text_snippet", "position_in_source_text"), ("text_snippet", "title")])
def test_an_article_is_known_by_its_positions_or_by_its_title(open_, columns) -> None:
    assert open_(columns=columns).search("wasps sting", w_th=-1.0) == [" ".join(ARTICLES["Bees"])]


def test_without_either_column_the_window_ends_at_the_file_alone(open_) -> None:
    found = open_(columns=("text_snippet",)).search("candles drip", w_th=-1.0)
    assert found == [" ".join(row[0] for row in rows_of()[-6:])]


@pytest.mark.parametrize("w_th", [0.23, 0.53, 0.73])
def test_the_rule_is_the_references(open_, tmp_path, w_th) -> None:
    words = ["red", "green", "blue", "round", "square", "old"]
    random = np.random.default_rng(6)
    articles = {
        f"Article {number}": [" ".join(random.choice(words, 3)) + f" {number}." for _ in range(random.integers(3, 14))]
        for number in range(40)
    }
    rows = rows_of(articles)
    index = open_(rows=rows)
    for row in rows[::7]:
        assert index.search(row[0], w_th=w_th) == [merged_by_the_reference(rows, row[0], 5, w_th)]


def test_rows_that_bring_their_own_space_get_no_second_one(open_) -> None:
    rows = [("One bee. ", 0, "A"), ("Two bee.", 1, "A"), ("\nThree bee.", 2, "A"), ("", 3, "A"), ("Four bee.", 4, "A")]
    assert open_(rows=rows).search("bee", w_th=-1.0) == ["One bee. Two bee.\nThree bee. Four bee."]


KINDS = ["Flat", "SQ8", "HNSW8,Flat", "HNSW8,SQ8", "IVF4,Flat", "IVF4,SQ8", "PCA32,IVF4,Flat", "PCAR64,IVF2,Flat"]


def many_rows():
    return [
        (f"{row} piece {number} of it {number * 7}.", number, row) for row in ("alpha", "beta") for number in range(150)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_stored_vectors_are_found_in_every_kind_of_index(open_, tmp_path, kind, caplog) -> None:
    rows = many_rows()
    lossy = kind.startswith("PCA32")
    with caplog.at_level(logging.WARNING):
        index = open_(rows=rows, kind=kind)
    held = np.concatenate([index._stored.of(at, at + 4) for at in range(0, 300, 5)]) if index._stored else None
    if not lossy:
        assert index.neighbours == "stored"
        np.testing.assert_allclose(held, vectors_of([row[0] for row in rows]), atol=0.02)
    assert (index.neighbours == "encoder") == ("neighbours are encoded at every search" in caplog.text)
    # The map of an inverted file is made once, and opened again.
    maps = list((tmp_path / "wikipedia" / "sidecar").glob("lists-*.npy"))
    assert len(maps) == ("IVF" in kind)
    again = open_(tmp_path / "wikipedia")
    assert again.search("alpha piece 7") == index.search("alpha piece 7")


COARSE = "PCA16,Flat"


@pytest.mark.parametrize("why", ["too coarse", "not at all"])
def test_where_vectors_cannot_be_given_back_neighbours_are_encoded(open_, caplog, monkeypatch, why) -> None:
    rows, encoder = many_rows(), WordEncoder()
    exact = open_(rows=rows).search("beta piece 30 of it", w_th=0.6)
    if why == "not at all":
        monkeypatch.setattr(wikipedia, "stored_vectors", lambda *arguments: None)
    with caplog.at_level(logging.WARNING):
        index = open_(rows=rows, encoder=encoder, kind="Flat" if why == "not at all" else COARSE)
    assert index.neighbours == "encoder"
    assert "neighbours are encoded at every search" in caplog.text
    encoder.texts.clear()
    assert index.search("beta piece 30 of it", w_th=0.6) == exact
    assert len(encoder.texts) == 1 + 11


def test_an_index_of_another_encoder_is_refused(tmp_path) -> None:
    folder = write_layout(tmp_path / "w")

    class Other(WordEncoder):
        async def encode(self, texts):
            return -vectors_of(texts)

    class Longer(WordEncoder):
        dim = 768

    with pytest.raises(IndexMismatch, match=r"another encoder: its vectors have a mean cosine of -1\.00"):
        WikipediaIndex(folder, Other())
    with pytest.raises(IndexMismatch, match=f"vectors of length {DIM}, but the encoder makes 768"):
        WikipediaIndex(folder, Longer())


@pytest.mark.parametrize("kind", ["Flat", "HNSW8,SQ8", "IVF4,SQ8", COARSE])
def test_an_encoder_that_is_only_related_is_refused_as_well(open_, tmp_path, kind) -> None:
    folder = write_layout(tmp_path / "w", many_rows(), kind=kind)
    for cosine in (0.9, 0.7):
        with pytest.raises(IndexMismatch, match="was built with another encoder"):
            WikipediaIndex(folder, RelatedEncoder(cosine))
    open_(folder, RelatedEncoder(0.995))


@pytest.mark.parametrize("kind", ["IVF4,PQ8x4fs", "IVF4,PQ8x4fsr"])
def test_lists_for_fast_scans_are_searched_and_never_asked_for_vectors(open_, tmp_path, caplog, kind) -> None:
    # Faiss ends the process when such a list is asked for a vector.
    folder = write_layout(tmp_path / "w", many_rows(), kind=kind)
    with caplog.at_level(logging.WARNING):
        index = open_(folder)
    assert index.neighbours == "encoder"
    assert "checked by searching alone (16 of 16 texts found their own row)" in caplog.text
    assert index.search("beta piece 30 of it 210.", w=0) == ["beta piece 30 of it 210."]
    with pytest.raises(IndexMismatch, match=r"of 16 texts .* only \d found their own row among the nearest 10"):
        WikipediaIndex(folder, RelatedEncoder(0.0))


def test_blank_rows_are_no_probes(open_, caplog) -> None:
    rows = many_rows()
    for at in range(0, 300, 2):
        rows[at] = ("", *rows[at][1:])
    assert open_(rows=rows).neighbours == "stored"


def test_files_that_do_not_fit_are_refused_with_the_next_step(tmp_path) -> None:
    folder = write_layout(tmp_path / "w")
    write_layout(tmp_path / "other", rows_of()[:5])
    (tmp_path / "other" / INDEX).replace(folder / INDEX)
    for opened in (lambda: WikipediaIndex(folder, WordEncoder()), lambda: lay_out(folder)):
        with pytest.raises(BrokenIndex, match=r"has 5 vectors and .* 9 rows; they belong together"):
            opened()
    (folder / INDEX).write_bytes(b"no index")
    with pytest.raises(BrokenIndex, match="cannot be read by Faiss"):
        WikipediaIndex(folder, WordEncoder())
    (folder / INDEX).unlink()
    with pytest.raises(BadIndex, match=r"no 'knn.index' .* recipe `openchatkit`"):
        WikipediaIndex(folder, WordEncoder())
    folder = write_layout(tmp_path / "no-texts", columns=("title",))
    with pytest.raises(BrokenIndex, match="has no column 'text_snippet', only title"):
        WikipediaIndex(folder, WordEncoder())
    (folder / PARQUET).write_bytes(b"PAR1")
    with pytest.raises(BrokenIndex, match="cannot be read as Parquet"):
        WikipediaIndex(folder, WordEncoder())


def test_numbers_out_of_range_are_refused_and_a_blank_query_finds_nothing(open_) -> None:
    index = open_()
    for options in ({"k": 0}, {"k": 10}, {"w": -1}, {"w": 101}, {"w_th": 1.1}, {"w_th": float("nan")}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(options))} is"):
            index.search("bees", **options)
    assert index.search(" \n") == []
    assert len(index.search("bees", k=9, w=0)) == 9


def test_an_index_cut_short_while_open_is_an_error_and_not_the_end(open_, tmp_path) -> None:
    index = open_()
    with (tmp_path / "wikipedia" / INDEX).open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(BrokenIndex, match="was cut short while it was open"):
        index.search("bees")


def test_it_answers_a_service_with_passages_that_can_be_cited(open_) -> None:
    retriever = WikipediaRetriever(open_(), name="wiki", min_score=0.4)
    found = asyncio.run(retriever.search("the lamp of a lighthouse burns oil", k=3))
    # The first two hits lie in one run of rows, which is one passage; the last article's row is another.
    assert [passage.title for passage in found] == ["Lighthouses", "Lamps"]
    assert found[0].text == " ".join(ARTICLES["Lighthouses"][:3])
    assert found[0].source == f"{PARQUET}#0-2"
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    assert found[0].score > found[1].score >= 0.4
    assert found == asyncio.run(retriever.search("the lamp of a lighthouse burns oil", k=3))
    assert len({passage.id for passage in found}) == 2
    assert asyncio.run(retriever.search("zebra", k=3)) == ()
    assert asyncio.run(retriever.search("  ", k=3)) == ()
    with pytest.raises(NotFound, match="expected 'wiki'"):
        asyncio.run(retriever.search("bees", k=1, index="docs"))
    with pytest.raises(InvalidRequest, match="no filters"):
        asyncio.run(retriever.search("bees", k=1, where={"title": "Bees"}))


def test_searches_beside_each_other_find_what_they_find_alone(open_) -> None:
    index = open_(rows=many_rows(), kind="IVF4,SQ8")
    queries = [f"alpha piece {number} of it" for number in range(24)]
    alone = [index.search(query) for query in queries]
    found = [None] * len(queries)

    def run(start: int) -> None:
        for at in range(start, len(queries), 4):
            found[at] = index.search(queries[at])

    threads = [threading.Thread(target=run, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_the_sidecar_gives_every_row_and_is_made_once(tmp_path, monkeypatch) -> None:
    rows = [(f"Text {number} \u20ac.", number % 10, f"T{number // 10}") for number in range(1003)]
    parquet = write_layout(tmp_path / "w", rows) / PARQUET
    told = []
    with_batches = open_sidecar(parquet, tell=lambda done, total: told.append((done, total)))
    assert [row.text for row in with_batches.read(0, 1002)] == [row[0] for row in rows]
    assert [row.title for row in with_batches.read(29, 34)] == ["T2", *["T3"] * 5]
    assert (with_batches.article(35, 5), with_batches.article(31, 5), with_batches.article(1002, 5)) == (
        (30, 39),
        (30, 36),
        (1000, 1002),
    )
    assert told[-1] == (1003, 1003)
    with_batches.close()
    monkeypatch.setattr(sidecar, "_make", None)
    again = open_sidecar(parquet)
    assert again.read(1002, 1002)[0].text == rows[1002][0]
    again.close()


def test_a_sidecar_of_another_file_is_made_again_and_a_damaged_one_is_named(tmp_path) -> None:
    folder = write_layout(tmp_path / "w")
    open_sidecar(folder / PARQUET).close()
    write_layout(folder, rows_of()[::-1])
    made = open_sidecar(folder / PARQUET)
    assert made.read(0, 0)[0].text == rows_of()[-1][0]
    made.close()
    texts = folder / "sidecar" / "texts.bin"
    texts.write_bytes(b"\0" * texts.stat().st_size)
    damaged = open_sidecar(folder / PARQUET)
    with pytest.raises(BrokenIndex, match="block 0 cannot be read"):
        damaged.read(0, 0)
    damaged.close()
    texts.write_bytes(b"")
    with pytest.raises(BrokenIndex, match="do not fit each other"):
        open_sidecar(folder / PARQUET)
    (folder / "sidecar" / "sidecar.json").write_text(json.dumps({"format": 99}))
    open_sidecar(folder / PARQUET).close()
    assert sorted(path.name for path in folder.iterdir()) == [".sidecar.lock", INDEX, "sidecar", PARQUET]


def _open(folder, found) -> None:
    made = open_sidecar(folder / PARQUET)
    found.put((made.read(0, 0)[0].text, made.folder.stat().st_ino))


def test_processes_that_need_a_sidecar_at_once_wait_for_one(tmp_path) -> None:
    folder = write_layout(tmp_path / "w")
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    processes = [context.Process(target=_open, args=(folder, found)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = {found.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(answers) == 1


def test_a_map_of_lists_that_does_not_fit_is_removed(open_, tmp_path) -> None:
    open_(rows=many_rows(), kind="IVF4,SQ8")
    (made,) = (tmp_path / "wikipedia" / "sidecar").glob("lists-*.npy")
    np.save(made, np.zeros(3, np.uint64))
    with pytest.raises(BrokenIndex, match="does not fit the index and was removed; open the index again"):
        open_(tmp_path / "wikipedia")
    assert open_(tmp_path / "wikipedia").neighbours == "stored"


def test_an_inverted_file_with_ids_that_are_no_rows_is_refused(open_, tmp_path) -> None:
    folder = write_layout(tmp_path / "w")
    quantizer = faiss.IndexFlatIP(DIM)
    index = faiss.IndexIVFFlat(quantizer, DIM, 2, faiss.METRIC_INNER_PRODUCT)
    vectors = vectors_of([row[0] for row in rows_of()])
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(100, 109))
    faiss.write_index(index, str(folder / INDEX))
    with pytest.raises(BrokenIndex, match="has ids outside of its 9 rows"):
        open_(folder)
