"""Converting a GGUF file: once, atomically, by one process; what cannot be used is named in one line."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from chatkit.errors import BrokenModel, ModelError
from chatkit.models import gguf, sources
from chatkit.models.decoding import load_tokenizer
from tests.models import tiny_gguf


@pytest.fixture(scope="module")
def real(models_dir):
    return sources.resolve("default", models_dir=models_dir, role="chat")


@pytest.fixture
def cut(real, tmp_path):
    """The default model, cut in the middle of its weights."""
    file = tmp_path / "cut.gguf"
    with real.open("rb") as whole, file.open("wb") as part:
        part.write(whole.read(40_000_000))
    return file


def one_line(error: Exception) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_a_file_that_is_missing_is_named_with_the_command_that_fetches_it(tmp_path) -> None:
    with pytest.raises(BrokenModel, match="chatkit models pull") as caught:
        gguf.converted(tmp_path / "none.gguf", cache=tmp_path / "cache")
    assert "none.gguf" in one_line(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\3\4 a zip file", b"<!DOCTYPE html>"])
def test_a_file_that_is_no_gguf_is_named_with_what_it_begins_with(tmp_path, content) -> None:
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    with pytest.raises(BrokenModel, match="it is no GGUF file") as caught:
        gguf.converted(file, cache=tmp_path / "cache")
    assert repr(content[:4]) in one_line(caught.value)


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + b"\x03\0\0\0" + b"\xff" * 200])
def test_a_damaged_header_is_a_broken_model(tmp_path, content) -> None:
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    with pytest.raises(BrokenModel) as caught:
        gguf.converted(file, cache=tmp_path / "cache")
    assert "odd.gguf" in one_line(caught.value)


def test_a_truncated_file_is_a_broken_model_and_leaves_nothing_behind(cut, tmp_path) -> None:
    with pytest.raises(BrokenModel, match=r"cut\.gguf") as caught:
        gguf.converted(cut, cache=tmp_path / "cache")
    assert "--force" in one_line(caught.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".convert.lock"]


def test_without_room_nothing_is_begun(real, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(ModelError, match="1 MiB are free; free some, or move the model cache"):
        gguf.converted(real, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".convert.lock"]


def test_two_processes_make_one_conversion_and_later_opens_take_it(real, tmp_path) -> None:
    cache = tmp_path / "cache"
    (cache / ".converting-left").mkdir(parents=True)
    script = (
        "import sys, chatkit.models.gguf as gguf\nfrom pathlib import Path\nreal = gguf._convert\n"
        "def counted(*a):\n    print('converted', flush=True)\n    return real(*a)\ngguf._convert = counted\n"
        "print(gguf.converted(Path(sys.argv[1]), cache=Path(sys.argv[2]))[1].name)"
    )
    command = [sys.executable, "-c", script, str(real), str(cache)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert sum(out.count("converted") for out, _ in outputs) == 1
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert not (folders[0] / "source.gguf").exists()

    folder, facts = gguf.converted(real, cache=cache)
    assert folder == folders[0]
    assert (facts.architecture, facts.context_window, facts.eos_token) == ("llama", 8192, "<|im_end|>")
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(facts.special_tokens)

    table = json.loads((folder / gguf.FACTS).read_text())
    assert gguf._read_facts(folder) == facts
    weights = folder / "openvino_model.bin"
    with weights.open("r+b") as stream:  # a conversion whose files were changed is made anew
        stream.truncate(table["files"][weights.name] - 1)
    assert gguf._read_facts(folder) is None


def test_every_token_that_the_file_says_ends_a_reply_does(tmp_path) -> None:
    ends = {"eos": "<|endoftext|>", "eot": "<|im_end|>", "eom": "<|im_start|>"}
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", ends=ends)
    folder, facts = gguf.converted(file, cache=tmp_path / "cache")
    tokenizer = load_tokenizer(folder)
    assert facts.eos_ids == tuple(map(tokenizer.token_to_id, ends.values()))
    assert gguf.converted(file, cache=tmp_path / "cache")[1] == facts


def test_a_file_in_which_nothing_ends_a_reply_is_a_broken_model(tmp_path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", ends={})
    with pytest.raises(
        BrokenModel, match=r"names no token that ends a reply \(tokenizer\.ggml\.eos_token_id\)"
    ) as caught:
        gguf.converted(file, cache=tmp_path / "cache")
    assert str(file) in one_line(caught.value)
