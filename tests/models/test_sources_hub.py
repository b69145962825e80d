"""`hf:` against a hub on loopback: pinned, verified, resumed, and the token goes nowhere else."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatkit.errors import BrokenModel, ModelError, Offline
from chatkit.models import sources
from tests.models.loopback import COMMIT, FILES, NAME, WEIGHTS, LoopbackAnswer, LoopbackHub


class _Answer(LoopbackAnswer):
    def answer(self, path: str, query: str) -> None:
        hub = self.server
        if path.startswith(f"/api/models/{NAME}/revision/") and query == "blobs=true":
            self.send(200, json.dumps(self._listing()).encode())
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/") and hub.to:
            self.send(302, b"", {"Location": hub.to + path})
        elif (name := path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")) in hub.files:
            self.file(hub.files[name])
        else:
            self.send(404, b"")

    def _listing(self) -> dict:
        siblings = []
        for name, content in self.server.files.items():
            row = {"rfilename": name, "size": len(content), "blobId": git_blob(content)}
            if name.endswith((".safetensors", ".gguf")):
                digest = self.server.published.get(name, hashlib.sha256(content).hexdigest())
                row["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(row)
        return {"sha": COMMIT, "siblings": siblings, "tags": ["x", "license:mit"], "gated": False}


class Hub(LoopbackHub):
    answer = _Answer


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "no-hf"))
        for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "models"


def left_over(cache: Path) -> list[str]:
    return [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and ".lock" not in path.name]


def test_a_repository_is_pulled_without_its_pickles_and_pinned_to_a_commit(hub, cache):
    path = sources.pull(f"hf:{NAME}", models_dir=cache)

    assert path == sources.resolve(f"hf:{NAME}@main", models_dir=cache)
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert found == {name: FILES[name] for name in FILES if not name.endswith((".bin", ".md"))}
    receipt = json.loads((path.parent / "receipt.json").read_text())
    assert (receipt["revision"], receipt["licence"]) == (COMMIT, "mit")
    assert all(file["verified"] for file in receipt["files"])
    assert hub.downloads("pytorch_model.bin") == 0
    (row,) = [row for row in sources.list_models(cache) if row.source == f"hf:{NAME}@main"]
    assert (row.present, row.verified, row.bytes) == (True, True, sum(map(len, found.values())))


def test_what_is_here_is_not_fetched_again(hub, cache):
    sources.pull(f"hf:{NAME}@v1", models_dir=cache)
    asked = len(hub.seen)

    sources.pull(f"hf:{NAME}@v1", models_dir=cache)

    assert len(hub.seen) == asked


def test_one_file_of_a_repository(hub, cache):
    path = sources.pull(f"hf:{NAME}@main#sub/extra.txt", models_dir=cache)

    assert path.name == "extra.txt"
    assert path.read_bytes() == FILES["sub/extra.txt"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off_is_resumed(hub, cache, ranges):
    hub.cut, hub.ranges = [3_000_000, 1_000_000], ranges

    path = sources.pull(f"hf:{NAME}", models_dir=cache)

    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    asked = [given for path, _, given in hub.seen if path.endswith("model.safetensors")]
    assert len(asked) == 3
    assert asked[:2] == [None, "bytes=3000000-"]
    assert asked[2] == ("bytes=4000000-" if ranges else "bytes=1000000-")


def test_after_the_network_went_away_the_next_pull_goes_on(hub, cache):
    hub.cut = [3_000_000] + [0] * 20
    with pytest.raises(Offline):
        sources.pull(f"hf:{NAME}", models_dir=cache)
    hub.cut, hub.seen = [], []

    path = sources.pull(f"hf:{NAME}", models_dir=cache)

    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert [given for path, _, given in hub.seen if "resolve" in path] == ["bytes=3000000-"]


PULL = """
import sys
from pathlib import Path
from chatkit.models import sources
sources.pull(sys.argv[1], models_dir=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("arrived", [1, 2_000_000, 4_500_000])
def test_after_a_kill_the_next_pull_goes_on(hub, cache, arrived):
    hub.slow = 0.02
    process = subprocess.Popen([sys.executable, "-c", PULL, f"hf:{NAME}", str(cache)])
    part = cache / ".pulling" / f"hf-org--tiny@main-{key(f'hf:{NAME}@main')}" / COMMIT / "model.safetensors"
    ends = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size >= arrived) and time.monotonic() < ends:
        time.sleep(0.002)
    process.kill()
    process.wait()
    hub.slow, hub.seen, held = 0.0, [], part.stat().st_size
    assert arrived <= held < len(WEIGHTS)

    path = sources.pull(f"hf:{NAME}", models_dir=cache)

    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert [given for path, _, given in hub.seen if path.endswith("model.safetensors")] == [f"bytes={held}-"]
    assert not list((cache / ".pulling").iterdir())


def key(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def test_a_wrong_hash_is_refused_and_nothing_left(hub, cache):
    hub.published["model.safetensors"] = "0" * 64

    with pytest.raises(BrokenModel, match=r"SHA-256 .*expected 0000"):
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert left_over(cache) == []


def test_a_file_longer_than_announced_is_refused(hub, cache, monkeypatch):
    true_listing = _Answer._listing
    monkeypatch.setattr(_Answer, "_listing", lambda self: _shortened(true_listing(self)))

    with pytest.raises(BrokenModel, match="longer than its 100 bytes"):
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert left_over(cache) == []


def _shortened(listing: dict) -> dict:
    for row in listing["siblings"]:
        if row["rfilename"] == "model.safetensors":
            row["size"] = 100
    return listing


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_licence_page(hub, cache, status):
    hub.refuse = status

    with pytest.raises(ModelError, match=f"{hub.address}/{NAME} , accept the licence"):
        sources.pull(f"hf:{NAME}", models_dir=cache)


def test_what_does_not_exist_is_named(hub, cache):
    with pytest.raises(ModelError, match="has no 'hf:org/other@main'"):
        sources.pull("hf:org/other", models_dir=cache)
    with pytest.raises(ModelError, match=r"no file 'b\.gguf'.*'model.safetensors'"):
        sources.pull(f"hf:{NAME}#b.gguf", models_dir=cache)


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(hub, cache, monkeypatch, caplog, tmp_path):
    caplog.set_level("DEBUG")
    token = tmp_path / "token"
    token.write_text("hf_secret\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    with Hub() as second:
        # The same address by another name is another host.
        hub.to = second.address.replace("127.0.0.1", "localhost")
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert {authorization for _, authorization, _ in hub.seen} == {"Bearer hf_secret"}
    assert len(second.seen) == 4
    assert {authorization for _, authorization, _ in second.seen} == {None}
    assert "hf_secret" not in caplog.text
    assert not any(b"hf_secret" in path.read_bytes() for path in cache.rglob("*") if path.is_file())


def test_the_variable_wins_over_the_token_file(hub, cache, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("from file")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "from-variable")

    sources.pull(f"hf:{NAME}", models_dir=cache)

    assert hub.seen[0][1] == "Bearer from-variable"


def test_the_token_does_not_leave_without_tls(cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    with pytest.raises(ModelError, match="not sent without TLS") as caught:
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert "hf_secret" not in str(caught.value)


def test_pickled_weights_are_refused(hub, cache):
    with pytest.raises(ModelError, match=r"'pytorch_model.bin'.*not of a kind"):
        sources.pull(f"hf:{NAME}#pytorch_model.bin", models_dir=cache)
    del hub.files["model.safetensors"]
    with pytest.raises(ModelError, match="neither safetensors nor GGUF"):
        sources.pull(f"hf:{NAME}", models_dir=cache)


def test_a_choice_between_gguf_models_is_left_to_the_user(hub, cache):
    hub.files = {"m.Q4.gguf": b"a", "m.Q8-00001-of-00002.gguf": b"b", "m.Q8-00002-of-00002.gguf": b"c"}
    with pytest.raises(ModelError, match="2 GGUF models; name one"):
        sources.pull(f"hf:{NAME}", models_dir=cache)
    del hub.files["m.Q4.gguf"]

    assert len(list(sources.pull(f"hf:{NAME}", models_dir=cache).iterdir())) == 2


def test_a_listing_that_leaves_its_folder_is_refused(hub, cache):
    hub.files["../../evil.json"] = b"{}"

    with pytest.raises(ModelError, match="leaves its folder"):
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert left_over(cache) == []


def test_something_that_is_no_hub_is_named(hub, cache, monkeypatch):
    monkeypatch.setattr(_Answer, "_listing", lambda self: ["a captive portal"])

    with pytest.raises(ModelError, match="did not answer like a model hub"):
        sources.pull(f"hf:{NAME}", models_dir=cache)


def test_a_hub_that_is_overloaded_is_tried_again_and_then_named(hub, cache):
    hub.refuse = 503

    with pytest.raises(Offline, match="keeps answering status 503"):
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert len(hub.seen) == 4


@pytest.mark.timeout(10)
def test_a_closed_port_is_offline(cache, monkeypatch):
    with Hub() as gone:
        address = gone.address
    monkeypatch.setenv("HF_ENDPOINT", address)

    with pytest.raises(Offline, match=r"cannot reach '127\.0\.0\.1:.*path") as caught:
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert "\n" not in str(caught.value)


def test_offline_by_variable(hub, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert hub.seen == []


def test_force_fetches_again(hub, cache):
    path = sources.pull(f"hf:{NAME}", models_dir=cache)
    derived = sources.derived_dir(path, models_dir=cache)
    (derived / "old").touch()
    hub.files["config.json"] = b"{}"

    assert sources.pull(f"hf:{NAME}", models_dir=cache, force=True) == path

    assert (path / "config.json").read_bytes() == b"{}"
    assert not derived.exists()


def test_a_disk_without_room_is_said_before_the_download(hub, cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())

    with pytest.raises(ModelError, match=r"needs 51\d+ bytes, 1000 bytes are free"):
        sources.pull(f"hf:{NAME}", models_dir=cache)

    assert hub.downloads("config.json") == 0
    assert left_over(cache) == []
