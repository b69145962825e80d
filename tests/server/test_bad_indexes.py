"""Bad versions of an index are made live under a running service: it goes on answering, says so once, and recovers."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

from chatkit.retrieval.layout import IndexFolder
from tests.serving import ROOT, Served

QUESTION = "Which port does the service listen on?"


def write_guide(folder, port):
    (folder / "guide.md").write_text(f"# Guide\n\n## Ports\n\nThe service listens on port {port}.\n")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    write_guide(folder, 8080)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory, models_dir, documents):
    service = Served(tmp_path_factory.mktemp("bad-indexes") / "home", models_dir)
    assert service.chatkit("prepare-index", str(documents)).returncode == 0
    with service:
        yield service


class Asking:
    """Two clients that ask without a pause; what they were answered, in order of each answer's end."""

    def __init__(self, served):
        self.answers = []
        self.failures = []
        self._served = served
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def _ask(self):
        while not self._stop.is_set():
            body = {"inputs": QUESTION, "parameters": {"max_new_tokens": 1}}
            answer = self._served.client.post("/invocations", json=body)
            if answer.status_code != 200:
                self.failures.append(answer.text)
            else:
                self.answers.append([source["text"] for source in answer.json()["sources"]])

    def more(self, number=5):
        """Wait until as many further answers have come."""
        wanted = len(self.answers) + number
        until(lambda: len(self.answers) >= wanted)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def another_encoder(version):
    table = json.loads((version / "manifest.json").read_text())
    other = table["encoder"] | {"fingerprint": "mean-l2-512-other"}
    (version / "manifest.json").write_text(json.dumps(table | {"encoder": other}))


def tampered_with(version):
    content = bytearray((version / "vectors.faiss").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (version / "vectors.faiss").write_bytes(content)


def half_written(version):
    (version / "manifest.json").unlink()
    (version / "passages.parquet").unlink()


BAD = [
    (another_encoder, "was built with the encoder 'mean-l2-512-other'"),
    (tampered_with, "vectors.faiss' was changed after the build"),
    (half_written, "manifest.json' cannot be read (No such file or directory)"),
]


def test_bad_versions_cost_no_answer_and_a_good_one_takes_over(served, documents):
    index = IndexFolder(served.home / "indexes", "docs")
    old, new = ["The service listens on port 8080."], ["The service listens on port 9090."]
    lines = []
    with Asking(served) as asking:
        asking.more()
        for number, (spoil, problem) in enumerate(BAD, start=2):
            version = index.version_folder(f"{number:06d}")
            shutil.copytree(index.version_folder("000001"), version)
            spoil(version)
            index.make_live(version.name)
            until(lambda problem=problem: problem in served.log)
            asking.more()
            assert asking.answers[-1] == old
            lines.append((problem, version.name))
            refused_at_the_start(served, problem)
        write_guide(documents, 9090)
        assert served.chatkit("prepare-index", str(documents)).returncode == 0
        until(lambda: asking.answers[-1] == new)
        asking.more()
    assert asking.failures == []
    switched = asking.answers.index(new)
    # Two clients: an answer that began before the switch may end after the other's first from the new version.
    assert all(answer in (old, new) for answer in asking.answers)
    assert asking.answers[:switched] == [old] * switched
    assert asking.answers[switched + 2 :] == [new] * len(asking.answers[switched + 2 :])
    stays = re.findall(r"index 'docs' stays at version 000001: .*", served.log)
    assert len(stays) == len(lines) == 3
    for line, (problem, _) in zip(stays, lines, strict=True):
        assert problem in line
        assert "go back with: chatkit index use docs previous, or build it again with: chatkit prepare-index" in line
    assert "Traceback" not in served.log
    assert "index 'docs' is at version 000005 now: 1 passages" in served.log


def refused_at_the_start(served, problem):
    started = served.chatkit("serve", "--port", "0")
    assert started.returncode == 3
    (line,) = [line for line in started.stderr.splitlines() if line.startswith("error: ")]
    assert problem in line
    assert "chatkit index use docs previous" in line
    assert "Traceback" not in started.stderr


def test_the_service_follows_chatkit_index_use(served):
    before = served.ask(QUESTION, max_new_tokens=1)["sources"][0]["text"]
    assert served.chatkit("index", "use", "docs", "previous").returncode == 0
    until(lambda: served.ask(QUESTION, max_new_tokens=1)["sources"][0]["text"] != before)
    assert served.chatkit("index", "use", "docs", "newest").returncode == 0
    until(lambda: served.ask(QUESTION, max_new_tokens=1)["sources"][0]["text"] == before)


def test_builds_at_the_same_time_cost_no_answer(served, documents):
    environment = served._environment
    write_guide(documents, 7070)
    command = [sys.executable, "-m", "chatkit", "prepare-index", str(documents)]
    with Asking(served) as asking:
        runs = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)
        ]
        complaints = [run.communicate(timeout=120)[1] for run in runs]
        until(lambda: asking.answers[-1:] == [["The service listens on port 7070."]])
    assert asking.failures == []
    assert all(len(answer) == 1 for answer in asking.answers)
    codes = [run.returncode for run in runs]
    assert 0 in codes
    assert set(codes) <= {0, 4}
    for code, complaint in zip(codes, complaints, strict=True):
        assert "index 'docs'" in complaint
        assert ("being built by another process" in complaint) == (code == 4)


def test_a_request_names_another_index(served, tmp_path):
    write_guide(tmp_path, 1234)
    assert served.chatkit("prepare-index", str(tmp_path), "--name", "other").returncode == 0
    named = served.ask(QUESTION, index="other", max_new_tokens=1)["sources"]
    assert [source["text"] for source in named] == ["The service listens on port 1234."]
    assert served.ask(QUESTION, index="docs", max_new_tokens=1)["sources"] != named


@pytest.mark.parametrize(
    ("index", "status", "words"),
    [
        (
            "absent",
            404,
            "there is no index 'absent' that a request may name; `chatkit index list` shows those there are",
        ),
        ("../docs", 422, "index name '../docs' cannot be a folder's"),
        ("", 422, "index name ''"),
        (7, 422, "'parameters.index' is 7, expected a valid string"),
    ],
)
def test_a_name_that_is_no_index_is_refused(served, index, status, words):
    answer = served.client.post("/invocations", json={"inputs": QUESTION, "parameters": {"index": index}})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
