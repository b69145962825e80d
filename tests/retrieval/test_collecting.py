import numpy as np
import pytest

from chatkit.errors import BadIndex
from chatkit.retrieval.build import BuildOptions, build_index
from chatkit.retrieval.building import cache, collecting
from chatkit.retrieval.layout import IndexFolder


@pytest.fixture
def build(corpus, indexes, encoder):
    def run(text, **options):
        (corpus / "notes.txt").write_text(text)
        return build_index(["corpus"], indexes, name="docs", encoder=encoder, options=BuildOptions(**options))

    return run


def cached(indexes, encoder):
    with cache.VectorCache(cache.file_of(indexes / "docs", encoder.fingerprint), encoder.fingerprint, 384) as opened:
        return len(opened)


def test_old_versions_leftovers_and_spare_vectors_go(build, indexes, encoder):
    for number in range(4):
        build(f"Note number {number}.\n", keep=9)
    (indexes / "docs" / ".building-0123456789abcdef").mkdir()
    (indexes / "docs" / "cache" / "0123456789abcdef.vectors").write_bytes(bytes(1000))
    assert cached(indexes, encoder) == 4 + 4
    removed = collecting.collect(indexes, "docs", keep=1)
    assert (removed.versions, removed.kept) == (("000001", "000002"), ("000003", "000004"))
    assert (removed.vectors, removed.spare) == (4 + 2, 2)
    assert removed.bytes > 0
    assert cached(indexes, encoder) == 4 + 2
    names = sorted(entry.name for entry in (indexes / "docs").iterdir())
    assert names == [".lock", "000003", "000004", "cache", "current"]
    again = collecting.collect(indexes, "docs", keep=1)
    assert (again.versions, again.spare, again.bytes) == ((), 0, 0)


def test_what_is_kept_is_not_embedded_again_and_what_went_is(build, indexes):
    build("Note number 1.\n")
    build("Note number 2.\n")
    collecting.collect(indexes, "docs", keep=0)
    assert build("Note number 2.\n").up_to_date
    assert build("Note number 1.\n").embedded == 1


def test_a_newer_version_than_the_live_one_is_old_too(build, indexes):
    build("Note number 1.\n")
    build("Note number 2.\n")
    index = IndexFolder(indexes, "docs")
    with index.locked():
        index.make_live("000001")
    removed = collecting.collect(indexes, "docs", keep=1)
    assert (removed.versions, removed.kept) == (("000002",), ("000001",))


def test_the_rest_of_a_first_build_that_was_killed_can_be_removed(corpus, indexes, encoder):
    def stop(progress):
        if progress.stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(["corpus"], indexes, name="docs", encoder=encoder, progress=stop)
    removed = collecting.collect(indexes, "docs", keep=1)
    assert (removed.versions, removed.vectors) == ((), 0)
    assert removed.bytes > 0
    assert sorted(entry.name for entry in (indexes / "docs").iterdir()) == [".lock", "cache"]


def test_an_index_that_is_not_there_is_named(indexes):
    with pytest.raises(BadIndex, match="there is no index 'docs'"):
        collecting.collect(indexes, "docs", keep=1)


def test_a_build_takes_spare_vectors_out_when_they_are_many(build, indexes, encoder):
    build("Note number 0.\n")
    with cache.VectorCache(cache.file_of(indexes / "docs", encoder.fingerprint), encoder.fingerprint, 384) as opened:
        spare = np.random.default_rng(0).integers(0, 2**63, (40, 2)).astype(np.uint64)
        opened.append(spare, np.zeros((40, 384), dtype=np.float32))
    build("Note number 1.\n")
    assert cached(indexes, encoder) == 4 + 2


@pytest.mark.parametrize("damage", ["gone", "spoilt"])
def test_a_kept_version_that_is_damaged_keeps_its_vectors_and_the_rest_is_collected(
    build, indexes, encoder, damage, caplog
):
    for number in range(3):
        build(f"Note number {number}.\n", keep=9)
    file = indexes / "docs" / "000002" / "passages.parquet"
    file.write_bytes(bytes(file.stat().st_size))
    if damage == "gone":
        file.unlink()
    removed = collecting.collect(indexes, "docs", keep=1)
    assert (removed.versions, removed.vectors, removed.spare) == (("000001",), 0, 0)
    assert cached(indexes, encoder) == 4 + 3
    assert "no vector was taken out" in caplog.text
    collecting.collect(indexes, "docs", keep=0)
    assert cached(indexes, encoder) == 4 + 1
