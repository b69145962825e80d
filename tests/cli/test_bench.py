import json

import pytest

from chatkit import cli


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
