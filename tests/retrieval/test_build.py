import asyncio
import os
import subprocess
import sys

import pytest
from filelock import FileLock

from chatkit.errors import BadIndex, InvalidRequest, Unavailable
from chatkit.retrieval.build import build_index
from chatkit.retrieval.index import VectorIndex
from chatkit.retrieval.manifest import Manifest
from chatkit.retrieval.passages import read_table


class CountingEncoder:
    """The real encoder, counting the texts that it embeds."""

    def __init__(self, encoder):
        self._encoder = encoder
        self.embedded = 0

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_now(self, texts):
        self.embedded += len(texts)
        return self._encoder.encode_now(texts)


@pytest.fixture
def build(indexes, encoder):
    def run(*sources, name="docs", **options):
        return build_index(sources or ["corpus"], indexes, name=name, encoder=encoder, **options)

    return run


STAGED = {"staged.parquet", "staged.json", "sources.parquet"}


def answers(indexes, encoder, query="Which port does the service listen on?"):
    index = VectorIndex.open(indexes / "docs", encoder, min_score=0.35)
    hits = asyncio.run(index.search(query, k=1))
    index.close()
    return [hit.text for hit in hits]


def test_the_manifest_says_what_was_made_of_what(corpus, build, encoder):
    report = build()
    manifest = Manifest.read(report.folder)
    assert (manifest.fingerprint, manifest.dim, manifest.metric) == (encoder.fingerprint, 384, "cosine")
    assert (manifest.documents, manifest.passages, report.embedded) == (3, 5, 5)
    assert manifest.chunking == {"max_tokens": 120, "drop_duplicates": 1, "drop_near_duplicates": 1}
    assert manifest.encoder.pooling == "mean"
    assert manifest.vectors.kind == report.vectors == "flat"
    assert {name for name in manifest.files if not name.startswith("lexical/")} == {
        "vectors.faiss",
        "passages.parquet",
        "documents.parquet",
        "sources.parquet",
    }
    assert any(name.startswith("lexical/") for name in manifest.files)
    manifest.verify(report.folder, hashes=True)


def test_unchanged_sources_and_settings_embed_nothing(corpus, indexes, encoder):
    counting = CountingEncoder(encoder)
    first = build_index(["corpus"], indexes, name="docs", encoder=counting)
    again = build_index(["corpus"], indexes, name="docs", encoder=counting)
    assert counting.embedded == first.embedded == 5
    assert (again.up_to_date, again.embedded, again.version) == (True, 0, first.version)


def test_changed_sources_settings_or_damage_build_again(corpus, build):
    first = build()
    (corpus / "notes.txt").write_text("Another note about encoders.\n")
    second = build()
    third = build(chunking={"max_tokens": 64})
    (third.folder / "vectors.faiss").write_bytes(b"")
    fourth = build(chunking={"max_tokens": 64})
    assert [r.up_to_date for r in (first, second, third, fourth)] == [False] * 4
    assert [r.version for r in (first, second, third, fourth)] == ["000001", "000002", "000003", "000004"]


def test_ids_are_the_same_in_every_build_of_the_same_text(corpus, build, indexes):
    ids = []
    for name in ("one", "two"):
        report = build(name=name)
        ids.append(read_table(report.folder).column("id").to_pylist())
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 5


def test_the_version_before_the_live_one_is_kept_and_older_ones_go(corpus, build, indexes):
    for number in range(4):
        (corpus / "notes.txt").write_text(f"Note number {number}.\n")
        build()
    assert sorted(entry.name for entry in (indexes / "docs").iterdir() if entry.is_dir()) == [
        "000003",
        "000004",
        "cache",
    ]


def test_bad_files_are_listed_and_the_rest_is_built(corpus, build):
    (corpus / "latin.md").write_bytes(b"caf\xe9")
    (corpus / "empty.txt").write_text("")
    (corpus / "headings.md").write_text("# Only\n## Headings\n")
    (corpus / "unreadable.md").symlink_to("nowhere.md")
    report = build()
    assert report.documents == 3
    reasons = {entry.source: entry.reason for entry in report.skipped}
    assert set(reasons) == {"corpus/latin.md", "corpus/empty.txt", "corpus/headings.md", "corpus/unreadable.md"}
    assert "not UTF-8" in reasons["corpus/latin.md"]
    assert "empty" in reasons["corpus/empty.txt"]
    assert "headings only" in reasons["corpus/headings.md"]
    assert build().skipped == report.skipped


def test_duplicates_are_dropped_and_counted(corpus, build):
    (corpus / "zz").mkdir()
    (corpus / "zz" / "notes.txt").write_text((corpus / "notes.txt").read_text())
    report = build()
    assert (report.documents, report.passages, report.duplicates) == (4, 5, 1)


def test_the_same_words_of_another_thing_are_kept_and_found_under_its_name(corpus, build, indexes, encoder):
    for city in ("Berlin", "Paris"):
        text = f"# {city} office\n\n## Opening hours\n\nThe office is open from nine to five.\n"
        (corpus / f"{city.lower()}.md").write_text(text)
    assert build().duplicates == 0
    index = VectorIndex.open(indexes / "docs", encoder)
    (hit,) = asyncio.run(index.search("When is the Paris office open?", k=1))
    (filtered,) = asyncio.run(index.search("When is the office open?", k=1, where={"source": "*paris*"}))
    index.close()
    assert hit.title == filtered.title == "Paris office"


def test_files_folders_and_patterns_name_each_file_once(corpus, build):
    assert build("corpus", "corpus/notes.txt", "corpus/*.md").documents == 3
    (corpus / ".hidden").mkdir()
    (corpus / ".hidden" / "secret.md").write_text("# Hidden\nnot to be indexed\n")
    assert build().documents == 3


def test_sources_outside_the_working_directory_are_named_without_its_path(corpus, build, monkeypatch, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    report = build(str(corpus))
    assert set(read_table(report.folder).column("source").to_pylist()) == {
        "corpus/network.md",
        "corpus/notes.txt",
        "corpus/storage.md",
    }


def test_a_source_that_does_not_exist_is_refused_by_name(corpus, build):
    with pytest.raises(InvalidRequest, match="'corpsu' does not exist"):
        build("corpsu")


def test_nothing_to_index_is_an_error_with_reasons(corpus, build, indexes):
    (corpus.parent / "only").mkdir()
    (corpus.parent / "only" / "bad.md").write_bytes(b"\xff")
    with pytest.raises(BadIndex, match=r"nothing to index: only/bad\.md is not UTF-8"):
        build("only")
    with pytest.raises(BadIndex, match=r"matches no file of a kind that is read"):
        build("corpus/*.rst")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65])
def test_a_name_that_is_no_folder_name_is_refused(corpus, build, name):
    with pytest.raises(InvalidRequest, match="index name"):
        build(name=name)


def test_a_second_builder_is_told_to_wait(corpus, build, indexes):
    build()
    with FileLock(indexes / "docs" / ".lock"), pytest.raises(Unavailable, match="being built by another process"):
        build()


def test_progress_counts_up_to_all_files_and_chunks(corpus, build):
    seen = []
    build(progress=seen.append)
    assert [entry.stage for entry in seen] == ["read"] * 3 + ["cut"] * 3 + ["embed", "write"]
    for last in seen[-2:]:
        assert (last.files, last.files_total, last.chunks, last.chunks_total) == (3, 3, 5, 5)
        assert last.chunks_per_s > 0
        assert last.eta_s == 0
    assert seen[-2].embedded == 5


def test_a_failed_build_leaves_the_live_version_and_its_staged_chunks(corpus, build, indexes, encoder, monkeypatch):
    build()
    before = answers(indexes, encoder)
    (corpus / "network.md").write_text("# Changed\n\nNothing about that any more.\n")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("chatkit.retrieval.passages.PassageWriter.finish", fail)
        with pytest.raises(BadIndex, match="No space left on device"):
            build()
    assert answers(indexes, encoder) == before
    (rest,) = (indexes / "docs").glob(".building-*")
    assert {entry.name for entry in rest.iterdir()} == STAGED
    assert (build().embedded, list((indexes / "docs").glob(".building-*"))) == (0, [])


BUILD = """
import sys, resource
from pathlib import Path
from chatkit.retrieval.encoder import open_encoder
from chatkit.retrieval.build import build_index
folder, cache, indexes, limit = sys.argv[1:]
encoder = open_encoder(Path(folder), cache=Path(cache))
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("ready", flush=True)
build_index(["corpus"], Path(indexes), name="docs", encoder=encoder)
"""


def start_build(folder, cache, indexes, limit=0):
    arguments = [sys.executable, "-c", BUILD, str(folder), str(cache), str(indexes), str(limit)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_file_that_cannot_be_written_whole_leaves_the_live_version(
    corpus, build, indexes, encoder, encoder_folder, encoder_cache
):
    build()
    before = answers(indexes, encoder)
    (corpus / "network.md").write_text("# Changed\n\nNothing about that any more.\n")
    _, complaint = start_build(encoder_folder, encoder_cache, indexes, limit=4096).communicate(timeout=60)
    assert "BadIndex: the index 'docs' could not be written" in complaint
    assert answers(indexes, encoder) == before
    assert {entry.name for entry in (indexes / "docs").glob(".building-*/*")} <= STAGED


def test_a_file_whose_name_is_not_utf8_is_read_under_a_name_that_is(corpus, indexes, encoder):
    name = os.fsdecode(b"caf\xe9.txt")
    (corpus / name).write_text("The lease of a turn takes fifteen seconds.\n")
    (corpus / os.fsdecode(b"gro\xdf.txt")).write_bytes(b"gro\xdf")
    report = build_index(["corpus"], indexes, name="docs", encoder=encoder)
    assert {row["source"] for row in read_table(report.folder).to_pylist()} >= {r"corpus/caf\xe9.txt"}
    assert [entry.source for entry in report.skipped] == [r"corpus/gro\xdf.txt"]
    assert build_index(["corpus"], indexes, name="docs", encoder=encoder).up_to_date
