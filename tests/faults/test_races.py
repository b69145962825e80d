"""Writers of two processes at once on one session: every number once, and stored is what was acknowledged."""

import tempfile

import pytest

from chatkit.errors import InvalidRequest, StoreFailed, Unavailable
from chatkit.evaluation.races import RaceBench
from chatkit.evaluation.session_bench import bench_races
from chatkit.settings import load_settings
from tests import ministack

PROMISES = ("lost", "duplicated", "holes", "reordered", "unknown")


@pytest.mark.parametrize("store", ["sqlite", "dynamodb", "memory"])
def test_six_writers_of_two_processes_number_one_session_without_holes_and_repeats_get_one_turn(store, request) -> None:
    flags = {"store": store}
    if store == "dynamodb":
        address = request.getfixturevalue("dynamodb")
        flags |= {"dynamodb_endpoint": address, "dynamodb_table": ministack.new_table(address)}
    said: list[str] = []
    bench = RaceBench()
    verdict = bench_races(load_settings(flags), bench, said.append)
    figures = verdict.report.figures
    turns = 6 * bench.turns + bench.shared
    assert verdict.wrong == ()
    assert (figures["runs"], figures["runs_right"]) == (1, 1)
    assert figures["stored"] == figures["acknowledged"] == turns
    assert {name: figures[name] for name in PROMISES} == dict.fromkeys(PROMISES, 0)
    assert figures["hand_overs"] > 1  # else one process wrote after the other
    assert said == [f"run 1 of 1: {turns} acknowledged, {turns} stored"]


def test_a_table_holds_nothing_of_a_race_that_breaks_off(request, tmp_path, monkeypatch) -> None:
    address = request.getfixturevalue("dynamodb")
    table = ministack.new_table(address)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken(ledger, stored):
        assert f"{ledger.sessions()[0]}" in ministack.everything_in(address, table)
        raise StoreFailed("the store does not answer")

    monkeypatch.setattr("chatkit.evaluation.session_bench.compare", broken)
    flags = {"store": "dynamodb", "dynamodb_endpoint": address, "dynamodb_table": table}
    with pytest.raises(StoreFailed, match="the store does not answer"):
        bench_races(load_settings(flags), RaceBench(writers=1, turns=2), lambda line: None)
    assert "bench-" not in ministack.everything_in(address, table)


def test_a_process_of_writers_that_fails_is_named_with_its_last_words(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("chatkit.evaluation.races._PROGRAM", ("-c", "raise SystemExit('no such thing')"))
    with pytest.raises(Unavailable, match="ended with code 1: no such thing"):
        bench_races(load_settings(), RaceBench(), lambda line: None)


def test_a_race_without_turns_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="expected numbers of at least 1"):
        RaceBench(turns=0)
