"""`chatkit serve` as a process: the port, the signals, and what the end leaves behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from chatkit.errors import ConfigError
from chatkit.server import run
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.settings import Settings
from chatkit.types import Owner
from tests.serving import Served


def test_a_busy_port_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "chatkit", "serve", "--port", str(port)],
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port} (")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("host", ["256.1.1.1", "8.8.8.8", "no.such.host.invalid"])
def test_an_address_that_is_not_this_machines_is_named(host) -> None:
    with pytest.raises(ConfigError, match="cannot listen on") as caught:
        run.bind(Settings(host=host, port=0, api_key="key"))
    assert "\n" not in str(caught.value)


def test_a_free_port_is_bound_before_anything_is_loaded() -> None:
    with run.bind(Settings(port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert listener.getsockname()[1] > 0


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def turns_in(home, *sessions) -> list:
    store = SQLiteStore(home / "sessions.sqlite3")

    async def load() -> list:
        return [(await store.load(Owner(), session, limit=9)).turns for session in sessions]

    try:
        return asyncio.run(load())
    finally:
        store.close()


def test_a_signal_under_load_lets_turns_end_stores_every_one_and_exits_with_0(home, models_dir) -> None:
    served = Served(home, models_dir, "--index", "", "--threads", "1").start()
    answers, base = {}, served.client.base_url
    together = threading.Barrier(5)  # on a busy machine a thread may be late to its first line

    def ask(number: int) -> None:
        parameters = {"session_id": f"session-{number}", "request_id": f"request-{number}", "max_new_tokens": 40}
        body = {"inputs": f"Tell me about the number {number}.", "stream": number % 2 == 0, "parameters": parameters}
        with httpx.Client(base_url=base, timeout=60) as client:
            client.get("/ping")
            together.wait(30)
            answers[number] = client.post("/invocations", json=body)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    together.wait(30)
    # A client that gives up on a request it can ask for again: its turn must be stored too.
    with pytest.raises(httpx.TimeoutException):
        served.client.post(
            "/invocations",
            json={"inputs": "Go on.", "parameters": {"session_id": "session-9", "request_id": "request-9"}},
            timeout=1.0,
        )
    assert served.stop() == 0
    for thread in threads:
        thread.join(10)
    assert {number: answer.status_code for number, answer in answers.items()} == dict.fromkeys(range(4), 200)
    assert all('"done"' in answer.text for number, answer in answers.items() if number % 2 == 0)
    stored = turns_in(home, *(f"session-{number}" for number in range(4)))
    assert [[turn.status for turn in turns] for turns in stored] == [["complete"]] * 4
    for number in (1, 3):
        assert stored[number][0].assistant == answers[number].json()["outputs"]
    ((left,),) = turns_in(home, "session-9")
    assert left.status in ("complete", "aborted")
    assert "Traceback" not in served.log


def test_a_signal_while_loading_ends_the_process_in_good_order(home, models_dir) -> None:
    environment = {**os.environ, "CHATKIT_HOME": str(home), "CHATKIT_INDEX": "", "CHATKIT_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "chatkit", "serve"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert "loading the models" in process.stderr.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), log
    assert "Traceback" not in log


def test_a_model_that_is_not_there_ends_serve_with_one_line(home, tmp_path) -> None:
    environment = {**os.environ, "CHATKIT_HOME": str(home), "CHATKIT_MODELS_DIR": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "chatkit", "serve", "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "chatkit models pull" in last
    assert "Traceback" not in done.stderr
