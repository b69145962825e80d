import os
import subprocess
import sys
import time

import pytest

from chatkit.errors import EngineFailed, InvalidRequest
from chatkit.evaluation.bare import BarePipeline
from chatkit.evaluation.bench import EngineBench, described, engine_figures, engine_ttft_s, served_settings
from chatkit.evaluation.processes import children, cpu_seconds
from chatkit.evaluation.served import ServedAnswer, ServedChatkit
from chatkit.settings import Settings


def row(clients, ratio, speed, ttft=0.0, delta=0.0, others=0.0):
    return {
        "clients": clients,
        "others_cores": others,
        "ratio_to_bare": ratio,
        "tokens_per_s": speed * ratio,
        "bare_tokens_per_s": speed,
        "engine_ttft_over_bare_ms": ttft,
        "first_delta_over_bare_window_ms": delta,
    }


def test_figures_are_medians_over_the_rounds_of_each_number_of_clients():
    rows = [row(1, 0.9, 100.0, 30, 5), row(1, 0.8, 110.0, 50, 7), row(1, 1.0, 90.0, 40, 6), row(8, 0.7, 200.0)]
    assert engine_figures(rows) == {
        "quiet_rounds@1": 3,
        "quiet_rounds@8": 1,
        "ratio_to_bare@1": 0.9,
        "ratio_to_bare_low@1": 0.8,
        "ratio_to_bare_high@1": 1.0,
        "tokens_per_s@1": 90.0,
        "bare_tokens_per_s@1": 100.0,
        "engine_ttft_over_bare_ms@1": 40,
        "first_delta_over_bare_window_ms@1": 6,
        "ratio_to_bare@8": 0.7,
        "ratio_to_bare_low@8": 0.7,
        "ratio_to_bare_high@8": 0.7,
        "tokens_per_s@8": 140.0,
        "bare_tokens_per_s@8": 200.0,
    }


def test_disturbed_rounds_count_only_where_there_are_no_others():
    rows = [row(8, 0.8, 200.0), row(8, 0.5, 100.0, others=0.9), row(16, 0.4, 90.0, others=0.5)]
    figures = engine_figures(rows)
    assert (figures["quiet_rounds@8"], figures["ratio_to_bare@8"]) == (1, 0.8)
    assert (figures["quiet_rounds@16"], figures["ratio_to_bare@16"]) == (0, 0.4)


def test_time_to_first_token_counts_what_lies_before_the_turn():
    def answer(headers_s):
        return ServedAnswer("", headers_s, 0.0, 0.0, 1, 1, {"accept": 0.0625, "first_token": 0.25})

    assert engine_ttft_s(answer(0.09375)) == 0.28125
    assert engine_ttft_s(answer(0.05)) == 0.25  # rounding must not make the client faster than the service


def test_a_bench_of_nothing_is_refused():
    with pytest.raises(InvalidRequest, match="clients is"):
        EngineBench(clients=(0,))
    with pytest.raises(InvalidRequest, match="rounds is 0"):
        EngineBench(rounds=0)


def test_a_side_that_does_not_start_says_so(tmp_path, models_dir):
    with pytest.raises(EngineFailed, match="bare pipeline ended"):
        BarePipeline(
            {"model": str(tmp_path), "device": "CPU", "threads": 0, "kv_cache_gb": 1}
            | {"max_running": 1, "prefix_cache": False}
        )
    with pytest.raises(EngineFailed, match=r"chatkit serve ended with code 2: error: .*policy"):
        ServedChatkit(tmp_path, {"models_dir": models_dir, "policy": "none such"})


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processor time is read from /proc")
def test_processor_time_is_that_of_the_process():
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert process.pid in children(os.getpid())
        until = time.monotonic() + 20
        while cpu_seconds(process.pid) < 0.1 and time.monotonic() < until:
            time.sleep(0.05)
        assert 0.1 <= cpu_seconds(process.pid) < 20
    finally:
        process.kill()
        process.wait()
    assert cpu_seconds(process.pid) == 0.0


def test_the_service_under_measurement_has_the_profile_and_the_precision_is_told_as_it_is_set():
    settings = Settings(profile="larger", precision="exact")
    assert {name: served_settings(settings)[name] for name in ("profile", "precision")} == {
        "profile": "larger",
        "precision": "exact",
    }
    told = described(settings, EngineBench())["precision"]
    assert told.startswith("weights as in the GGUF file, float32 throughout (precision exact)")
    assert "an eight-bit cache" in described(Settings(), EngineBench())["precision"]
