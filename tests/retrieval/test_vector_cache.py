import os

import numpy as np
import pytest

from chatkit.retrieval.building import cache
from chatkit.retrieval.building.cache import VectorCache
from chatkit.retrieval.building.keys import KeyTable, text_keys


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cache" / "one.vectors"


def some(count, first=0):
    keys = text_keys([f"text {number}" for number in range(first, first + count)])
    return keys, np.random.default_rng(first).random((count, 8), dtype=np.float32)


def filled(file, blocks=4, count=50):
    made = [some(count, number * count) for number in range(blocks)]
    with VectorCache(file, "encoder", 8) as opened:
        for keys, vectors in made:
            opened.append(keys, vectors)
    return np.concatenate([keys for keys, _ in made]), np.concatenate([vectors for _, vectors in made])


def test_a_table_gives_the_first_number_of_every_key_and_minus_one_for_others():
    table = KeyTable()
    keys = text_keys([f"text {number}" for number in range(20_000)])
    for start in range(0, len(keys), 333):
        part = keys[start : start + 333]
        assert (table.add(part, np.arange(start, start + len(part))) == np.arange(start, start + len(part))).all()
    assert len(table) == 20_000
    assert (table.find(keys) == np.arange(20_000)).all()
    assert (table.find(text_keys(["other", "another"])) == -1).all()
    twice = text_keys(["new", "text 7", "new", "new"])
    assert table.add(twice, np.array([1, 2, 3, 4])).tolist() == [1, 7, 1, 1]


def test_what_was_appended_is_read_back_in_any_order_after_opening_again(file):
    keys, vectors = filled(file)
    with VectorCache(file, "encoder", 8) as opened:
        assert len(opened) == 200
        order = np.random.default_rng(1).permutation(200)
        assert (opened.vectors(opened.find(keys[order])) == vectors[order]).all()


def test_a_block_that_was_half_written_is_cut_off_and_the_rest_is_good(file):
    keys, vectors = filled(file)
    whole = file.stat().st_size
    for lost in (1, 700, 1600, 1625):
        os.truncate(file, whole - lost)
        with VectorCache(file, "encoder", 8) as opened:
            assert len(opened) == 150
            opened.append(keys[150:], vectors[150:])
        assert file.stat().st_size == whole
    with VectorCache(file, "encoder", 8) as opened:
        assert (opened.vectors(opened.find(keys)) == vectors).all()


@pytest.mark.parametrize("place", [80, 800, 1600, 49, 52, 60])
def test_a_damaged_block_is_passed_over(file, place):
    keys, vectors = filled(file)
    content = bytearray(file.read_bytes())
    content[place] ^= 0x40
    file.write_bytes(content)
    with VectorCache(file, "encoder", 8) as opened:
        records = opened.find(keys)
        assert (records[:50] == -1).all()
        assert (records[50:] >= 0).all()
        assert (opened.vectors(records[50:]) == vectors[50:]).all()
        opened.append(keys[:50], vectors[:50])
    with VectorCache(file, "encoder", 8) as opened:
        assert (opened.vectors(opened.find(keys)) == vectors).all()


@pytest.mark.parametrize(("fingerprint", "dim"), [("another", 8), ("encoder", 4)])
def test_the_cache_of_another_encoder_is_begun_anew(file, fingerprint, dim):
    filled(file)
    with VectorCache(file, fingerprint, dim) as opened:
        assert len(opened) == 0


def test_a_full_disk_leaves_what_was_there(file, monkeypatch):
    keys, vectors = filled(file)
    more, others = some(50, 500)
    with VectorCache(file, "encoder", 8) as opened:
        real = os.pwrite

        def half(handle, content, offset):
            real(handle, content[: len(content) // 2], offset)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", half)
            with pytest.raises(OSError, match="No space left"):
                opened.append(more, others)
        assert (opened.vectors(opened.find(keys)) == vectors).all()
        opened.append(more, others)
        assert (opened.vectors(opened.find(more)) == others).all()


def test_trimming_keeps_the_wanted_vectors_and_no_other(file):
    keys, vectors = filled(file)
    wanted = KeyTable()
    wanted.add(keys[::7], np.zeros(len(keys[::7]), dtype=np.int64))
    before = file.stat().st_size
    assert cache.trim(file, "encoder", 8, wanted) == (29, 171)
    assert cache.trim(file, "encoder", 8, wanted) == (29, 0)
    assert file.stat().st_size < before / 4
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    with VectorCache(file, "encoder", 8) as opened:
        assert len(opened) == 29
        assert (opened.vectors(opened.find(keys[::7])) == vectors[::7]).all()
