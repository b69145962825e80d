"""One search through the whole index: both legs, filters, neighbours, a second reading, follow-ups, several indexes."""

import asyncio
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from chatkit.errors import BrokenIndex, IndexMismatch, InvalidRequest, NotFound, Unavailable
from chatkit.retrieval import neighbours
from chatkit.retrieval.build import build_index
from chatkit.retrieval.index import RERANKED, SearchOptions, VectorIndex
from chatkit.retrieval.legs import Hit, Legs
from chatkit.retrieval.lexical import Lexical
from chatkit.retrieval.live import LiveIndexes
from chatkit.types import QueryPart

FILES = {
    "boats.md": """# Boats

## Mooring

A boat that stays overnight is moored with two lines, one at the bow and one at the stern.

## Mooring in storms

When a storm is coming the boat is moored with four lines, and fenders hang on both sides of it.

## Varnish

Varnish the wooden parts every spring, after sanding them, and let each of the three coats dry for a day.
""",
    "harbour.md": """# Harbour rules

## Fees

A berth costs 14 euros a night. Boats longer than twelve metres pay twice as much.

## Part numbers

The lock of the shower block takes the key ZX-4417; the office lends it out.
""",
    "kitchen.txt": "Bread dough rises for two hours in a warm place before it is baked at 230 degrees.\n",
}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory, encoder):
    """A folder with the index `boats`, and `kitchen`, which holds one passage alone."""
    place = tmp_path_factory.mktemp("searching")
    (place / "docs").mkdir()
    for name, text in FILES.items():
        (place / "docs" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        build_index(["docs"], place / "indexes", name="boats", encoder=encoder)
        build_index(["docs/kitchen.txt"], place / "indexes", name="kitchen", encoder=encoder)
    return place / "indexes"


@pytest.fixture
def open_(indexes, encoder):
    """Return what opens an index with options; all are closed after the test."""
    opened = []

    def run(name="boats", **options):
        opened.append(VectorIndex.open(indexes / name, encoder, options=SearchOptions(**options)))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def find(searched, *texts, k=3, **given):
    parts = [QueryPart(text, 1.0 if place == 0 else 0.4) for place, text in enumerate(texts)]
    return asyncio.run(searched.search_parts(parts, k=k, **given))


def sections(passages):
    return [passage.section or passage.source for passage in passages]


def test_a_build_records_how_the_legs_are_weighed_and_both_are_searched(open_):
    index = open_()
    assert index.manifest.lexical.engine == "tantivy"
    assert index.manifest.fusion.dense_weight == 0.5
    assert "too few to tell" in index.manifest.fusion.tuned_on
    assert sections(find(index, "ZX-4417", k=1)) == ["Part numbers"]
    assert sections(find(index, "What does it cost to stay for a night?", k=1)) == ["Fees"]


def test_the_weight_may_be_set_for_all_indexes(open_):
    by_words, by_meaning = open_(dense_weight=0.0), open_(dense_weight=1.0)
    assert find(by_words, "craft") == ()
    assert sections(find(by_words, "varnish"))[:1] == ["Varnish"]
    assert sections(find(by_meaning, "lacquering timber", k=1)) == ["Varnish"]


@pytest.mark.parametrize(
    "query", ["", "  \n", "the of and", "who is it?", "!?", "\0", "hello", "Who won the football match?"]
)
def test_what_the_index_does_not_speak_of_and_queries_without_words_find_nothing(open_, query):
    assert find(open_(), query) == ()


def test_min_score_cuts_and_less_than_nothing_keeps_all(open_):
    query = "How is a boat moored in a storm?"
    everything = find(open_(min_score=-1.0), query, k=50)
    assert len(everything) == 6
    scores = [passage.score for passage in everything]
    assert scores == sorted(scores, reverse=True)
    assert 0.5 < scores[0] <= 1
    assert 0 <= scores[-1] < 0.35
    for least in (0.35, scores[1], scores[0]):
        assert [each.score for each in find(open_(min_score=least), query, k=50)] == [s for s in scores if s >= least]
    assert find(open_(min_score=1.01), query) == ()


def test_a_long_page_as_a_query_finds_what_it_is_about(open_):
    page = FILES["boats.md"].split("## Varnish")[1] * 400
    assert sections(find(open_(), page, k=1)) == ["Varnish"]


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_of_none_is_refused(open_, k):
    with pytest.raises(InvalidRequest, match=f"k is {k}, expected at least 1"):
        find(open_(), "boats", k=k)


def test_a_k_beyond_all_measure_gives_what_there_is(open_):
    assert len(find(open_(min_score=-1.0), "boats", k=10**15, neighbours=10)) <= 6


def test_half_a_character_is_refused(open_):
    with pytest.raises(InvalidRequest, match="half a character at 5, expected whole Unicode"):
        find(open_(), "boats\udcff")


def test_filters_hold_inside_both_legs(open_):
    index = open_(min_score=-1.0)
    where = {"source": "docs/harbour.*"}
    assert sections(find(index, "How is a boat moored?", k=50, where=where)) == ["Fees", "Part numbers"]
    assert sections(find(index, "bread", where={"title": "Boats", "document": "docs/boats.md"}, k=50)) != []
    assert find(index, "bread", where={"source": "docs/boats.md", "title": "Harbour*"}) == ()
    assert find(index, "bread", where={"source": "absent"}) == ()
    assert find(index, "bread", where={})[0].source == "docs/kitchen.txt"
    with pytest.raises(InvalidRequest, match="names 'author', expected"):
        find(index, "bread", where={"author": "x"})


def test_another_indexes_name_is_not_found(open_):
    assert find(open_(), "varnish", index="boats")
    with pytest.raises(NotFound, match="no index 'other' here, expected 'boats'"):
        find(open_(), "varnish", index="other")


def test_one_passage_alone_is_found_by_both_legs(open_):
    index = open_("kitchen")
    assert len(index) == 1
    assert find(index, "How long does dough rise?")[0].text == FILES["kitchen.txt"].strip()
    assert find(index, "mooring lines") == ()


def test_neighbours_are_read_with_a_hit_as_far_as_they_are_alike_and_of_its_document(open_):
    index = open_(min_score=-1.0, alike=0.45)
    (hit,) = find(index, "storm fenders", k=1)
    (wide,) = find(index, "storm fenders", k=1, neighbours=10)
    assert (hit.section, wide.section, wide.id, wide.score) == ("Mooring in storms",) * 2 + (hit.id, hit.score)
    assert "two lines" in wide.text
    assert hit.text in wide.text
    assert "Varnish" not in wide.section
    assert "euros" not in wide.text
    assert (wide.start, wide.end) == (FILES["boats.md"].index("A boat that"), hit.end)
    everything = find(open_(min_score=-1.0, alike=-1.0), "storm fenders", k=50, neighbours=10)
    assert [passage.source for passage in everything] == [
        f"docs/{name}" for name in ("boats.md", "harbour.md", "kitchen.txt")
    ]
    assert find(index, "storm fenders", k=1, neighbours=0) == (hit,)


def test_a_row_is_never_in_two_widened_hits(open_):
    index = open_(min_score=-1.0)
    hits = [Hit(row, 1 - row / 10) for row in (1, 0, 2, 5)]
    spans = neighbours.widen(hits, index._vectors, index._passages, most=9, window=1, alike=-1.0)
    rows = [row for span in spans for row in range(span.first, span.last + 1)]
    assert sorted(rows) == sorted(set(rows))
    assert len(neighbours.widen(hits, index._vectors, index._passages, most=1, window=1, alike=-1.0)) == 1


class Reader:
    """Likes texts that hold a word."""

    def __init__(self, word):
        self.word, self.read = word, []

    def scores(self, query, texts):
        self.read.append((query, len(texts)))
        return [0.9 if self.word in text else 0.1 for text in texts]


def test_a_second_reading_orders_a_small_pool_again(open_):
    reader = Reader("Varnish the wooden")
    index = open_(min_score=-1.0, reranker=reader)
    found = find(index, "How is a boat moored?", "an earlier message", k=2)
    assert (found[0].section, found[0].score, found[1].score) == ("Varnish", 0.9, 0.1)
    assert reader.read == [("How is a boat moored?", 6)]
    assert sections(find(index, "How is a boat moored?", k=1, rerank=False)) == ["Mooring"]
    assert len(reader.read) == 1
    assert RERANKED <= 20
    assert find(open_(reranker=reader, min_score=0.99), "How is a boat moored?") == ()
    assert len(reader.read) == 1


def test_what_was_said_before_counts_for_less_than_what_is_asked(open_):
    index = open_(min_score=-1.0)
    assert sections(find(index, "And in a storm?", "How do I moor a boat?", k=1)) == ["Mooring in storms"]
    changed = find(index, "How long does bread dough rise?", "How do I moor a boat?", "And in a storm?", k=1)
    assert changed[0].source == "docs/kitchen.txt"
    assert find(index, " ", "How do I moor a boat?") == ()


def test_a_text_that_was_asked_lately_is_not_encoded_again(open_, encoder, monkeypatch):
    index = open_()
    encoded = []
    real = encoder.encode

    async def encode(texts):
        encoded.extend(texts)
        return await real(texts)

    monkeypatch.setattr(encoder, "encode", encode)
    first = find(index, "And in a storm?", "How do I moor a boat?")
    assert find(index, "And in a storm?", "How do I moor a boat?") == first
    find(index, "x" * 9000, "And in a storm?")
    assert encoded == ["And in a storm?", "How do I moor a boat?", "x" * 9000]
    assert all(len(key) == 16 for key in index._recent)


def test_searches_side_by_side_have_their_own_answers(open_):
    index = open_()
    queries = {"How much is a berth?": "Fees", "varnish for wood": "Varnish", "shower key": "Part numbers"}

    async def many():
        asked = list(queries) * 15
        return zip(asked, await asyncio.gather(*(index.search(query, k=1) for query in asked)), strict=True)

    assert all(found[0].section == queries[query] for query, found in asyncio.run(many()))


def test_closing_lets_a_search_end_and_the_next_one_is_told(indexes, encoder, monkeypatch):
    index = VectorIndex.open(indexes / "boats", encoder)
    going, go_on = threading.Event(), threading.Event()
    real = Legs.find

    def slow(*given, **named):
        going.set()
        assert go_on.wait(20)
        return real(*given, **named)

    monkeypatch.setattr(Legs, "find", slow)

    async def run():
        under_way = asyncio.create_task(index.search("varnish for wood", k=1))
        await asyncio.to_thread(going.wait, 20)
        closing = asyncio.create_task(asyncio.to_thread(index.close))
        await asyncio.sleep(0.05)
        assert not closing.done()
        go_on.set()
        await closing
        return await under_way

    assert sections(asyncio.run(run())) == ["Varnish"]
    with pytest.raises(Unavailable, match="'boats' was closed"):
        find(index, "varnish for wood")


def test_several_indexes_are_searched_by_name(indexes, encoder):
    live = LiveIndexes(indexes, encoder, default="boats", named={"kitchen"}, options=SearchOptions())
    try:
        assert find(live, "bread dough", index="kitchen")[0].source == "docs/kitchen.txt"
        assert sections(find(live, "varnish", k=1)) == ["Varnish"]
        assert find(live, "varnish", index="kitchen") == ()
        with pytest.raises(NotFound, match="no index 'other'"):
            find(live, "varnish", index="other")
    finally:
        live.close()


@pytest.fixture
def copied(indexes, tmp_path):
    """A copy of the live version, to spoil."""
    shutil.copytree(indexes / "boats", tmp_path / "boats")
    return tmp_path / "boats" / "000001"


def edit(version, **fields):
    file = version / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_index_without_a_lexical_leg_is_searched_by_meaning(copied, encoder):
    files = json.loads((copied / "manifest.json").read_text())["files"]
    shutil.rmtree(copied / "lexical")
    edit(copied, lexical=None, files={name: row for name, row in files.items() if not name.startswith("lexical/")})
    for weight in (None, 0.0):
        index = VectorIndex.open(copied.parent, encoder, options=SearchOptions(dense_weight=weight))
        (hit,) = find(index, "lacquering timber", k=1)
        assert hit.section == "Varnish"
        vectors = encoder.encode_now(["lacquering timber", "Boats > Varnish\n" + hit.text])
        assert hit.score == pytest.approx(float(vectors[0] @ vectors[1]), abs=2e-3)
        index.close()


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"format": 1}, BrokenIndex, "format 1, expected 2.*chatkit prepare-index SOURCE… --name boats"),
        ({"lexical": {"engine": "tantivy", "analyser": "english-0"}}, BrokenIndex, "analyser is 'english-0'"),
        ({"lexical": {"engine": "lucene", "analyser": "english-1"}}, BrokenIndex, "expected one of tantivy"),
        ({"fusion": {"dense_weight": 1.5, "tuned_on": "", "background": 0}}, BrokenIndex, "dense_weight is 1.5"),
        ({"passages": 7}, BrokenIndex, "counts 7 passages"),
    ],
)
def test_a_manifest_that_asks_for_something_else_is_refused_with_the_next_step(copied, encoder, fields, error, match):
    edit(copied, **fields)
    with pytest.raises(error, match=match) as refusal:
        VectorIndex.open(copied.parent, encoder)
    assert "chatkit prepare-index" in str(refusal.value)


@pytest.mark.parametrize("damage", ["folder", "file", "changed"])
def test_lexical_files_that_are_missing_or_changed_are_refused_by_name(copied, encoder, damage):
    file = max((copied / "lexical").iterdir(), key=lambda each: each.stat().st_size)
    if damage == "folder":
        shutil.rmtree(copied / "lexical")
    elif damage == "file":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(BrokenIndex, match=r"lexical/.*chatkit prepare-index SOURCE… --name boats"):
        VectorIndex.open(copied.parent, encoder)


def test_an_encoder_of_other_vectors_is_refused(copied, encoder):
    manifest = json.loads((copied / "manifest.json").read_text())
    edit(copied, encoder=manifest["encoder"] | {"fingerprint": "another"})
    with pytest.raises(IndexMismatch, match="built with the encoder 'another'"):
        VectorIndex.open(copied.parent, encoder)


def test_a_query_has_the_prefix_that_the_index_was_built_for(indexes, encoder, monkeypatch):
    index = VectorIndex.open(indexes / "boats", encoder)
    index.manifest = replace(index.manifest, encoder=replace(index.manifest.encoder, query_prefix="query: "))
    encoded = []

    async def encode(texts):
        encoded.extend(texts)
        return np.ones((len(texts), 384), np.float32)

    monkeypatch.setattr(encoder, "encode", encode)
    find(index, "varnish")
    assert encoded == ["query: varnish"]
    index.close()


def test_legs_find_nothing_where_neither_can_look(open_):
    index = open_()
    legs = Legs(index._vectors, None, index.manifest.fusion)
    assert legs.find([QueryPart("varnish")], None, 5) == []
    assert isinstance(index._legs._lexical, Lexical)
    assert index._legs.find([QueryPart("the")], None, 5) == []
