"""The recipe `openchatkit` against a hub on loopback: pinned, verified, resumed, one download for all who ask."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatkit.cli import group
from chatkit.errors import BrokenIndex, BrokenModel, InvalidRequest, ModelError, Offline, Unavailable
from chatkit.openchatkit_index import REPOSITORY, Wanted, prepare_openchatkit
from chatkit.retrieval import catalogue
from chatkit.retrieval.index import SearchOptions
from chatkit.retrieval.live import LiveIndexes
from chatkit.retrieval.opening import open_index
from chatkit.settings import Settings
from tests.models.loopback import COMMIT, LoopbackAnswer, LoopbackHub
from tests.retrieval.published_layout import ARTICLES, WordEncoder, write_layout

NAME = "org/wiki"
INDEX, PARQUET = "knn.index", "wikipedia-en-sentences.parquet"
OPTIONS = {"repository": NAME, "encoder": ""}


class _Answer(LoopbackAnswer):
    def answer(self, path: str, query: str) -> None:
        if path.startswith(f"/api/datasets/{NAME}/revision/"):
            rows = []
            for name, content in self.server.files.items():
                digest = self.server.published.get(name, hashlib.sha256(content).hexdigest())
                rows.append({"rfilename": name, "size": len(content), "lfs": {"sha256": digest, "size": len(content)}})
            self.send(200, json.dumps({"sha": COMMIT, "siblings": rows, "tags": []}).encode())
        elif (name := path.removeprefix(f"/datasets/{NAME}/resolve/{COMMIT}/")) in self.server.files:
            self.file(self.server.files[name])
        else:
            self.send(404, b"")


class Hub(LoopbackHub):
    answer = _Answer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Both files; the texts are padded with a column that makes the Parquet file half a megabyte."""
    import pyarrow as pa
    from pyarrow import parquet

    folder = write_layout(tmp_path_factory.mktemp("published"))
    table = parquet.read_table(folder / PARQUET)
    noise = [os.urandom(60_000).hex() for _ in range(table.num_rows)]
    parquet.write_table(table.append_column("other", pa.array(noise)), folder / PARQUET, compression="none")
    return {name: (folder / name).read_bytes() for name in (INDEX, PARQUET)} | {"README.md": b"# wiki"}


@pytest.fixture
def hub(files, monkeypatch, tmp_path):
    with Hub() as hub:
        hub.files = dict(files)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "no-hf"))
        for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


def prepare(settings, **options):
    timeout = options.pop("timeout", 60.0)
    return prepare_openchatkit(settings, {**OPTIONS, **options}, timeout=timeout)


def ranges(hub, name=PARQUET):
    return [given for path, _, given in hub.seen if path.endswith(f"/{name}")]


def test_both_files_are_received_verified_laid_out_and_made_live(hub, files, settings) -> None:
    made = prepare(settings)

    assert (made.name, made.version, made.commit, made.rows, made.up_to_date) == (
        "wikipedia",
        "000001",
        COMMIT,
        9,
        False,
    )
    assert made.sha256 == {name: hashlib.sha256(files[name]).hexdigest() for name in (INDEX, PARQUET)}
    assert {name: (made.folder / name).read_bytes() for name in made.sha256} == {n: files[n] for n in made.sha256}
    assert (made.folder / "sidecar" / "texts.bin").is_file()
    assert hub.downloads("README.md") == 0
    assert not list((settings.indexes / "wikipedia" / ".pulling").iterdir())
    found = open_index(settings.indexes / "wikipedia", WordEncoder(), options=SearchOptions(min_score=0.3))
    (passage,) = asyncio.run(found.search("lighthouse lamp cape gas", k=1))
    assert passage.text == " ".join(ARTICLES["Lighthouses"][:3])
    found.close()


def test_what_is_here_is_not_asked_for_again_unless_forced_or_pinned_otherwise(hub, settings) -> None:
    prepare(settings)
    asked = len(hub.seen)
    assert prepare(settings).up_to_date
    assert prepare(settings, revision=COMMIT).up_to_date
    assert len(hub.seen) == asked
    again = prepare_openchatkit(settings, OPTIONS, force=True)
    assert (again.version, again.up_to_date) == ("000002", False)
    assert prepare(settings, revision="v2").version == "000003"


@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_connection_that_breaks_off_is_resumed(hub, files, settings, with_ranges) -> None:
    hub.cut, hub.ranges = [len(files[INDEX]) + 5, 600_000], with_ranges
    assert prepare(settings).rows == 9
    assert ranges(hub)[:2] == [None, "bytes=600000-"]


def test_after_the_network_went_away_the_next_call_goes_on(hub, files, settings) -> None:
    hub.cut = [len(files[INDEX]) + 5, 600_000] + [0] * 20
    with pytest.raises(Offline):
        prepare(settings)
    hub.cut, hub.seen = [], []
    assert prepare(settings).rows == 9
    assert ranges(hub) == ["bytes=600000-"]
    assert ranges(hub, INDEX) == []


@pytest.mark.parametrize("where", ["hub", "recipe"])
def test_a_wrong_hash_is_refused_and_nothing_becomes_live(hub, settings, where) -> None:
    options = {}
    if where == "hub":
        hub.published[PARQUET] = "0" * 64
    else:
        options["sha256"] = {PARQUET: "0" * 64}
    with pytest.raises(BrokenModel, match=r"SHA-256 .*expected 0000"):
        prepare(settings, **options)
    left = [path.name for path in (settings.indexes / "wikipedia").rglob("*") if path.is_file()]
    assert [name for name in left if ".lock" not in name] == []


PREPARE = """
import json, sys
from pathlib import Path
from chatkit.openchatkit_index import prepare_openchatkit
from chatkit.settings import Settings
class Told:
    def note(self, line): print(line, file=sys.stderr, flush=True)
    def received(self, name, done, total): pass
made = prepare_openchatkit(
    Settings(home=Path(sys.argv[1])), json.loads(sys.argv[2]), timeout=float(sys.argv[3]), progress=Told())
print(json.dumps([made.version, made.rows, made.up_to_date]))
"""


def start(settings, timeout=60.0):
    command = [sys.executable, "-c", PREPARE, str(settings.home), json.dumps(OPTIONS), str(timeout)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_want_it_at_once_wait_for_one_download(hub, settings) -> None:
    hub.slow = 0.1
    processes = [start(settings) for _ in range(2)]
    answers = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for *_, code in answers] == [0, 0], answers
    made = sorted(json.loads(out) for out, *_ in answers)
    assert [row[:2] for row in made] == [["000001", 9]] * 2
    assert [row[2] for row in made].count(False) == 1
    assert hub.downloads(PARQUET) == hub.downloads(INDEX) == 1
    assert sum("waiting for another process that prepares" in told for _, told, _ in answers) >= 1


def test_a_downloader_that_was_killed_leaves_no_lock_and_its_part(hub, settings) -> None:
    hub.slow = 0.2
    process = start(settings)
    folder = settings.indexes / "wikipedia" / ".pulling"
    until(lambda: any(path.stat().st_size >= 400_000 for path in folder.rglob(PARQUET)))
    with pytest.raises(Unavailable, match=r"still prepares the index 'wikipedia' after 0\.1 s; run this again later"):
        prepare(settings, timeout=0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (part,) = folder.rglob(PARQUET)
    held = part.stat().st_size
    hub.slow, hub.seen = 0.0, []
    assert prepare(settings).rows == 9
    assert ranges(hub) == [f"bytes={held}-"]


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_the_hub_does_not_have_is_named(hub, settings) -> None:
    with pytest.raises(ModelError, match="has no 'hf:datasets/org/other@main'"):
        prepare(settings, repository="org/other")
    del hub.files[INDEX]
    with pytest.raises(ModelError, match=r"has no file 'knn\.index'; name another repository or revision"):
        prepare(settings)


def test_files_that_do_not_belong_together_never_become_live(hub, settings, tmp_path) -> None:
    other = write_layout(tmp_path / "other", [("One row.", 0, "A")])
    hub.files[INDEX] = (other / INDEX).read_bytes()
    with pytest.raises(BrokenIndex, match="they belong together"):
        prepare(settings)
    assert not (settings.indexes / "wikipedia" / "current").exists()


def test_a_copy_that_is_here_is_taken_without_the_network(settings, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_layout(tmp_path / "mine")
    made = prepare(settings, folder=str(folder))
    assert (made.commit, made.rows) == ("", 9)
    assert (made.folder / PARQUET).stat().st_ino == (folder / PARQUET).stat().st_ino
    assert prepare(settings, folder=str(folder)).up_to_date
    with pytest.raises(BrokenModel, match="expected 0000"):
        prepare(settings, folder=str(folder), sha256={INDEX: "0" * 64})
    with pytest.raises(ModelError, match=r"there is no 'knn\.index'"):
        prepare(settings, folder=str(tmp_path))
    with pytest.raises(Offline):
        prepare(settings)


def test_a_service_answers_from_it_beside_its_own_and_lists_it(settings, tmp_path) -> None:
    made = prepare(settings, folder=str(write_layout(tmp_path / "mine")), encoder="hf:org/contriever")
    asked = []

    def encoders(source):
        asked.append(source)
        return WordEncoder()

    service = LiveIndexes(
        settings.indexes,
        None,
        default="wikipedia",
        named=None,
        options=SearchOptions(min_score=0.3),
        encoders=encoders,
        check_every_s=0.01,
    )
    assert asyncio.run(service.search("honey bees dance", k=1))[0].title == "Bees"
    assert asked == ["hf:org/contriever"]
    (row,) = catalogue.list_indexes(settings.indexes, fingerprint="mine", default="wikipedia")
    assert (row.live, row.passages, row.problem, row.encoder_matches) == ("000001", 9, "", None)
    assert row.bytes == made.bytes
    ants = write_layout(tmp_path / "new", [("Ants march.", 0, "Ants")])
    prepare(settings, folder=str(ants), encoder="hf:org/contriever")
    until(lambda: [hit.title for hit in asyncio.run(service.search("ants march", k=1))] == ["Ants"])
    service.close()
    (settings.indexes / "wikipedia" / "000002" / PARQUET).unlink()
    (row,) = catalogue.list_indexes(settings.indexes, fingerprint="mine", default="wikipedia")
    assert "is missing; get it again with: chatkit prepare-index --recipe openchatkit" in row.problem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mirror": "x"}, "openchatkit has 'mirror', expected only repository, revision"),
        ({"revision": 3}, "openchatkit.revision is 3, expected a text"),
        ({"sha256": {"knn.index": "abc"}}, "expected a table of file names and their 64"),
        ({"repository": "no-slash"}, "expected ORG/NAME"),
        ({"repository": "../.."}, "expected ORG/NAME"),
        ({"revision": "a/../b"}, "expected ORG/NAME and a commit"),
    ],
)
def test_options_that_are_wrong_are_named(settings, options, message) -> None:
    with pytest.raises(InvalidRequest, match=message):
        prepare_openchatkit(settings, options)


def test_the_recipe_names_what_was_published() -> None:
    import tomllib

    table = tomllib.loads((Path(__file__).parents[2] / "index" / "openchatkit.toml").read_text())
    wanted = Wanted.from_options(table["openchatkit"])
    assert (table["kind"], wanted.repository, wanted.encoder) == (
        "openchatkit",
        REPOSITORY,
        "hf:facebook/contriever-msmarco",
    )


def test_the_command_receives_it_and_says_how_to_pin_it(hub, tmp_path, monkeypatch) -> None:
    recipe = tmp_path / "wiki.toml"
    recipe.write_text(f'kind = "openchatkit"\n[openchatkit]\nrepository = "{NAME}"\nencoder = ""\n')
    done = CliRunner().invoke(group, ["prepare-index", "--recipe", str(recipe), "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert (made["name"], made["commit"], made["rows"]) == ("wiki", COMMIT, 9)
    assert f'revision = "{COMMIT}"' in done.stderr
    assert f'"{PARQUET}" = "{made["sha256"][PARQUET]}"' in done.stderr
    again = CliRunner().invoke(group, ["prepare-index", "--recipe", str(recipe)])
    assert "is up to date: 9 passages" in again.stderr
