"""Sets in the BEIR layout are read whole, packed or not, and a bad line is named."""

import gzip

import pytest

from chatkit.errors import InvalidRequest, NotFound
from chatkit.evaluation.beir import read_set

CORPUS = '{"_id": "d1", "title": "Rhine", "text": "A river."}\n\n{"_id": "d2", "text": "A hill."}\n'
QUERIES = '{"_id": "q1", "text": "What is it?", "metadata": {"answers": ["a river", 7]}}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(CORPUS)
    (tmp_path / "queries.jsonl").write_text(QUERIES)
    (tmp_path / "qrels" / "test.tsv").write_text(QRELS)
    return tmp_path


def test_a_set_is_read_with_titles_answers_and_positive_grades(folder) -> None:
    data = read_set(folder)
    assert [(one.id, one.title, one.text) for one in data.corpus.values()] == [
        ("d1", "Rhine", "A river."), ("d2", "", "A hill."),
    ]  # fmt: skip
    assert data.queries[0].answers == ("a river", "7")
    assert data.qrels == {"q1": {"d1": 1}}


def test_packed_files_are_read_as_well(folder) -> None:
    plain = read_set(folder)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    assert read_set(folder) == plain
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(CORPUS.encode())[:-9])
    with pytest.raises(InvalidRequest, match=r"corpus\.jsonl"):
        read_set(folder)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("corpus.jsonl", CORPUS + "{broken\n", "line 4 of .*corpus.jsonl' is '{broken', expected one JSON object"),
        ("corpus.jsonl", '{"_id": true, "text": "x"}\n', "'_id' True, expected text or a number"),
        ("queries.jsonl", '{"_id": "q"}\n', "'text' None, expected text"),
        (
            "queries.jsonl",
            '{"_id": "q", "text": "t", "metadata": []}\n{"_id": "q", "text": "t", "metadata": [1]}',
            "object",
        ),
        ("qrels/test.tsv", "q1 d1\n", "expected query, document and grade"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td2\thigh\n", "line 2 of .*the grade 'high', expected a number"),
    ],
)
def test_a_line_of_another_shape_is_refused_by_place(folder, name, content, named) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InvalidRequest, match=named):
        read_set(folder)


def test_numbers_as_ids_and_judgements_in_the_form_of_trec_are_read(folder) -> None:
    (folder / "corpus.jsonl").write_text('{"_id": 5, "text": "x"}\n')
    (folder / "qrels" / "test.tsv").write_text("q1 0 5 2\n")
    data = read_set(folder)
    assert list(data.corpus) == ["5"]
    assert data.qrels == {"q1": {"5": 2}}


def test_a_folder_without_a_set_is_not_found(tmp_path) -> None:
    with pytest.raises(NotFound, match="expected a folder in the BEIR layout"):
        read_set(tmp_path)
