"""Builds that go on where others stopped, and builds of which little has changed."""

import asyncio
import sys

import pytest

from chatkit.retrieval.build import BuildOptions, build_index
from chatkit.retrieval.index import VectorIndex
from chatkit.retrieval.passages import read_table

BATCH = 16


class Counting:
    """The real encoder, noting the texts that it embeds."""

    def __init__(self, encoder):
        self._encoder = encoder
        self.embedded = []

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_now(self, texts):
        self.embedded += texts
        return self._encoder.encode_now(texts)


@pytest.fixture
def counting(encoder):
    return Counting(encoder)


@pytest.fixture
def build(corpus, indexes, counting):
    """Build `corpus`, and say what was embedded for it."""

    def run(*sources, **options):
        counting.embedded.clear()
        report = build_index(sources or ["corpus"], indexes, name="docs", encoder=counting, **options)
        assert len(counting.embedded) == report.embedded
        return report

    return run


def hits(indexes, encoder, query):
    index = VectorIndex.open(indexes / "docs", encoder, min_score=0.0)
    try:
        return asyncio.run(index.search(query, k=3))
    finally:
        index.close()


def long_text(corpus, count, start=0):
    """Write a text of `count` chunks of one sentence each."""
    lines = [
        f"Entry {number} of the list names the {number * 7919 % 1009}th shelf of the store, "
        + "and its box " * 25
        + "."
        for number in range(start, start + count)
    ]
    (corpus / "long.txt").write_text("\n\n".join(lines))


def test_ctrl_c_is_heard_within_a_batch_and_the_next_build_goes_on(corpus, build, counting, indexes):
    long_text(corpus, 64)

    def stop(progress):
        if progress.stage == "embed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(progress=stop, options=BuildOptions(batch=BATCH))
    assert len(counting.embedded) == BATCH
    assert len(list((indexes / "docs").glob(".building-*"))) == 1
    seen = []
    report = build(progress=seen.append)
    assert report.embedded == 64 + 5 - BATCH
    assert "cut" not in {progress.stage for progress in seen}  # the chunks were there already


def test_only_a_changed_file_is_read_and_only_its_new_passages_are_embedded(
    corpus, build, indexes, encoder, monkeypatch
):
    build()
    read = []
    monkeypatch.setattr(
        "chatkit.retrieval.building.cutting._Cutter._read", noting("chatkit.retrieval.building.cutting", read)
    )
    text = (corpus / "storage.md").read_text()
    (corpus / "storage.md").write_text(text.replace("two transactions", "exactly two transactions"))
    report = build()
    assert read == ["corpus/storage.md"]
    assert (report.embedded, report.passages) == (1, 5)
    assert "exactly two" in hits(indexes, encoder, "How many transactions is a turn?")[0].text


def noting(module, read):
    real = sys.modules[module]._Cutter._read

    def noted(self, entry, row):
        read.append(entry.source)
        return real(self, entry, row)

    return noted


def test_chunks_that_are_taken_over_are_those_that_were_cut(corpus, build):
    first = read_table(build().folder)
    (corpus / "notes.txt").write_text("Another note.\n")
    second = read_table(build().folder)
    kept = [row for row in first.to_pylist() if row["source"] != "corpus/notes.txt"]
    assert [row for row in second.to_pylist() if row["source"] != "corpus/notes.txt"] == kept


class Prefixed(Counting):
    """The real encoder, whose passages are embedded with something before them."""

    passage_prefix = "passage: "


def test_another_prefix_before_passages_embeds_all_of_them_again(corpus, build, indexes, encoder):
    build()
    prefixed = Prefixed(encoder)
    report = build_index(["corpus"], indexes, name="docs", encoder=prefixed)
    assert (report.up_to_date, report.embedded) == (False, report.passages)
    assert all(text.startswith("passage: ") for text in prefixed.embedded[: report.passages])
    assert not prefixed.embedded[report.passages :]
    assert build_index(["corpus"], indexes, name="docs", encoder=prefixed).up_to_date
    back = build()  # what the first build made is still in the cache
    assert (back.up_to_date, back.embedded) == (False, 0)


def test_a_source_that_is_removed_leaves_no_passage(corpus, build, indexes, encoder):
    build()
    (corpus / "network.md").unlink()
    report = build()
    assert (report.embedded, report.documents) == (0, 2)
    found = hits(indexes, encoder, "Which port does the service listen on?")
    assert found
    assert "corpus/network.md" not in {passage.source for passage in found}


def test_a_duplicate_comes_back_when_the_file_that_had_its_words_first_goes(corpus, build):
    (corpus / "zz-copy.txt").write_text((corpus / "notes.txt").read_text())
    assert build().duplicates == 1
    (corpus / "notes.txt").unlink()
    report = build()
    assert (report.duplicates, report.embedded) == (0, 1)  # its title, which is embedded too, is another
    assert "corpus/zz-copy.txt" in read_table(report.folder).column("source").to_pylist()


def test_going_back_to_what_was_embeds_nothing(corpus, build):
    build()
    text = (corpus / "notes.txt").read_text()
    (corpus / "notes.txt").write_text("Another note.\n")
    assert build().embedded == 1
    (corpus / "notes.txt").write_text(text)
    assert build().embedded == 0


def test_near_duplicates_are_counted_and_both_kinds_can_be_kept(corpus, build):
    text = " ".join((corpus / name).read_text() for name in ("network.md", "storage.md")).replace("#", "")
    (corpus / "one.txt").write_text(text + " here.")
    (corpus / "two.txt").write_text(text + " there.")
    (corpus / "zz.txt").write_text(text + " here.")
    report = build()
    assert (report.duplicates, report.near_duplicates, report.passages) == (1, 1, 6)
    report = build(chunking={"drop_near_duplicates": False})
    assert (report.duplicates, report.near_duplicates, report.passages) == (1, 0, 7)
    report = build(chunking={"drop_duplicates": False, "drop_near_duplicates": False})
    assert (report.duplicates, report.near_duplicates, report.passages) == (0, 0, 8)


def test_the_kind_of_vectors_can_be_named_and_another_kind_embeds_nothing(corpus, build, indexes, encoder):
    assert build().vectors == "flat"
    report = build(options=BuildOptions(vectors="sq8"))
    assert (report.vectors, report.embedded, report.up_to_date) == ("sq8", 0, False)
    assert "port 8080" in hits(indexes, encoder, "Which port does the service listen on?")[0].text
    assert build(options=BuildOptions(vectors="sq8")).up_to_date


def test_as_many_older_versions_are_kept_as_asked(corpus, build, indexes):
    for number in range(5):
        (corpus / "notes.txt").write_text(f"Note number {number}.\n")
        build(options=BuildOptions(keep=3))
    kept = sorted(entry.name for entry in (indexes / "docs").iterdir() if entry.name.isdigit())
    assert kept == ["000002", "000003", "000004", "000005"]


def test_one_chunk_a_document_is_a_matter_of_the_budget(corpus, build):
    long_text(corpus, 12)
    report = build("corpus/long.txt", chunking={"max_tokens": 100_000})
    assert (report.documents, report.passages) == (1, 1)
