"""The table of passages: rows in any order, only the groups that are needed, filters by document."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from chatkit.errors import BrokenIndex, InvalidRequest
from chatkit.retrieval import passages as passages_module
from chatkit.retrieval.passages import Passages, PassageWriter
from chatkit.types import Passage

# Passages of each document; the third document's id is a row of its source.
DOCUMENTS = [
    ("docs/a.md", "Ports", "docs/a.md", 700),
    ("docs/b.md", "Leases [old]", "docs/b.md", 900),
    ("data/rows.csv", "Row one", "data/rows.csv#1", 1),
    ("data/rows.csv", "Row two", "data/rows.csv#2", 2),
    ("läden/ü*.md", "Größe", "läden/ü*.md", 1500),
]


def rows_of():
    for source, title, document, count in DOCUMENTS:
        for number in range(count):
            place = {"source": source, "title": title, "document": document, "section": f"S{number}"}
            offsets = {"page": number % 3, "start": number * 10, "end": number * 10 + 9}
            yield Passage(f"{document}-{number}", f"{title} says {number}", **place, **offsets)


@pytest.fixture(scope="module")
def written():
    return list(rows_of())


@pytest.fixture(scope="module")
def folder(written, tmp_path_factory):
    folder = tmp_path_factory.mktemp("passages")
    writer = PassageWriter(folder)
    writer.add(written[:1000])
    writer.add(written[1000:])
    assert len(writer) == len(written)
    assert [file.name for file in writer.finish()] == ["passages.parquet", "documents.parquet"]
    return folder


@pytest.fixture
def opened(folder):
    found = Passages.open(folder)
    yield found
    found.close()


def test_rows_come_back_whole_in_the_order_they_were_asked_for(opened, written):
    asked = [3000, 0, 1023, 1024, 0, len(written) - 1]
    assert opened.rows(asked) == [written[row] for row in asked]
    assert opened.rows([]) == []
    for wrong in (-1, len(written)):
        with pytest.raises(IndexError, match=f"no passage {wrong}, expected 0 to {len(written) - 1}"):
            opened.rows([0, wrong])


def test_only_the_row_groups_that_are_needed_are_read_and_the_latest_are_kept(folder, written, monkeypatch):
    opened = Passages.open(folder)
    read = []
    real = opened._table.read_row_group
    monkeypatch.setattr(opened._table, "read_row_group", lambda group, **kw: (read.append(group), real(group, **kw))[1])
    opened.rows([5, 6, 1022])
    opened.rows([7])
    assert read == [0]
    one_group = opened._cache[0].nbytes
    monkeypatch.setattr(passages_module, "_CACHE_BYTES", int(2.5 * one_group))
    opened.rows([1024, 2048])
    opened.rows([1024])
    opened.rows([0])  # the group not used for the longest, 0, had to go
    opened.rows([1024])
    assert read == [0, 1, 2, 0]
    opened.close()


def test_rows_of_a_document_have_one_number(opened):
    numbers = opened.documents_of([0, 699, 700, 1599, 1600, 1601, 1602, 1603, 3102])
    assert numbers.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert opened.documents_of([]).tolist() == []


@pytest.mark.parametrize(
    ("where", "documents"),
    [
        ({"source": "docs/*"}, [0, 1]),
        ({"source": "docs/a.md"}, [0]),
        ({"source": "docs/?.md", "title": "L*"}, [1]),
        ({"source": "data/rows.csv"}, [2, 3]),
        ({"document": "data/rows.csv#[2-9]"}, [3]),
        ({"document": "data/rows.csv#[!2-9]"}, [2]),
        ({"title": "Leases [[]old]"}, [1]),
        ({"title": "Gr??e"}, [4]),
        ({"source": "*.md", "title": "*o*"}, [0, 1]),
        ({"source": "*"}, [0, 1, 2, 3, 4]),
        ({"source": "DOCS/*"}, []),
        ({"source": "ocs/a.md"}, []),
        ({"source": "docs/a.m"}, []),
        ({"source": "docs/a.md\n"}, []),
        ({"title": "(|.*)+"}, []),
        ({"title": "[^a]*"}, []),
        ({"title": "["}, []),
    ],
)
def test_a_filter_selects_the_rows_of_documents_that_match_every_pattern(opened, where, documents):
    bounds = np.cumsum([0, *(count for *_, count in DOCUMENTS)])
    expected = [row for number in documents for row in range(bounds[number], bounds[number + 1])]
    assert opened.filter(where).tolist() == expected
    assert opened.filter(where) is opened.filter(dict(reversed(where.items())))


def test_a_filter_that_cannot_be_names_what_is_wrong(opened):
    with pytest.raises(InvalidRequest, match="names 'author', expected 'source', 'title', 'document'"):
        opened.filter({"author": "me"})
    with pytest.raises(InvalidRequest, match=r"'\[z-a\]' is no pattern for title"):
        opened.filter({"title": "[z-a]"})


def test_the_rows_of_a_filter_are_everybodys_and_cannot_be_changed(opened):
    with pytest.raises(ValueError, match="read-only"):
        opened.filter({"source": "docs/*"})[0] = 7


def test_threads_read_side_by_side(opened, written):
    wrong = []

    def read(seed):
        asked = np.random.default_rng(seed).integers(len(written), size=40).tolist()
        wrong.extend(row for row in asked if opened.rows([row]) != [written[row]])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["passages.parquet", "documents.parquet"])
def test_a_damaged_table_is_refused_by_name(folder, tmp_path, name):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = (tmp_path / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"PAR1" + b"\0" * 100):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(BrokenIndex, match=rf"{name}' cannot be read as Parquet"):
            Passages.open(tmp_path)
    other = "documents.parquet" if name == "passages.parquet" else "passages.parquet"
    (tmp_path / name).write_bytes((folder / other).read_bytes())
    with pytest.raises(BrokenIndex, match=rf"{name}' has the columns .*, expected "):
        Passages.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BrokenIndex, match=rf"{name}' cannot be read"):
        Passages.open(tmp_path)


def test_a_passage_without_words_or_place_is_stored_as_well(tmp_path):
    writer = PassageWriter(tmp_path)
    odd = Passage("x", "")
    writer.add([odd, replace(odd, text="\U0001f600 \0 ﷽")])
    writer.finish()
    opened = Passages.open(tmp_path)
    assert [each.text for each in opened.rows([0, 1])] == ["", "\U0001f600 \0 ﷽"]
    assert opened.documents_of([0, 1]).tolist() == [0, 0]
    opened.close()
