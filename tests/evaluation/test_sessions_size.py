"""The benchmark of many sessions, run tiny: its figures are of what it says they are of."""

import json
import sqlite3
from contextlib import closing

import pytest


@pytest.fixture(scope="module")
def sessions_size(benchmark_script):
    return benchmark_script("sessions_size")


def test_it_prints_one_object_with_the_figures_it_is_asked_for(sessions_size, tmp_path, capsys):
    sessions_size.main(["--sessions", "40", "--turns", "3", "--measured", "60", "--home", str(tmp_path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"command", "version", "machine", "settings", "figures", "rows"}
    assert (report["command"], report["settings"]["sessions"], report["settings"]["turns"]) == ("sessions_size", 40, 3)
    assert [(row["side"], len(row["turn_ms"])) for row in report["rows"]] == [("full", 60), ("empty", 60)]
    figures = report["figures"]
    for verb in ("list", "list_middle", "page", "load"):
        assert figures[f"{verb}_p50_ratio"] == pytest.approx(
            figures[f"{verb}_p50_ms"] / figures[f"empty_{verb}_p50_ms"], rel=0.02
        )
    assert figures["turn_p99_ms"] >= figures["turn_p50_ms"] > 0
    assert figures["file_over_payload"] == pytest.approx(figures["file_bytes"] / figures["payload_bytes"], abs=0.001)
    assert figures["payload_bytes_per_turn"] == pytest.approx(figures["payload_bytes"] / 120, abs=0.1)
    assert list(tmp_path.iterdir()) == []


def test_the_file_it_fills_holds_the_payload_it_counts(sessions_size, tmp_path):
    file = tmp_path / "full.sqlite3"
    talk = sessions_size.fill(file, 30, 4)
    with closing(sqlite3.connect(file)) as connection:
        texts = connection.execute(
            "SELECT json_extract(body, '$.user') || json_extract(body, '$.assistant') FROM turns"
        )
        assert sum(len(text.encode()) for (text,) in texts) == talk.payload
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (120,)
        assert connection.execute("SELECT count(*) FROM sessions WHERE owner = 1").fetchone() == (15,)


def test_counts_below_one_are_refused(sessions_size, capsys):
    with pytest.raises(SystemExit):
        sessions_size.main(["--sessions", "0"])
    assert "expected 1 or more" in capsys.readouterr().err
