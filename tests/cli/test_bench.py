import json
import shutil

import pytest

from chatkit import cli
from chatkit.evaluation import session_bench
from chatkit.evaluation.ledger import Findings


def test_the_whole_measurement_runs_and_prints_its_named_figures(capsys):
    small = ["--clients", "1,2", "--prompt-tokens", "60", "--new-tokens", "8", "--rounds", "1"]
    cli.main(["bench", "engine", *small, "--json"])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["command"] == "bench engine"
    assert set(report["figures"]) >= {
        *("ratio_to_bare@1", "tokens_per_s@1", "bare_tokens_per_s@1", "ratio_to_bare@2", "tokens_per_s@2"),
        *("engine_ttft_over_bare_ms@1", "first_delta_over_bare_window_ms@1"),
    }
    assert report["settings"]["prompt_tokens"] == 60
    assert report["settings"]["gate"] == "check_first"
    alone = report["rows"][0]
    assert alone["turns"] == 6
    assert alone["tokens"] == alone["bare_tokens"] <= 6 * 8
    assert alone["same_answers"] == 1.0
    assert alone["bare_ttft_ms"] > 0
    assert alone["others_cores"] >= 0
    assert "1 clients, round 1" in captured.err


def test_clients_that_are_no_numbers_are_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "engine", "--clients", "1,many"])
    assert exit_.value.code == 2
    assert "--clients is '1,many', expected numbers with commas" in capsys.readouterr().err


def test_races_print_their_figures_and_end_well_where_every_promise_is_kept(capsys):
    cli.main(["bench", "sessions", "--races", "2", "--writers", "2", "--turns", "5", "--store", "sqlite", "--json"])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["command"] == "bench sessions"
    assert report["figures"].pop("hand_overs") > 0
    assert report["figures"] == {
        **{"runs": 2, "runs_right": 2, "stored": 50, "acknowledged": 50},
        **dict.fromkeys(("lost", "duplicated", "holes", "reordered", "unknown"), 0),
    }
    assert report["settings"]["store"] == "sqlite"
    assert [row["run"] for row in report["rows"]] == [1, 2]
    assert "run 2 of 2: 25 acknowledged, 25 stored" in captured.err
    cli.main(["bench", "sessions", "--races", "1", "--turns", "3", "--store", "memory"])
    table = capsys.readouterr().out.splitlines()
    assert ["runs_right", "1"] in [line.split() for line in table]
    assert ["store", "memory"] in [line.split() for line in table]


def test_a_broken_promise_is_shown_and_ends_with_1(capsys, monkeypatch):
    broken = Findings(lost=["turn 2 of bench-session by request bench-1"])
    monkeypatch.setattr(session_bench, "compare", lambda ledger, stored: broken)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "sessions", "--races", "1", "--turns", "2", "--store", "memory", "--json"])
    captured = capsys.readouterr()
    assert exit_.value.code == 1
    assert json.loads(captured.out)["figures"]["lost"] == 1
    assert json.loads(captured.out)["figures"]["runs_right"] == 0
    assert "lost: turn 2 of bench-session by request bench-1" in captured.err
    last = captured.err.splitlines()[-1]
    assert last == "error: the store does not hold what was acknowledged: 1 finding, see above"
    (kept,) = [line for line in captured.err.splitlines() if line.startswith("kept for a look at it: ")]
    shutil.rmtree(kept.partition(": ")[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--kills is 0 and --races 0, expected one of them to be at least 1"),
        (["--kills", "1", "--races", "1"], "--kills is 1 and --races 1, expected one of them"),
        (["--kills", "1", "--clients", "0"], "kills is 1 and clients 0, expected at least 1, and 1 to 64"),
        (["--kills", "1", "--latest", "0"], "latest is 0.0, expected 0.05 to 60 seconds"),
        (["--races", "1", "--turns", "0"], "expected numbers of at least 1"),
        (["--kills", "1", "--store", "memory"], "store is 'memory', which no killed process leaves anything of"),
    ],
)
def test_a_measurement_of_sessions_that_cannot_be_is_wrong_usage(capsys, arguments, said):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "sessions", *arguments])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("what", ["--kills", "--races"])
def test_a_table_or_a_server_that_is_not_there_is_said_before_anything_starts(capsys, dynamodb, what):
    here = ["bench", "sessions", what, "1", "--store", "dynamodb", "--dynamodb-table", "not-there"]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*here, "--dynamodb-endpoint", dynamodb])
    assert exit_.value.code == 2
    assert "'not-there' does not exist; run: chatkit sessions create-table" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        cli.main([*here, "--dynamodb-endpoint", "http://127.0.0.1:9"])
    assert exit_.value.code == 4
    assert "at http://127.0.0.1:9 is out of reach" in capsys.readouterr().err
