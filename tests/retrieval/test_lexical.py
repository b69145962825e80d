"""The lexical leg: what counts as a word, what is found by it, and what any query may hold."""

import os
import shutil
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from chatkit.errors import BrokenIndex, ConfigError
from chatkit.retrieval import words
from chatkit.retrieval.lexical import ENGINE, Lexical, LexicalWriter, _runs, entry
from chatkit.retrieval.manifest import LexicalEntry

TEXTS = [
    "The service listens on port 8080.",
    "Ports and harbours of the Baltic Sea.",
    "Backups are made while the service runs; a backup takes a minute.",
    "数据库每天凌晨备份一次。",
    "東京の地下鉄は便利です。",
    "Das Größenverhältnis der Häfen, naïve Übersicht",
    'AND OR NOT + - title:port "quoted" (all) words*~2',
    "서울의 지하철은 편리합니다",
    "C++ and C# and .NET are languages; x86_64 is none.",
    "รถไฟฟ้าในกรุงเทพ",
]


@dataclass
class Chunk:
    embedded: str


def write(folder, texts, step=3):
    folder.mkdir(exist_ok=True)
    writer = LexicalWriter(folder)
    for start in range(0, len(texts), step):
        writer.add(start, [Chunk(text) for text in texts[start : start + step]])
    files = writer.finish()
    writer.close()
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lexical")
    write(folder, TEXTS)
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    found = Lexical.alone(folder)
    yield found
    found.close()


def rows(opened, query, k=10, **given):
    return [row for row, _ in opened.search(query, k, **given)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("port", [1, 0, 6]),
        ("PORTS", [1, 0, 6]),
        ("how do I back up? backups", [2]),
        ("8080", [0]),
        ("备份", [3]),
        ("数据库什么时候备份", [3]),
        ("地下鉄", [4]),
        ("지하철", [7]),
        ("กรุงเทพ", [9]),
        ("hafen", [5]),
        ("häfen", [5]),
        ("HAFEN naive", [5]),
        ("ｐｏｒｔ", [1, 0, 6]),
        ("x86", [8]),
    ],
)
def test_words_are_found_in_every_script_whatever_their_form(opened, query, found):
    assert sorted(rows(opened, query)) == sorted(found)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "   \n\t",
        "the of and who is it",
        "!?… — ()[]{}",
        "\0",
        "a" * 200,
        "😀",
        "的",
    ],
)
def test_a_query_without_a_word_of_the_index_finds_nothing(opened, query):
    assert rows(opened, query) == []


OPERATORS = ["title:port", '"port', "port AND (NOT", "port* OR", "+port -service", "text:port^9", "port~2 [a TO b]"]


@pytest.mark.parametrize("query", OPERATORS)
def test_nothing_in_a_query_is_an_operator(opened, query):
    assert {0, 1, 6} <= set(rows(opened, query))


def test_a_very_long_query_is_read_in_part_and_goes_by_its_rarest_words(opened):
    page = " ".join(f"word{number}" for number in range(3000))
    assert rows(opened, "backups " + page) == [2]
    assert rows(opened, page[:5000] + " backups") == [2]
    assert rows(opened, page + " backups") == []
    assert len(opened.words_of(page)) == 96
    assert rows(opened, "备份" * 50_000) == [3]


def test_scores_are_bm25s_and_no_passage_exceeds_the_ceiling(tmp_path):
    texts = ["port", "port port port port", "port harbour", "harbour sea", "sea sea"]
    write(tmp_path, texts)
    opened = Lexical.alone(tmp_path)
    length = [len(text.split()) for text in texts]
    mean = sum(length) / len(length)

    def bm25(row, word):
        count, frequency = texts[row].split().count(word), sum(word in text.split() for text in texts)
        weight = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
        return weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length[row] / mean))

    found = dict(opened.search("ports harbours", 5))
    expected = {row: bm25(row, "port") + bm25(row, "harbour") for row in range(4)}
    assert found == pytest.approx(expected, rel=1e-4)
    assert max(found.values()) < opened.ceiling(opened.words_of("ports harbours"))
    assert opened.ceiling({"port": 1.0}) < opened.ceiling({"port": 1.0, "unknown": 1.0})
    doubled = dict(opened.search_words({"port": 2.0}, 5))
    assert doubled == pytest.approx({row: 2 * score for row, score in opened.search("port", 5)}, rel=1e-5)
    opened.close()


def test_a_pair_of_characters_counts_half_in_what_a_whole_query_would_score(opened):
    weights = opened.words_of("数据库 port")
    assert weights == {"数据": 1.0, "据库": 1.0, "port": 1.0}
    said = [opened.ceiling({word: 1.0}) for word in weights]
    rare, frequent = (2.2 * np.log1p((10 - count + 0.5) / (count + 0.5)) for count in (1, 3))
    assert said == pytest.approx([rare / 2, rare / 2, frequent])
    assert opened.ceiling(weights) == pytest.approx(sum(said))
    assert all(map(words.is_pair, ("地下", "鉄", "지하", "รถ")))
    assert not any(map(words.is_pair, ("port", "8080", "größe", "地下a")))


def test_a_selection_is_searched_inside_the_index(tmp_path):
    texts = [f"common word{number % 7} number{number}" for number in range(3000)]
    write(tmp_path, texts, 1000)
    opened = Lexical.alone(tmp_path)
    everything = dict(opened.search("common word3", 3000))
    assert len(everything) == 3000
    some = [
        np.array([2999]),
        np.arange(100, 900),
        np.arange(0, 3000, 3),
        np.arange(3000),
        np.array([5, 5, 4], np.int64),
    ]
    for selected in some:
        found = dict(opened.search("common word3", 3000, selected))
        assert found == pytest.approx({row: everything[row] for row in selected.tolist()}, rel=1e-5)
    assert opened.search("common", 5, np.empty(0, np.int64)) == []
    assert [row for row, _ in opened.search("number17", 1, np.arange(18))] == [17]
    opened.close()


def test_a_selection_of_very_many_scattered_rows_is_sifted_and_never_listed(tmp_path, monkeypatch):
    chance = np.random.default_rng(3)
    texts = [" ".join(["port"] * int(chance.integers(1, 60)) + ["tide"] * (n % 7 == 0)) for n in range(4000)]
    texts[1234] += " lighthouse"
    write(tmp_path, texts, step=1000)
    opened = Lexical.alone(tmp_path)
    everything = opened.search("port tide", 4000)
    for chosen in (np.arange(0, 4000, 2), np.flatnonzero(chance.random(4000) < 0.4), np.arange(3, 3000, 3)):
        inside = set(chosen.tolist())
        expected = [hit for hit in everything if hit[0] in inside]
        listed = opened._hits(opened._within(_runs(chosen)), 4000)
        assert sorted(row for row, _ in listed) == sorted(inside)
        with monkeypatch.context() as patch:
            patch.setattr(opened, "_within", None)
            found = opened.search("port tide", 20, chosen)
            assert [score for _, score in found] == [score for _, score in expected[:20]]
            assert {row for row, _ in found} <= inside
            assert opened.search("lighthouse", 5, np.union1d(chosen, [1234]))[0][0] == 1234
        assert len(opened.search("port", 4000, chosen)) == len(chosen)
    opened.close()


def test_k_bounds_the_answer_and_may_be_beyond_all_measure(opened):
    assert len(rows(opened, "port", 1)) == 1
    assert rows(opened, "port", 0) == rows(opened, "port", -3) == []
    assert len(rows(opened, "port", 10**12)) == 3


def test_threads_search_side_by_side(opened):
    found = []

    def search():
        found.extend(tuple(rows(opened, "backups service")) for _ in range(50))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {(2, 0)}
    assert len(found) == 200


def test_what_is_written_is_the_index_and_nothing_else(tmp_path):
    files = write(tmp_path, TEXTS)
    assert sorted(files) == sorted((tmp_path / "lexical").iterdir())
    assert not [file for file in files if file.name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_read_through_links(tmp_path, monkeypatch):
    write(tmp_path, TEXTS)
    before = sorted(file.name for file in (tmp_path / "lexical").iterdir())
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    opened = Lexical.alone(tmp_path)
    links = opened._links
    assert rows(opened, "backups") == [2]
    assert sorted(file.name for file in (tmp_path / "lexical").iterdir()) == before
    opened.close()
    assert not links.exists()


def test_files_that_are_gone_while_it_is_open_are_still_read(tmp_path):
    write(tmp_path, TEXTS)
    opened = Lexical.alone(tmp_path)
    shutil.rmtree(tmp_path / "lexical")
    assert rows(opened, "backups") == [2]
    opened.close()


@dataclass
class Said:
    lexical: LexicalEntry | None
    passages: int = len(TEXTS)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (Said(LexicalEntry("lucene", words.DEFAULT)), "lucene.*expected one of tantivy"),
        (Said(LexicalEntry(ENGINE, "english-99")), "analyser is 'english-99', expected 'english-1'"),
        (Said(entry(), passages=7), f"counts 7 passages, but the lexical index holds {len(TEXTS)}"),
        (Said(None), "expected one of tantivy"),
    ],
)
def test_an_index_made_otherwise_is_refused(folder, said, match):
    with pytest.raises(BrokenIndex, match=match):
        Lexical.open(folder, said)


@pytest.mark.parametrize("damage", ["no folder", "empty folder", "no list", "list is no list", "a segment is missing"])
def test_missing_and_damaged_files_are_refused(tmp_path, damage):
    files = write(tmp_path, TEXTS)
    folder = tmp_path / "lexical"
    segments = [file for file in files if file.name != "meta.json"]
    if damage == "no folder":
        shutil.rmtree(folder)
    elif damage == "empty folder":
        for file in files:
            file.unlink()
    elif damage == "no list":
        (folder / "meta.json").unlink()
    elif damage == "list is no list":
        (folder / "meta.json").write_text("[]")
    else:
        for file in segments:
            file.unlink()
    with pytest.raises(BrokenIndex, match=r"lexical' cannot be read by tantivy"):
        Lexical.alone(tmp_path)


def test_another_analyser_is_refused_by_name():
    with pytest.raises(ConfigError, match="'klingon', expected 'english-1'"):
        words.analyser("klingon")


def test_unspaced_scripts_are_read_in_pairs_and_others_as_they_are():
    assert words.paired("plain ascii") == "plain ascii"
    assert words.paired("在東京大 tower 中").split() == ["在東", "東京", "京大", "tower", "中"]
    assert words.paired("ﬁne ①").split() == ["fine", "1"]
