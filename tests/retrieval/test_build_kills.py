"""The measurement of killed builds, in short: it holds what it promises, and notices what breaks a promise."""

import importlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from chatkit.retrieval.layout import IndexFolder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ZERO = (
    *("unchanged_embedded", "rerun_embedded", "disturbed", "failed", "mixed", "untimely"),
    *("swap_failed", "swap_mixed", "begun_again_most", "embedded_again_most"),
)


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("build_kills")


@pytest.fixture
def short(kills, models_dir):
    return kills.Options(kills=5, seed=1, chunks=64, kept=16, swaps=8, batch=16, models=models_dir)


def test_kills_at_random_moments_cost_less_than_a_batch_and_disturb_nobody(kills, short, tmp_path):
    report = kills.measure(short, tmp_path)
    figures = report.figures
    assert kills.broken(figures) == [], (figures, report.rows)
    assert figures["kills"] >= 5
    assert figures["completed"] == figures["rounds"] >= 3
    assert figures["queries"] > 50
    assert figures["swap_queries"] > 10


def test_a_resume_that_lost_the_vectors_and_a_live_version_that_was_spoilt_are_noticed(kills, short, tmp_path):
    def spoil(folder):
        shutil.rmtree(folder / "cache")
        index = IndexFolder(folder.parent, folder.name)
        os.truncate(index.version_folder(index.current()) / "passages.parquet", 10)

    faulty = replace(short, kills=1, swaps=0, weights=(0, 0, 0, 0, 1), within=0.0, after_kill=spoil)
    figures = kills.measure(faulty, tmp_path).figures
    assert (figures["kills_in_write"], figures["begun_again_most"], figures["disturbed"]) == (1, 64, 1)
    assert figures["unchanged_embedded"] >= 16
    assert set(kills.broken(figures)) == {"unchanged_embedded", "disturbed", "begun_again_most"}


@pytest.mark.parametrize("name", ["completed", *ZERO])
def test_every_promise_that_is_broken_is_named(kills, name):
    good = dict.fromkeys(ZERO, 0) | {"rounds": 3, "completed": 3, "batch": 256}
    assert kills.broken(good) == []
    bad = good | {name: 2 if name == "completed" else 257}
    assert kills.broken(bad) == ["begun_again_most" if "again" in name else name]
