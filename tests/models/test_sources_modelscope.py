"""`modelscope:` against a hub on loopback: what `hf:` promises holds, though the answers differ."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from chatkit.errors import BrokenModel, ModelError, Offline
from chatkit.models import manifest, modelscope, sources
from tests.models.loopback import COMMIT, FILES, NAME, WEIGHTS, LoopbackAnswer, LoopbackHub

SOURCE = f"modelscope:{NAME}"
API = f"/api/v1/models/{NAME}"


class _Answer(LoopbackAnswer):
    def answer(self, path: str, query: str) -> None:
        hub, asked = self.server, {name: values[0] for name, values in parse_qs(query).items()}
        if hub.failure:
            self._envelope(None, *hub.failure)
        elif path == API:
            self._envelope({"License": "Apache License 2.0", "Name": "tiny"})
        elif path == f"{API}/commits" and asked["PageSize"] == "1":
            # An unknown revision is no failure here: it has no commits.
            self._envelope({"Commit": [{"Id": COMMIT}] if asked["Ref"] in ("master", "v1") else None})
        elif path == f"{API}/repo/files" and asked == {"Revision": COMMIT, "Recursive": "true"}:
            self._envelope({"Files": hub.listing()})
        elif path == f"{API}/repo" and asked["Revision"] == COMMIT and asked["FilePath"] in hub.files:
            # So that what was seen names the file.
            hub.seen[-1] = (f"{path}/{asked['FilePath']}", *hub.seen[-1][1:])
            if hub.to:
                self.send(302, b"", {"Location": f"{hub.to}{path}?{query}"})
            elif hub.instead is not None:
                self.send(200, hub.instead)
            else:
                self.file(hub.files[asked["FilePath"]])
        else:
            self._envelope(None, 404, 10010205001)

    def _envelope(self, data: object, status: int = 200, code: int = 200) -> None:
        table = {"Code": code, "Data": data, "Message": "信息", "RequestId": "r", "Success": code == 200}
        self.send(status, json.dumps(table).encode())


class Hub(LoopbackHub):
    """ModelScope's answers.

    Attributes:
        failure: status and envelope code of every answer.
        instead: body of every download.
    """

    answer = _Answer

    def __init__(self) -> None:
        super().__init__()
        self.partial = 200  # what the hub sends for a part that was asked for
        self.failure: tuple[int, int] | None = None
        self.instead: bytes | None = None
        self.more: list[dict] = []

    def listing(self) -> list[dict]:
        rows = [{"Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""}]
        for name, content in self.files.items():
            digest = self.published.get(name, hashlib.sha256(content).hexdigest())
            rows.append({"Path": name, "Type": "blob", "Size": len(content), "Sha256": digest, "Revision": "b" * 40})
        return rows + self.more


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.address)
        for name in ("MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "models"


def left_over(cache: Path) -> list[str]:
    return [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and ".lock" not in path.name]


def asked_ranges(hub: Hub, name: str) -> list[str | None]:
    return [given for path, _, given in hub.seen if path.endswith(f"/repo/{name}")]


def test_a_repository_is_pulled_without_its_pickles_and_pinned_to_a_commit(hub, cache):
    path = sources.pull(SOURCE, models_dir=cache)

    assert path == sources.resolve(f"{SOURCE}@master", models_dir=cache)
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert found == {name: FILES[name] for name in FILES if not name.endswith((".bin", ".md"))}
    receipt = json.loads((path.parent / "receipt.json").read_text())
    assert (receipt["revision"], receipt["licence"]) == (COMMIT, "Apache License 2.0")
    assert receipt["page"] == f"{hub.address}/models/{NAME}"
    assert {file["sha256"] for file in receipt["files"]} == {hashlib.sha256(c).hexdigest() for c in found.values()}
    assert hub.downloads("pytorch_model.bin") == 0
    (row,) = [row for row in sources.list_models(cache) if row.source == f"{SOURCE}@master"]
    assert (row.present, row.verified, row.bytes) == (True, True, sum(map(len, found.values())))


def test_a_revision_that_is_a_commit_is_not_looked_up(hub, cache):
    sources.pull(f"{SOURCE}@{COMMIT}#config.json", models_dir=cache)

    assert [path for path, _, _ in hub.seen] == [API, f"{API}/repo/files", f"{API}/repo/config.json"]


def test_the_same_name_at_two_hubs_is_two_models(hub, cache):
    path = sources.pull(f"{SOURCE}@v1#sub/extra.txt", models_dir=cache)

    assert (path.name, path.read_bytes()) == ("extra.txt", FILES["sub/extra.txt"])
    with pytest.raises(ModelError, match=r"run: chatkit models pull 'hf:org/tiny@v1#sub/extra\.txt'"):
        sources.resolve(f"hf:{NAME}@v1#sub/extra.txt", models_dir=cache)


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off_is_resumed(hub, cache, ranges, status):
    hub.cut, hub.ranges, hub.partial = [3_000_000, 1_000_000], ranges, status

    path = sources.pull(SOURCE, models_dir=cache)

    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    last = "bytes=4000000-" if ranges else "bytes=1000000-"
    assert asked_ranges(hub, "model.safetensors") == [None, "bytes=3000000-", last]


def test_after_the_network_went_away_the_next_pull_goes_on(hub, cache):
    hub.cut = [3_000_000] + [0] * 20
    with pytest.raises(Offline):
        sources.pull(SOURCE, models_dir=cache)
    hub.cut, hub.seen = [], []

    path = sources.pull(SOURCE, models_dir=cache)

    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert [given for path, _, given in hub.seen if "/repo/" in path and "files" not in path] == ["bytes=3000000-"]


PULL = """
import sys
from pathlib import Path
from chatkit.models import sources
sources.pull(sys.argv[1], models_dir=Path(sys.argv[2]))
"""


def test_after_a_kill_the_next_pull_goes_on(hub, cache):
    hub.slow = 0.02
    process = subprocess.Popen([sys.executable, "-c", PULL, SOURCE, str(cache)])
    ends = time.monotonic() + 30
    held = 0
    while held < 2_000_000 and time.monotonic() < ends:
        held = sum(part.stat().st_size for part in cache.glob(f".pulling/modelscope-*/{COMMIT}/model.safetensors"))
        time.sleep(0.002)
    process.kill()
    process.wait()
    (part,) = cache.glob(f".pulling/modelscope-*/{COMMIT}/model.safetensors")
    hub.slow, hub.seen, held = 0.0, [], part.stat().st_size

    path = sources.pull(SOURCE, models_dir=cache)

    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert asked_ranges(hub, "model.safetensors") == [f"bytes={held}-"]
    assert not list((cache / ".pulling").iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_hash_is_refused_and_nothing_left(hub, cache, name):
    hub.published[name] = "0" * 64

    with pytest.raises(BrokenModel, match=rf"'{name}' of .*SHA-256 .*expected 0000"):
        sources.pull(SOURCE, models_dir=cache)

    assert left_over(cache) == []


def test_a_hash_in_capitals_is_the_same_hash(hub, cache):
    hub.published["config.json"] = hashlib.sha256(FILES["config.json"]).hexdigest().upper()

    sources.pull(f"{SOURCE}#config.json", models_dir=cache)


def test_a_file_without_a_published_hash_is_present_and_not_verified(hub, cache):
    hub.published["config.json"] = ""

    (pulled,) = sources.pull_models(cache, [f"{SOURCE}#config.json"], configured={})

    assert not pulled.verified


def test_an_error_in_place_of_a_file_is_no_part_of_it(hub, cache):
    hub.instead = b'{"Code": 10010200099, "Success": false}'

    with pytest.raises(Offline, match=r"keeps answering 39 bytes in place of the 5120000 of 'model.safetensors'"):
        sources.pull(f"{SOURCE}#model.safetensors", models_dir=cache)

    assert {part.stat().st_size for part in cache.glob(f".pulling/*/{COMMIT}/*")} == {0}


@pytest.mark.parametrize("failure", [(404, 10010200001), (200, 10010200001), (401, 10010103009), (403, 403)])
def test_a_refusal_names_the_licence_page_and_the_variable(hub, cache, failure):
    hub.failure = failure

    with pytest.raises(ModelError, match=rf"{hub.address}/models/{NAME} , accept .*set MODELSCOPE_API_TOKEN"):
        sources.pull(SOURCE, models_dir=cache)


@pytest.mark.parametrize("failure", [(404, 10010205001), (200, 10010205001), (404, 10990101004)])
def test_a_repository_that_does_not_exist_is_named(hub, cache, failure):
    hub.failure = failure

    with pytest.raises(ModelError, match="has no 'modelscope:org/tiny@master'; check the name"):
        sources.pull(SOURCE, models_dir=cache)


def test_a_code_that_is_not_known_is_shown(hub, cache):
    hub.failure = (200, 10019999999)

    with pytest.raises(ModelError, match="the hub answered 10019999999 for 'modelscope:org/tiny@master'"):
        sources.pull(SOURCE, models_dir=cache)


def test_a_revision_or_file_that_does_not_exist_is_named(hub, cache):
    with pytest.raises(ModelError, match="has no 'modelscope:org/tiny@main'"):
        sources.pull(f"{SOURCE}@main", models_dir=cache)
    with pytest.raises(ModelError, match=r"no file 'b\.gguf' at 'master'; its weights: 'model.safetensors'"):
        sources.pull(f"{SOURCE}#b.gguf", models_dir=cache)


def test_the_token_is_sent_to_the_hub_and_to_nobody_else(hub, cache, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    with Hub() as second:
        # The same address by another name is another host.
        hub.to = second.address.replace("127.0.0.1", "localhost")
        sources.pull(SOURCE, models_dir=cache)

    assert {authorization for _, authorization, _ in hub.seen} == {"Bearer ms-secret"}
    assert set(hub.cookies) == {"m_session_id=ms-secret"}
    assert len(second.seen) == 4
    assert {authorization for _, authorization, _ in second.seen} == {None}
    assert set(second.cookies) == {None}
    assert "ms-secret" not in caplog.text
    assert not any(b"ms-secret" in path.read_bytes() for path in cache.rglob("*") if path.is_file())


def test_the_token_does_not_leave_without_tls(cache, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://mirror.example")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")

    with pytest.raises(ModelError, match=r"MODELSCOPE_ENDPOINT is .*not sent without TLS") as caught:
        sources.pull(SOURCE, models_dir=cache)

    assert "ms-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, "https://modelscope.cn"),
        ({"MODELSCOPE_DOMAIN": "www.modelscope.ai"}, "https://www.modelscope.ai"),
        ({"MODELSCOPE_DOMAIN": "a.example", "MODELSCOPE_ENDPOINT": "https://b.example/"}, "https://b.example"),
    ],
)
def test_the_variables_of_the_hubs_own_client_name_the_hub(monkeypatch, variables, endpoint):
    for name in ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert modelscope.ModelScope.of_user(SOURCE) == modelscope.ModelScope(endpoint, "")


def test_pickled_weights_are_refused(hub, cache):
    with pytest.raises(ModelError, match=r"'pytorch_model.bin'.*not of a kind"):
        sources.pull(f"{SOURCE}#pytorch_model.bin", models_dir=cache)
    del hub.files["model.safetensors"]
    with pytest.raises(ModelError, match="neither safetensors nor GGUF"):
        sources.pull(SOURCE, models_dir=cache)


def test_a_choice_between_gguf_models_is_left_to_the_user(hub, cache):
    hub.files = {"m.Q4.gguf": b"a", "m.Q8.gguf": b"b"}

    with pytest.raises(ModelError, match="2 GGUF models; name one: modelscope:org/tiny#FILE"):
        sources.pull(SOURCE, models_dir=cache)


def test_a_listing_that_the_hub_may_have_cut_is_good_for_named_files_only(hub, cache):
    hub.more = [{"Path": f"{i}.txt", "Type": "blob", "Size": 0, "Sha256": ""} for i in range(modelscope.MOST_LISTED)]

    with pytest.raises(ModelError, match="more files than the hub lists at once; name one: modelscope:org/tiny#FILE"):
        sources.pull(SOURCE, models_dir=cache)

    path = sources.pull(f"{SOURCE}#config.json", models_dir=cache)
    assert path.read_bytes() == FILES["config.json"]


def test_a_listing_that_leaves_its_folder_is_refused(hub, cache):
    hub.files["../../evil.json"] = b"{}"

    with pytest.raises(ModelError, match="leaves its folder"):
        sources.pull(SOURCE, models_dir=cache)

    assert left_over(cache) == []


def test_something_that_is_no_hub_is_named(hub, cache, monkeypatch):
    monkeypatch.setattr(_Answer, "answer", lambda self, path, query: self.send(200, b"<html>a captive portal</html>"))

    with pytest.raises(ModelError, match=r"did not answer like a model hub.*check MODELSCOPE_ENDPOINT"):
        sources.pull(SOURCE, models_dir=cache)


@pytest.mark.timeout(10)
def test_a_closed_port_is_offline(cache, monkeypatch):
    with Hub() as gone:
        address = gone.address
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)

    with pytest.raises(Offline, match=r"cannot reach '127\.0\.0\.1:.*set MODELSCOPE_ENDPOINT .*path") as caught:
        sources.pull(SOURCE, models_dir=cache)

    assert "\n" not in str(caught.value)


def test_a_larger_model_is_checked_against_what_its_hub_publishes(hub, cache, monkeypatch):
    """The manifest has no hashes for it: the hub does."""
    hub.files = {"tiny.gguf": b"GGUF" + WEIGHTS}
    row = manifest.Default(f"{SOURCE}@master#tiny.gguf", "chat", "Tiny", "MIT", "page", None)
    monkeypatch.setattr(manifest, "profiles", lambda: {"local": {}, "larger": {"chat": row}})

    (pulled,) = sources.pull_models(cache, configured={"chat": "default"}, profile="larger")

    assert pulled.verified
    assert pulled.path == sources.resolve("default", role="chat", profile="larger", models_dir=cache)
    (listed,) = sources.list_models(cache, configured={"chat": "default"}, profile="larger")
    assert (listed.name, listed.profiles, listed.used, listed.verified) == ("Tiny", ("larger",), True, True)
    hub.published["tiny.gguf"] = "0" * 64
    with pytest.raises(BrokenModel, match="expected 0000"):
        sources.pull_models(cache, configured={"chat": "default"}, profile="larger", force=True)
    assert sources.resolve("default", role="chat", profile="larger", models_dir=cache) == pulled.path
