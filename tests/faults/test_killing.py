"""The killer itself: what is planted is found, and it ends well whatever happens to it and to what it kills."""

import asyncio
import tempfile
from pathlib import Path

import pytest

from chatkit import wiring
from chatkit.errors import ConfigError, EngineFailed, StoreFailed
from chatkit.evaluation import scripted, session_bench
from chatkit.evaluation.killing import Kill, KillBench
from chatkit.evaluation.session_bench import bench_kills
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.testing import turn_with
from chatkit.types import Owner
from tests import ministack
from tests.faults.killed import settings_for


@pytest.mark.parametrize("planted", ["early", "drops"])
def test_a_store_that_acknowledges_what_it_has_not_written_is_found_to_lose_turns(
    planted, request, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    verdict = bench_kills(
        settings_for("sqlite", request),
        KillBench(3, clients=4),
        said.append,
        program=("-m", "tests.faults.lossy_serve", planted),
    )
    assert verdict.report.figures["lost"] > 0
    assert len(verdict.wrong) >= verdict.report.figures["lost"]
    assert any(line.startswith("lost: turn ") for line in said)
    assert any(line.startswith("kept for a look at it: ") for line in said)


def test_a_file_that_is_found_damaged_is_a_broken_promise(request, tmp_path, monkeypatch) -> None:
    def harm(server, bench, ledger, prefix, progress):
        (file,) = tmp_path.glob("chatkit-bench-*/sessions.sqlite3")
        store = SQLiteStore(file)
        turns = [turn_with(seq, "Hello", "Hi.") for seq in (1, 2)]
        asyncio.run(store.restore(Owner(), "somebody-elses", turns, expires_at=None))
        store._write.execute("UPDATE turns SET body = '{' WHERE seq = 2")
        store.close()
        return [Kill(0.1, 0, 0)], []

    monkeypatch.setattr(session_bench, "kill_again_and_again", harm)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    verdict = session_bench.bench_kills(settings_for("sqlite", request), KillBench(1), lambda line: None)
    (wrong,) = verdict.wrong
    assert wrong.startswith("damaged: turn 2 of session 'somebody-elses'")
    assert verdict.report.figures["damaged"] == 1


class Stopping:
    """Hears what is said, and stops it once, as Ctrl-C does, at the first line that says so."""

    def __init__(self, at: str, then=lambda: None) -> None:
        self._at, self._then, self.said = at, then, []

    def __call__(self, line: str) -> None:
        self.said.append(line)
        if self._at and self._at in line:
            self._at = ""
            self._then()
            raise KeyboardInterrupt


def test_what_was_written_to_a_table_is_removed_when_it_is_interrupted_and_the_log_is_kept(
    request, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = settings_for("dynamodb", request)

    def written() -> bool:
        return "bench-" in ministack.everything_in(settings.dynamodb_endpoint, settings.dynamodb_table)

    before: list[bool] = []
    stopping = Stopping("1 of 10 kills", lambda: before.append(written()))
    with pytest.raises(KeyboardInterrupt):
        bench_kills(settings, KillBench(10, clients=4), stopping)
    assert (before, written()) == ([True], False)
    (kept,) = [line for line in stopping.said if line.startswith("kept for a look at it: ")]
    assert (Path(kept.partition(": ")[2]) / "serve.log").exists()


def test_what_cannot_be_removed_when_it_is_interrupted_is_named(request, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = settings_for("dynamodb", request)

    def fail(settings):
        raise StoreFailed("the table does not answer")

    stopping = Stopping("1 of 10 kills", lambda: monkeypatch.setattr(wiring, "open_store", fail))
    with pytest.raises(KeyboardInterrupt):
        bench_kills(settings, KillBench(10, clients=2), stopping)
    (left,) = [line for line in stopping.said if line.startswith("left in the table ")]
    assert left.startswith(f"left in the table '{settings.dynamodb_table}': sessions of requests bench-")
    assert left.endswith("-…, for the table does not answer")


def test_a_server_that_does_not_come_up_is_named_with_its_last_words(request, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dying = ("-m", "tests.faults.lossy_serve", "dies")
    with pytest.raises(EngineFailed, match="the planted end"):
        bench_kills(settings_for("sqlite", request), KillBench(1), lambda line: None, program=dying)


def test_a_server_that_ends_by_itself_is_no_kill(tmp_path) -> None:
    told = "import os, sys; sys.stdin.readline(); print('ready', os.getpid(), '1\\nended 0', flush=True)"
    server = scripted.ScriptedServer(tmp_path, {}, program=("-c", f"{told}; sys.stdin.readline()"))
    try:
        assert server.start() == ("127.0.0.1", 1)
        with pytest.raises(EngineFailed, match="it had ended 0 before it was killed"):
            server.kill()
    finally:
        server.close()


def test_a_store_that_ends_with_its_process_is_not_measured(request) -> None:
    with pytest.raises(ConfigError, match="use sqlite or dynamodb"):
        bench_kills(settings_for("memory", request), KillBench(1), lambda line: None)


def test_the_server_ends_with_whoever_started_it(tmp_path) -> None:
    """Its standard input ends when the killer dies, however that dies."""
    settings = {"store": "sqlite", "home": str(tmp_path)}
    server = scripted.ScriptedServer(tmp_path, settings)
    try:
        server.start()
        server._process.stdin.close()
        assert server._process.wait(30) == 0
        assert server._line() == ["ended", "0"]
        server._pid = None
    finally:
        server.close()
