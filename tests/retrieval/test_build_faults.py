"""Builds that meet a full disk, damage, readers that are killed, and shards that do not fit."""

import json
import os
import shutil

import pytest

from chatkit.errors import BadIndex, BrokenIndex, IndexMismatch, InvalidRequest
from chatkit.retrieval import manifest
from chatkit.retrieval.apart import Reader
from chatkit.retrieval.build import BuildOptions, build_index, merge_shards
from chatkit.retrieval.building import collecting, version
from chatkit.retrieval.building.cutting import Share
from chatkit.retrieval.building.sharding import embed_shard
from chatkit.retrieval.layout import IndexFolder
from chatkit.retrieval.lexical import LexicalWriter
from chatkit.retrieval.manifest import Manifest
from chatkit.retrieval.passages import read_table


@pytest.fixture
def build(corpus, indexes, encoder):
    def run(*sources, **options):
        progress = options.pop("progress", None)
        return build_index(
            sources or ["corpus"],
            indexes,
            name="docs",
            encoder=encoder,
            options=BuildOptions(**options),
            progress=progress,
        )

    return run


def full(*_, **__):
    raise OSError(28, "No space left on device")


def emptied(good):
    return b""


def half_lost(good):
    return b"\xff" * (len(good) // 2) + good[len(good) // 2 :]


@pytest.mark.parametrize(("kind", "damage"), [("fast", emptied), ("idx", half_lost), ("term", half_lost)])
def test_a_lexical_index_that_is_damaged_as_it_is_written_never_goes_live(corpus, build, monkeypatch, kind, damage):
    first = build()
    (corpus / "notes.txt").write_text("Another note.\n")
    real = LexicalWriter.finish

    def damaged(self):
        files = real(self)
        (file,) = (file for file in files if file.suffix == f".{kind}")
        file.write_bytes(damage(file.read_bytes()))
        return files

    with monkeypatch.context() as patch:
        patch.setattr(LexicalWriter, "finish", damaged)
        with pytest.raises(BrokenIndex, match="the version before it is untouched; check the disk and run again"):
            build()
    assert IndexFolder(first.folder.parent.parent, "docs").current() == first.folder.name
    assert build().passages == first.passages


@pytest.mark.parametrize("changed", [False, True])
def test_damage_that_an_opening_service_does_not_see_is_mended_by_a_build(corpus, build, monkeypatch, changed):
    monkeypatch.setattr(manifest, "HASHED_AT_OPEN", 0)  # as if all files were large
    first = build()
    file = first.folder / "passages.parquet"
    file.write_bytes(bytes(file.stat().st_size))
    if changed:
        (corpus / "notes.txt").write_text("Another note.\n")
    report = build()
    assert (report.up_to_date, report.passages) == (False, 5)
    assert read_table(report.folder).num_rows == 5


def test_what_a_full_disk_stopped_goes_on_from_the_staged_chunks(build, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(version, "write", full)
        with pytest.raises(BadIndex, match="No space left on device"):
            build()
    seen = []
    assert build(progress=seen.append).embedded == 0
    assert "cut" not in {progress.stage for progress in seen}


def test_a_cache_that_cannot_be_trimmed_does_not_fail_a_build_that_is_live(corpus, build, monkeypatch, caplog):
    monkeypatch.setattr(collecting, "MOST_SPARE", 0)
    monkeypatch.setattr(collecting, "trim_cache", full)
    assert build().passages == 5
    assert "was not trimmed (No space left on device); `chatkit index gc docs` does it" in caplog.text
    assert build().up_to_date


def test_a_mistyped_source_leaves_no_folder(build, indexes):
    with pytest.raises(InvalidRequest, match="nowhere"):
        build("nowhere")
    assert not indexes.exists()


def test_a_file_whose_reader_was_killed_is_read_again_and_one_that_is_bad_is_not(corpus, build, monkeypatch):
    (corpus / "bad.txt").write_bytes(b"\xff\xfd")
    real = Reader._from

    def killed(self, file, place):
        for document in real(self, file, place):
            if file.source.endswith("notes.txt"):
                self._child.process.kill()
                raise self._ended(self._child)
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "_from", killed)
        first = build()
    assert "SIGKILL" in next(entry.reason for entry in first.skipped if entry.source == "corpus/notes.txt")
    second = build()
    assert [entry.source for entry in second.skipped] == ["corpus/bad.txt"]
    assert not second.up_to_date
    assert build().up_to_date


def test_another_recall_of_a_tuned_kind_is_written_and_embeds_nothing(build):
    first = build(vectors="hnsw_sq8", recall=0.9)
    assert Manifest.read(first.folder).vectors.recall == 0.9
    again = build(vectors="hnsw_sq8", recall=0.9)
    higher = build(vectors="hnsw_sq8", recall=0.999)
    assert (again.up_to_date, higher.up_to_date, higher.embedded) == (True, False, 0)


def test_a_manifest_that_does_not_tell_its_recall_is_read(build):
    folder = build().folder
    table = json.loads((folder / "manifest.json").read_text())
    del table["vectors"]["recall"]
    (folder / "manifest.json").write_text(json.dumps(table))
    assert Manifest.read(folder).vectors.recall == 0


def test_records_of_one_name_in_a_row_are_documents_of_their_own(corpus, build):
    url = "https://example.org/" + "a" * 120
    names = ["7", "7", "7", "8", url + "/one", url + "/two"]
    lines = [json.dumps({"id": name, "text": f"Record {place} of them."}) for place, name in enumerate(names)]
    (corpus / "rows.jsonl").write_text("\n".join(lines))
    found = [row["document"] for row in read_table(build().folder).to_pylist() if row["source"] == "corpus/rows.jsonl"]
    assert found[:4] == [f"corpus/rows.jsonl#{name}" for name in ("7", "7-2", "7-3", "8")]
    assert len(set(found)) == 6


class Prefixed:
    """The real encoder with another prefix before passages."""

    passage_prefix = "passage: "

    def __init__(self, encoder):
        self._encoder = encoder

    def __getattr__(self, name):
        return getattr(self._encoder, name)


def test_shards_of_another_prefix_are_refused_with_both_named(corpus, indexes, encoder, tmp_path):
    embed_shard(["corpus"], tmp_path / "shards", share=Share(1, 1), encoder=Prefixed(encoder))
    with pytest.raises(IndexMismatch, match="made with 'passage: ' before every passage, but the prefix in use is ''"):
        merge_shards([tmp_path / "shards"], indexes, name="merged", encoder=encoder)
    assert merge_shards([tmp_path / "shards"], indexes, name="merged", encoder=Prefixed(encoder)).embedded == 0


def test_a_document_in_two_shards_is_refused(corpus, indexes, encoder, tmp_path):
    out = tmp_path / "shards"
    embed_shard(["corpus"], out, share=Share(1, 2), encoder=encoder, is_split=True)
    os.unlink(corpus / "network.md")
    shutil.copy(corpus / "notes.txt", corpus / "other.txt")
    embed_shard(["corpus"], out, share=Share(2, 2), encoder=encoder, is_split=True)
    with pytest.raises(BadIndex, match=r"shards \d and \d both have the document 'corpus/notes.txt'"):
        merge_shards([out], indexes, name="merged", encoder=encoder)
