"""The same index from one process, from shards and on Ray."""

import asyncio
import json
import random
import shutil
from functools import partial

import numpy as np
import pytest

from chatkit.errors import BadIndex, BrokenIndex, IndexMismatch, InvalidRequest
from chatkit.retrieval.build import BuildOptions, build_index, merge_shards
from chatkit.retrieval.building import shards
from chatkit.retrieval.building.cutting import Share
from chatkit.retrieval.building.on_ray import OnRay
from chatkit.retrieval.building.sharding import embed_shard
from chatkit.retrieval.encoder import open_encoder
from chatkit.retrieval.index import VectorIndex
from chatkit.retrieval.manifest import Manifest
from chatkit.retrieval.passages import read_table
from chatkit.retrieval.vectors import Vectors

QUESTIONS = ["Which port does the service listen on?", "How are backups made?", "Which shelf has the blue boxes?"]


@pytest.fixture
def library(corpus):
    """More files than the corpus has, some the same, some nearly, one of many records, one that cannot be read."""
    words = ("blue", "red", "green", "grey", "brown", "white", "black", "round", "square", "long", "short")
    for number in range(36):
        named = " ".join(random.Random(number % 30).choices(words, k=60))
        (corpus / f"shelf-{number % 30:02d}-{number}.md").write_text(
            f"# Shelf {number % 30}\n\n## Boxes\n\nThe boxes are {named}.\n\n## Lamps\n\nEach has a lamp.\n"
        )
    (corpus / "near.md").write_text((corpus / "shelf-03-3.md").read_text().replace("Each has", "Each also has"))
    (corpus / "rows.jsonl").write_text(
        "".join(f'{{"text": "Row {row} is of the {row}th file."}}\n' for row in range(9))
    )
    (corpus / "bad.txt").write_bytes(b"\xff\xfd")
    return corpus


@pytest.fixture
def whole(library, indexes, encoder):
    return build_index(["corpus"], indexes, name="docs", encoder=encoder)


def hits(indexes, name, encoder):
    index = VectorIndex.open(indexes / name, encoder, min_score=0.0)
    try:
        return [asyncio.run(index.search(question, k=5)) for question in QUESTIONS]
    finally:
        index.close()


def assert_same(one, other, indexes, encoder):
    assert (other.documents, other.passages) == (one.documents, one.passages)
    assert (other.duplicates, other.near_duplicates, other.skipped) == (
        one.duplicates,
        one.near_duplicates,
        one.skipped,
    )
    assert read_table(one.folder).equals(read_table(other.folder))
    manifests = [Manifest.read(report.folder) for report in (one, other)]
    assert manifests[0].sources_sha256 == manifests[1].sources_sha256
    assert manifests[0].fusion == manifests[1].fusion
    rows = np.arange(one.passages)
    first, second = (Vectors.open(report.folder, made) for report, made in zip((one, other), manifests, strict=True))
    assert ((first.of(rows) * second.of(rows)).sum(axis=1) >= 0.9999).all()
    for mine, theirs in zip(hits(indexes, one.name, encoder), hits(indexes, other.name, encoder), strict=True):
        assert [hit.id for hit in mine] == [hit.id for hit in theirs]
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in theirs], abs=1e-4)


def make_shards(out, encoder, of, **options):
    return [embed_shard(["corpus"], out, share=Share(n, of), encoder=encoder, **options) for n in range(1, of + 1)]


@pytest.mark.parametrize("of", [1, 2, 5])
def test_shards_that_are_merged_are_the_index_of_one_process(whole, indexes, encoder, tmp_path, of):
    assert (whole.duplicates, whole.near_duplicates, len(whole.skipped)) == (13, 1, 1)
    reports = make_shards(tmp_path / "shards", encoder, of)
    assert sum(report.passages for report in reports) >= whole.passages
    assert all(report.passages for report in reports)
    merged = merge_shards([tmp_path / "shards"], indexes, name="merged", encoder=encoder)
    assert merged.embedded == 0
    assert_same(whole, merged, indexes, encoder)
    assert build_index(["corpus"], indexes, name="merged", encoder=encoder).up_to_date


def test_sources_that_came_split_make_the_same_index(whole, library, indexes, encoder, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    for number in (1, 2):
        part = tmp_path / f"machine-{number}" / "corpus"
        part.mkdir(parents=True)
        for place, file in enumerate(sorted(library.iterdir())):
            if place % 2 == number - 1:
                shutil.copy(file, part)
        monkeypatch.chdir(part.parent)
        embed_shard(["corpus"], out, share=Share(number, 2), encoder=encoder, is_split=True)
    merged = merge_shards([out], indexes, name="merged", encoder=encoder)
    assert_same(whole, merged, indexes, encoder)


def test_a_shard_is_plain_files_and_nothing_else_is_left(library, encoder, tmp_path):
    report = make_shards(tmp_path / "shards", encoder, 1)[0]
    assert [entry.name for entry in (tmp_path / "shards").iterdir()] == ["shard-0001-of-0001"]
    assert sorted(entry.name for entry in report.folder.iterdir()) == [
        "chunks.parquet",
        "shard.json",
        "sources.parquet",
    ]
    table = json.loads((report.folder / "shard.json").read_text())
    assert (table["number"], table["of"], table["counts"]["passages"]) == (1, 1, report.passages)
    assert table["plan"]["encoder"]["fingerprint"] == encoder.fingerprint


def test_an_interrupted_shard_goes_on(library, encoder, tmp_path):
    def stop(progress):
        if progress.stage == "embed":
            raise KeyboardInterrupt

    options = BuildOptions(batch=16)
    with pytest.raises(KeyboardInterrupt):
        make_shards(tmp_path / "shards", encoder, 1, progress=stop, options=options)
    report = make_shards(tmp_path / "shards", encoder, 1, options=options)[0]
    assert report.embedded == report.passages - 16


def test_shards_that_do_not_belong_together_are_refused(library, indexes, encoder, tmp_path):
    out = tmp_path / "shards"
    with pytest.raises(BadIndex, match="there is no shard in"):
        merge_shards([tmp_path], indexes, name="merged", encoder=encoder)
    make_shards(out, encoder, 2)
    first = shards.folder_of(out, Share(1, 2))
    with pytest.raises(BadIndex, match=r"of 2 shards is missing \[2\]"):
        merge_shards([first], indexes, name="merged", encoder=encoder)
    shutil.copytree(first, tmp_path / "copy" / first.name)
    with pytest.raises(BadIndex, match=r"has \[1\] more than once"):
        merge_shards([out, tmp_path / "copy"], indexes, name="merged", encoder=encoder)
    embed_shard(
        ["corpus"], out, share=Share(1, 2), encoder=encoder, options=BuildOptions().with_chunking({"max_tokens": 64})
    )
    with pytest.raises(BadIndex, match="are not of one index"):
        merge_shards([out], indexes, name="merged", encoder=encoder)
    file = first / "shard.json"
    file.write_text(file.read_text().replace(encoder.fingerprint, "another"))
    with pytest.raises(IndexMismatch, match="made with the encoder 'another'"):
        merge_shards([make_alone(tmp_path, file)], indexes, name="merged", encoder=encoder)
    (first / "chunks.parquet").write_bytes(b"PAR1")
    with pytest.raises(BrokenIndex, match=r"chunks\.parquet' was changed"):
        merge_shards([first], indexes, name="merged", encoder=encoder)
    assert not (indexes / "merged" / "current").exists()


def make_alone(tmp_path, file):
    """Return a copy of a shard that says that it is the only one."""
    shutil.copytree(file.parent, tmp_path / "alone" / "shard-0001-of-0001")
    copy = tmp_path / "alone" / "shard-0001-of-0001" / "shard.json"
    copy.write_text(json.dumps(json.loads(file.read_text()) | {"number": 1, "of": 1}))
    return copy.parent


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/3/5", ""])
def test_a_share_is_a_number_and_how_many_there_are(text):
    with pytest.raises(InvalidRequest, match="expected its number and how many there are"):
        shards.share_of(text)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray deprecates what it uses itself
def test_two_workers_of_ray_make_the_same_index(whole, indexes, encoder, encoder_folder, encoder_cache):
    pytest.importorskip("ray")
    opened = partial(open_encoder, encoder_folder, cache=encoder_cache, threads=1)
    made = build_index(
        ["corpus"],
        indexes,
        name="ray",
        encoder=encoder,
        embedding=OnRay(opened, workers=2, cpus=0.5),
        options=BuildOptions(batch=16),
    )
    assert made.embedded == made.passages
    assert_same(whole, made, indexes, encoder)
