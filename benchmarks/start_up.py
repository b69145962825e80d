"""Start-up: the bare pipeline's load against `chatkit serve` until it answers and `chatkit ask` until it has answered.

    python benchmarks/start_up.py [--rounds 5] [--json]

Everything is warm: models pulled and converted, files in the page cache, a first round of each thrown away. The rounds
take turns, so that what else the machine does falls on all alike. Run it from the root of a checkout.
"""

import argparse
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from chatkit.evaluation.bare import BarePipeline
from chatkit.evaluation.bench import engine_options
from chatkit.evaluation.report import Report, Spread
from chatkit.evaluation.workload import PromptFrame
from chatkit.settings import ENV_PREFIX, load_settings

QUESTION = "Which port does the service listen on?"


def bare_load(engine: dict[str, object]) -> tuple[float, float]:
    """Return the seconds of loading alone, and with the start of the process and its imports."""
    began = time.perf_counter()
    pipeline = BarePipeline(engine)
    with_process = time.perf_counter() - began
    pipeline.close()
    return pipeline.load_s, with_process


def serve_until_ping(environ: Mapping[str, str]) -> float:
    """Return the seconds from the start of `chatkit serve` to the first `GET /ping` that answers 200."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, "-m", "chatkit", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            if _pinged(port):
                return time.perf_counter() - began
            time.sleep(0.01)
        raise SystemExit(f"chatkit serve ended: {process.communicate()[1].strip()}")
    finally:
        process.terminate()
        process.communicate()


def _pinged(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False  # not listening yet
    finally:
        connection.close()


def ask(environ: Mapping[str, str]) -> float:
    """Return the wall time of a whole `chatkit ask`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "chatkit", "ask", QUESTION], env=environ, check=True, capture_output=True)
    return time.perf_counter() - began


def measure(rounds: int) -> Report:
    """Take turns, once unmeasured and then `rounds` times."""
    settings = load_settings()
    frame = PromptFrame(settings)
    engine = engine_options(settings, frame)
    rows = []
    with tempfile.TemporaryDirectory(prefix="chatkit-bench-") as home:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        environ |= {ENV_PREFIX + "HOME": home, ENV_PREFIX + "MODELS_DIR": str(settings.models)}
        prepare = [sys.executable, "-m", "chatkit", "prepare-index", "--recipe", "docs"]
        subprocess.run(prepare, env=environ, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
        for number in range(rounds + 1):
            load, with_process = bare_load(engine)
            row = {"bare_load_s": load, "bare_process_s": with_process}
            row |= {"serve_s": serve_until_ping(environ), "ask_s": ask(environ)}
            print(f"round {number}: {row}", file=sys.stderr)
            if number:
                rows.append(row)
    figures = {name: round(Spread.of([row[name] for row in rows]).median, 3) for name in rows[0]}
    for name in ("serve_s", "ask_s"):
        figures[f"{name.removesuffix('_s')}_over_bare_load_s"] = round(figures[name] - figures["bare_load_s"], 3)
        figures[f"{name.removesuffix('_s')}_over_bare_process_s"] = round(figures[name] - figures["bare_process_s"], 3)
    return Report("start_up", {"rounds": rounds, "question": QUESTION, "index": "docs", "warm": True}, figures, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure how long chatkit takes to start.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = measure(arguments.rounds)
    print(report.as_json() if arguments.json else report.as_table())
