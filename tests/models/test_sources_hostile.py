"""Hubs, tokens and names that are hostile or odd: one line of the tree's own, nothing written, no secret shown."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from chatkit.errors import ModelError
from chatkit.models import modelscope, sources, transfer
from tests.models.loopback import COMMIT, FILES, NAME, LoopbackAnswer, LoopbackHub

GOOD = {"rfilename": "model.safetensors", "size": 10, "blobId": "b" * 40}


class _Answer(LoopbackAnswer):
    def answer(self, path: str, query: str) -> None:
        hub = self.server
        if path.startswith("/api/"):
            self.send(200, hub.listing, hub.headers)
        elif hub.to:
            self.send(302, b"", {"Location": hub.to})
        else:
            self.file(hub.files.get(path.partition(f"{COMMIT}/")[2], b""))


class Hub(LoopbackHub):
    """A hub whose listing is any bytes at all."""

    answer = _Answer
    listing = b""
    headers: dict | None = None

    def lists(self, *rows: object, **more: object) -> None:
        self.listing = json.dumps({"sha": COMMIT, "siblings": rows, **more}).encode()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "no-hf"))
        for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(transfer, "_PAUSES_S", ())
        yield hub


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "models"


def refused(source: str, cache: Path) -> str:
    """Pull what cannot be pulled; return the error, after a look that it is one line and that nothing was kept."""
    with pytest.raises(ModelError) as raised:
        sources.pull(source, models_dir=cache)
    assert not [path for path in cache.rglob("*") if path.is_file() and ".lock" not in path.name]
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([GOOD, GOOD], "lists 'model.safetensors' twice"),
        ([GOOD, {**GOOD, "rfilename": "./model.safetensors"}], "lists 'model.safetensors' twice"),
        ([GOOD, {**GOOD, "rfilename": "model.safetensors/a.json"}], "'model.safetensors' as a file and as a folder"),
        ([{**GOOD, "rfilename": "a" * 300 + ".json"}], "has 305 bytes in one part, at most 255"),
        ([{**GOOD, "rfilename": "a\ud800.json"}], "the file name 'a\\ud800.json' has control characters"),
        ([{**GOOD, "rfilename": "a\x1b[2J.json"}], "the file name 'a\\x1b[2J.json' has control characters"),
        ([{**GOOD, "rfilename": "a\nchat: pulled.json"}], "the file name 'a\\nchat: pulled.json' has control"),
        ([{**GOOD, "rfilename": 5}], "did not answer like a model hub"),
        ([{**GOOD, "size": -1}], "the file 'model.safetensors' has size -1"),
        ([{**GOOD, "size": True}], "has size True"),
        ([{**GOOD, "size": "10"}], "has size '10'"),
        ([{**GOOD, "blobId": "../x"}], "has hashes None and '../x'"),
        ([{**GOOD, "size": 0}], "has 0 bytes, expected weights"),
        ([{**GOOD, "rfilename": "M.GGUF", "size": 0}, GOOD], "'M.GGUF' of 'hf:org/tiny@main' has 0 bytes"),
    ],
)
def test_a_listing_is_looked_at_whole_before_anything_is_fetched(hub, cache, rows, said) -> None:
    hub.lists(*rows)

    assert said in refused(f"hf:{NAME}", cache)
    assert not [path for path, _, _ in hub.seen if "/resolve/" in path]


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"[" * 200_000, None, "RecursionError"),
        (b'{"sha": "%s", "siblings": [{"rfilename": "a.json", "size": 1e400}]}' % COMMIT.encode(), None, "size inf"),
        (b"no gzip", {"Content-Encoding": "gzip"}, "DecodingError"),
        (b"[]", None, "did not answer like a model hub for 'org/tiny'"),
    ],
)
def test_an_answer_that_cannot_be_read_is_no_hubs(hub, cache, body, headers, said) -> None:
    hub.listing, hub.headers = body, headers

    assert said in refused(f"hf:{NAME}", cache)


def test_a_download_that_is_sent_round_in_circles_ends(hub, cache) -> None:
    hub.lists(GOOD)
    hub.to = f"{hub.address}/{NAME}/resolve/{COMMIT}/model.safetensors"

    assert "TooManyRedirects" in refused(f"hf:{NAME}", cache)


def test_a_hash_in_capitals_is_the_same_hash(hub, cache) -> None:
    content = FILES["model.safetensors"]
    lfs = {"sha256": hashlib.sha256(content).hexdigest().upper()}
    hub.lists({"rfilename": "model.safetensors", "size": len(content), "lfs": lfs})

    (pulled,) = sources.pull_models(cache, [f"hf:{NAME}"], configured={})

    assert pulled.verified


@pytest.mark.parametrize("kind", ["hf", "modelscope"])
@pytest.mark.parametrize("name", ["o/..", "o/.", "../n", "./n", "o/n@..", "o/n@a/../b", "o/n@a\x1bb"])
def test_dots_and_control_characters_name_no_repository(kind, name, tmp_path) -> None:
    with pytest.raises(ModelError, match=f"names no repository, expected {kind}:ORG/NAME") as raised:
        sources.pull(f"{kind}:{name}", models_dir=tmp_path / "cache")
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("source", ["hf:o/{}", "hf:o/n@{}", "modelscope:{}/n", "pypi:a==1{}#m.gguf", "hf:o/n#{}.gguf"])
def test_a_source_longer_than_a_folders_name_is_refused(source, tmp_path) -> None:
    with pytest.raises(ModelError, match=r"at most 2[35]5"):
        sources.resolve(source.format("1" * 300), models_dir=tmp_path)


def test_a_path_that_cannot_be_looked_at_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"there is no model at .* \(File name too long\); give the path"):
        sources.resolve(f"/{'m' * 300}", models_dir=tmp_path)


@pytest.mark.parametrize(
    "source", ["hf:o/receipt.json", "hf:o/n#sub/receipt.json", "hf:o/Derived", "pypi:a==1#b/derived"]
)
def test_a_model_named_like_the_caches_own_is_refused(source, cache) -> None:
    assert "the cache keeps its own under that name" in refused(source, cache)


def test_a_receipt_among_a_models_own_files_is_one_of_them(hub, cache) -> None:
    hub.files = {"receipt.json": b"{}", "model.safetensors": b"weights..."}
    rows = [{"rfilename": name, "size": len(content)} for name, content in hub.files.items()]
    hub.lists(*rows)

    path = sources.pull(f"hf:{NAME}", models_dir=cache)

    assert (path / "receipt.json").read_bytes() == b"{}"
    assert sources.resolve(f"hf:{NAME}", models_dir=cache) == path
    derived = sources.derived_dir(path / "model.safetensors", models_dir=cache)
    assert derived == path.parent / "derived"


def test_a_receipt_of_a_source_that_is_none_any_more_does_not_hide_the_others(cache) -> None:
    entry = cache / "hf" / "old"
    entry.mkdir(parents=True)
    (entry / "receipt.json").write_text(json.dumps({"source": "hf:o/..@main", "model": "..", "files": []}))

    assert len(sources.list_models(cache)) == 3


@pytest.mark.parametrize("token", ["se\ncret", "secrét", "se\x7fcret"])
def test_a_token_that_no_header_takes_is_named_by_its_place_and_not_shown(hub, cache, monkeypatch, tmp_path, token):
    file = tmp_path / "token"
    file.write_text(token)
    for variable, value, source in (
        ("HF_TOKEN", token, f"hf:{NAME}"),
        ("MODELSCOPE_API_TOKEN", token, f"modelscope:{NAME}"),
        ("HF_TOKEN_PATH", str(file), f"hf:{NAME}"),
    ):
        monkeypatch.setenv(variable, value)
        said = refused(source, cache)
        monkeypatch.delenv(variable)
        assert (variable if value == token else str(file)) in said
        assert "expected printable ASCII" in said
        assert "cr" not in said.replace(str(tmp_path), "")


def test_a_token_file_that_is_no_text_is_named(hub, cache, monkeypatch, tmp_path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))

    assert f"the token in '{tmp_path}/token' has characters" in refused(f"hf:{NAME}", cache)


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "MODELSCOPE_ENDPOINT"])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://me:pass-word@127.0.0.1:9", "has a user or password, expected an address without"),
        ("ftp://me:pass-word@h", "has a user or password"),
        ("me:pass-word@h", "has a user or password"),
        ("https://h/?key=pass-word", "is 'https://h/…', expected an address that starts https://"),
        ("http://[::", "is 'http://[::', expected"),
        ("http://h:99999", "is 'http://h:99999', expected"),
        ("http://h\x1b[2J", "is 'http://h\\x1b[2J', expected"),
        ("h", "is 'h', expected"),
    ],
)
def test_an_endpoint_that_is_none_or_holds_a_secret_is_refused(cache, monkeypatch, variable, address, said) -> None:
    monkeypatch.setenv(variable, address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    told = refused(f"{'hf' if variable == 'HF_ENDPOINT' else 'modelscope'}:{NAME}", cache)

    assert told.startswith(f"{variable} {said}")
    assert "pass-word" not in told


def test_a_proxy_that_cannot_be_used_is_named_without_its_password(hub, cache, monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://me:pass-word@proxy")

    said = refused(f"hf:{NAME}", cache)

    assert "ALL_PROXY cannot be used" in said
    assert "pass-word" not in said


def test_what_httpx_says_of_a_header_is_never_said_again() -> None:
    assert transfer._reason(httpx.LocalProtocolError("Illegal header value b'Bearer x'")) == "LocalProtocolError"
    assert transfer._reason(httpx.ConnectError("[Errno 111] Connection refused")) == "[Errno 111] Connection refused"


def test_a_row_of_either_hub_is_read_by_the_same_rule() -> None:
    with pytest.raises(ValueError, match="has size -1"):
        modelscope._file({"Path": "a.json", "Size": -1, "Sha256": ""})


def test_what_a_hub_says_cannot_command_the_terminal_nor_forge_a_row(hub, cache) -> None:
    hub.files = {"model.safetensors": b"weights..."}
    hub.lists({"rfilename": "model.safetensors", "size": 10}, cardData={"license": "mit\x1b[2J\n* chat  Forged  row"})
    command = [sys.executable, "-m", "chatkit", "models"]
    done = subprocess.run(
        [*command, "pull", "--models-dir", str(cache), f"hf:{NAME}"], capture_output=True, text=True, check=True
    )
    assert not set("\x1b\r") & set(done.stdout + done.stderr)

    shown = subprocess.run(
        [*command, "list", "--models-dir", str(cache)], capture_output=True, text=True, check=True
    ).stdout

    (row,) = [line for line in shown.splitlines() if line.endswith(f"hf:{NAME}@main")]
    assert "mit␛[2J * chat Forged row" in row
    assert "\x1b" not in shown
