import json
import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from filelock import FileLock

from chatkit.cli import group, main
from chatkit.retrieval.layout import IndexFolder
from tests.retrieval.bad_manifests import BAD_MANIFESTS, spoil


def run(*arguments):
    return CliRunner().invoke(group, [*arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory, models_dir):
    """A home folder with two versions of the index `docs` and one of `other`."""
    made = tmp_path_factory.mktemp("built")
    place = ["--home", str(made / "home"), "--models-dir", str(models_dir)]
    for port in (8080, 9090):
        (made / "guide.md").write_text(f"# Guide\n\n## Ports\n\nThe service listens on port {port}.\n")
        assert run("prepare-index", str(made / "guide.md"), *place).exit_code == 0
    assert run("prepare-index", str(made / "guide.md"), "--name", "other", *place).exit_code == 0
    return made / "home"


@pytest.fixture
def folder(tmp_path, monkeypatch, built):
    """The folder of the index `docs` in a home folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(built, tmp_path / "home")
    return tmp_path / "home" / "indexes" / "docs"


def live(folder):
    return (folder / "current").read_text().strip()


def found():
    passages = json.loads(run("search", "Which port does the service listen on?", "--json").stdout)["passages"]
    return passages[0]["text"]


def rows():
    return {row["name"]: row for row in json.loads(run("index", "list", "--json").stdout)["rows"]}


def other_encoder(folder):
    table = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps(table | {"encoder": table["encoder"] | {"fingerprint": "mean-l2-512-other"}})
    )


def test_every_index_is_a_row_with_its_versions_counts_and_state(folder):
    result = run("index", "list")
    assert (result.exit_code, result.stderr) == (0, "")
    head, docs, other = (line.split() for line in result.stdout.splitlines())
    assert head == ["name", "live", "others", "passages", "documents", "size", "encoder", "built", "state"]
    assert docs[:6] == ["*", "docs", "000002", "000001", "1", "1"]
    assert (docs[7], docs[8], docs[-1]) == ("MiB", "matches", "good")
    assert other[:3] == ["other", "000001", "none"]


def test_json_has_the_same_and_the_exact_figures(folder):
    table = json.loads(run("index", "list", "--json", "--index", "other").stdout)
    assert (table["indexes"], table["default"]) == (str(folder.parent), "other")
    docs, other = table["rows"]
    files = [file for file in (folder / "000002").rglob("*") if file.is_file() and file.name != "manifest.json"]
    size = sum(file.stat().st_size for file in files)
    assert (docs["name"], docs["live"], docs["others"], docs["bytes"]) == ("docs", "000002", ["000001"], size)
    assert (docs["passages"], docs["documents"], docs["encoder_matches"], docs["problem"]) == (1, 1, True, "")
    assert (docs["is_default"], other["is_default"]) == (False, True)
    assert docs["built_at"] == json.loads((folder / "000002" / "manifest.json").read_text())["built_at"]


def test_a_bad_index_says_what_is_wrong_and_what_mends_it(folder):
    os.truncate(folder / "000002" / "vectors.faiss", 10)
    other_encoder(folder.parent / "other" / "000001")
    (folder.parent / "half" / "000001").mkdir(parents=True)
    listed = rows()
    assert "vectors.faiss' has 10 bytes" in listed["docs"]["problem"]
    assert "go back with: chatkit index use docs previous" in listed["docs"]["problem"]
    assert "built with the encoder 'mean-l2-512-other'" in listed["other"]["problem"]
    assert "chatkit prepare-index SOURCE… --name other" in listed["other"]["problem"]
    assert (listed["other"]["encoder_matches"], listed["half"]["live"]) == (False, "")
    assert "there is no index 'half'" in listed["half"]["problem"]
    assert len(run("index", "list").stdout.splitlines()) == 4


def test_without_the_encoder_the_rest_is_listed(folder, tmp_path):
    result = run("index", "list", "--json", "--models-dir", str(tmp_path / "none"))
    (docs, _) = json.loads(result.stdout)["rows"]
    assert (docs["encoder_matches"], docs["problem"]) == (None, "")


def test_where_there_is_nothing_the_build_is_named(tmp_path):
    result = run("index", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "there is no index 'docs', which the settings name" in result.stderr
    assert "chatkit prepare-index SOURCE… --name docs" in result.stderr


def test_previous_newest_and_a_number_make_a_version_live(folder):
    assert found() == "The service listens on port 9090."
    back = run("index", "use", "docs", "previous")
    assert (back.exit_code, live(folder)) == (0, "000001")
    assert back.stdout == "index 'docs' is at version 000001 now: 1 passages, was 000002\n"
    assert found() == "The service listens on port 8080."
    assert rows()["docs"]["others"] == ["000002"]
    used = json.loads(run("index", "use", "docs", "newest", "--json").stdout)
    assert used == {"name": "docs", "version": "000002", "before": "000001", "passages": 1, "skipped": []}
    assert run("index", "use", "docs", "000001").exit_code == 0
    assert found() == "The service listens on port 8080."


def test_a_build_after_going_back_keeps_the_version_that_was_live(folder):
    assert run("index", "use", "docs", "previous").exit_code == 0
    (folder.parents[2] / "guide.md").write_text("# Guide\n\n## Ports\n\nThe service listens on port 7070.\n")
    assert run("prepare-index", "guide.md").exit_code == 0
    assert (rows()["docs"]["live"], rows()["docs"]["others"]) == ("000003", ["000001"])
    assert found() == "The service listens on port 7070."


def test_previous_passes_over_versions_that_are_bad_and_says_so(folder):
    shutil.copytree(folder / "000001", folder / "000003")
    os.truncate(folder / "000002" / "passages.parquet", 10)
    assert run("index", "use", "docs", "newest").exit_code == 0
    back = run("index", "use", "docs", "previous")
    assert live(folder) == "000001"
    assert back.stderr.startswith("passed over: index file ")
    assert "passages.parquet' has 10 bytes" in back.stderr


def edited(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


BAD = {
    "edited": (lambda version: edited(version / "vectors.faiss"), "was changed after the build"),
    "another encoder": (other_encoder, "built with the encoder 'mean-l2-512-other'"),
    "half-written": (lambda version: (version / "manifest.json").unlink(), "cannot be read"),
}


@pytest.mark.parametrize("damage", BAD)
@pytest.mark.parametrize("wanted", ["000001", "previous"])
def test_a_bad_version_is_refused_and_the_live_one_stays(folder, capsys, monkeypatch, damage, wanted):
    # Of an index that is too large to be hashed when it is opened, too.
    monkeypatch.setattr("chatkit.retrieval.manifest.HASHED_AT_OPEN", 0)
    spoil, reason = BAD[damage]
    spoil(folder / "000001")
    before = IndexFolder(folder.parent, "docs").pointer()
    with pytest.raises(SystemExit) as stop:
        main(["index", "use", "docs", wanted])
    assert stop.value.code == 3
    complaint = capsys.readouterr().err
    assert reason in complaint
    assert "nothing was changed" in complaint
    assert complaint.count("\n") == 1
    assert live(folder) == "000002"
    assert IndexFolder(folder.parent, "docs").pointer() == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["docs", "2"], 2, "expected a number such as 000001, previous or newest"),
        (["docs", "../000001"], 2, "expected a number"),
        (["../docs", "newest"], 2, "index name '../docs'"),
        (["docs", "000009"], 3, "there is no version 000009 of the index 'docs', expected one of 000001, 000002"),
        (["other", "previous"], 3, "no version before the live one of the index 'other', expected one of 000001"),
        (["absent", "newest"], 3, "chatkit prepare-index SOURCE… --name absent"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_an_exit_code(folder, capsys, arguments, code, words):
    with pytest.raises(SystemExit) as stop:
        main(["index", "use", *arguments])
    assert stop.value.code == code
    complaint = capsys.readouterr().err
    assert words in complaint
    assert complaint.count("\n") == 1
    assert not (folder.parent / "absent").exists()


@pytest.mark.parametrize("damage", BAD_MANIFESTS)
def test_a_bad_manifest_is_one_line_of_every_command_and_a_build_mends_it(folder, capsys, damage):
    problem = BAD_MANIFESTS[damage][1]
    spoil(folder / "000001", damage)
    with pytest.raises(SystemExit) as stop:
        main(["index", "use", "docs", "previous"])
    complaint = capsys.readouterr().err
    assert (stop.value.code, complaint.count("\n")) == (3, 1)
    assert f"{problem}" in complaint
    assert live(folder) == "000002"
    spoil(folder / "000002", damage)
    assert problem in rows()["docs"]["problem"]
    (row,) = [line for line in run("index", "list").stdout.splitlines() if line.startswith("*")]
    assert problem in row
    with pytest.raises(SystemExit) as stop:
        main(["search", "Which port?"])
    complaint = capsys.readouterr().err
    assert (stop.value.code, complaint.count("\n")) == (3, 1)
    assert problem in complaint
    assert "build it again with: chatkit prepare-index" in complaint
    (folder.parents[2] / "guide.md").write_text("# Guide\n\n## Ports\n\nThe service listens on port 7070.\n")
    assert run("prepare-index", "guide.md").exit_code == 0
    assert (rows()["docs"]["live"], rows()["docs"]["problem"]) == ("000003", "")


def test_what_a_manifest_says_reaches_the_terminal_as_text_alone(folder):
    table = json.loads((folder / "000002" / "manifest.json").read_text())
    (folder / "000002" / "manifest.json").write_text(json.dumps(table | {"built_at": "\x1b[31mnow"}))
    assert "␛[31mnow" in run("index", "list").stdout
    assert "\x1b" not in run("index", "list", "--json").stdout


def test_nothing_is_switched_while_the_index_is_built(folder, capsys):
    with FileLock(folder / ".lock"), pytest.raises(SystemExit) as stop:
        main(["index", "use", "docs", "previous"])
    assert stop.value.code == 4
    assert "being built by another process" in capsys.readouterr().err
    assert live(folder) == "000002"


def test_list_and_use_load_neither_encoder_nor_torch(folder):
    script = (
        "import sys; from chatkit.cli import group\n"
        "group.main(['index', *sys.argv[1:]], standalone_mode=False)\n"
        "print({'torch', 'openvino', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    for arguments in (["list"], ["use", "docs", "previous"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr == "set()\n"
