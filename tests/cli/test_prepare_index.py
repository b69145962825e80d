import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatkit.cli import group, main
from chatkit.errors import InvalidRequest
from chatkit.recipes import read_recipe

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    folder = tmp_path / "work" / "corpus"
    folder.mkdir(parents=True)
    (folder / "ports.md").write_text("# Guide\n\n## Ports\n\nThe service listens on port 8080.\n")
    (folder / "bad.txt").write_bytes(b"\xff\xfd")
    monkeypatch.chdir(folder.parent)
    return folder


def run(*arguments):
    return CliRunner().invoke(group, ["prepare-index", *arguments], catch_exceptions=False)


def test_the_report_is_json_on_stdout_and_a_summary_on_stderr(corpus):
    result = run("corpus", "--name", "mine", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["name"], report["passages"], report["embedded"], report["up_to_date"]) == ("mine", 1, 1, False)
    assert report["skipped"] == [{"source": "corpus/bad.txt", "reason": "is not UTF-8 (byte 0); convert it to UTF-8"}]
    assert "index 'mine' built in" in result.stderr
    assert "skipped corpus/bad.txt: is not UTF-8" in result.stderr
    assert "embedded 1 of 1 chunks of 2 files" in result.stderr


def test_stdout_is_empty_without_json_and_a_second_run_is_up_to_date(corpus):
    assert run("corpus").stdout == ""
    again = run("corpus")
    assert again.stdout == ""
    assert "index 'docs' is up to date: 1 documents, 1 passages" in again.stderr


def test_a_recipe_is_found_by_name_and_resolved_from_its_root(corpus):
    folder = corpus.parent / "index"
    folder.mkdir()
    (folder / "mine.toml").write_text(
        'root = ".."\nsources = ["corpus/*.md", "absent/*.md"]\n[chunking]\nmax_tokens = 64\n'
    )
    report = json.loads(run("--recipe", "mine", "--json").stdout)
    assert (report["name"], report["documents"]) == ("mine", 1)
    assert report["skipped"] == [{"source": "absent/*.md", "reason": "matches no file of a kind that is read"}]


def test_the_projects_own_recipe_names_its_documentation():
    recipe = read_recipe(str(REPOSITORY / "index" / "docs.toml"))
    assert recipe.name == "docs"
    assert str(REPOSITORY / "README.md") in recipe.sources
    assert recipe.chunking == {"max_tokens": 120}


def test_outside_a_clone_the_error_says_where_it_looked(corpus, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prepare-index", "--recipe", "docs"])
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert "there is no recipe 'docs'" in complaint
    assert "run this in a clone of the project" in complaint


@pytest.mark.parametrize(
    ("text", "named"),
    [("sources = 3", "sources 3"), ("sauces = ['a']", "'sauces'"), ("sources = [", "not valid TOML")],
)
def test_a_wrong_recipe_says_what_is_wrong(tmp_path, text, named):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=named):
        read_recipe(str(file))


@pytest.mark.parametrize("arguments", [[], ["corpus", "--recipe", "docs"]])
def test_either_sources_or_a_recipe_are_wanted(corpus, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Give sources or --recipe" in result.stderr


def test_shards_are_made_and_merged_from_the_command_line(corpus):
    for number in (1, 2):
        made = run("corpus", "--shard", f"{number}/2", "--out", "shards", "--json")
        assert made.exit_code == 0
        assert f"shard {number}/2 made in" in made.stderr
        report = json.loads(made.stdout)
        assert (report["number"], report["of"]) == (number, 2)
    merged = CliRunner().invoke(group, ["index", "merge", "shards", "--name", "mine", "--json"], catch_exceptions=False)
    report = json.loads(merged.stdout)
    assert (report["name"], report["passages"], report["embedded"], report["vectors"]) == ("mine", 1, 0, "flat")
    assert "index 'mine' built in" in merged.stderr
    assert "is up to date" in run("corpus", "--name", "mine").stderr


@pytest.mark.parametrize("arguments", [["--shard", "1/2"], ["--out", "shards"], ["--already-split"]])
def test_a_shard_needs_a_folder(corpus, arguments):
    result = run("corpus", *arguments)
    assert result.exit_code == 2
    assert "Give --shard and --out together" in result.stderr


def test_the_kind_of_vectors_is_chosen_or_named(corpus):
    assert json.loads(run("corpus", "--json").stdout)["vectors"] == "flat"
    assert json.loads(run("corpus", "--vectors", "sq8", "--json").stdout)["vectors"] == "sq8"
    assert run("corpus", "--vectors", "round").exit_code == 2
    assert run("corpus", "--recall", "0").exit_code == 2


def test_what_is_spare_is_removed_and_counted(corpus):
    for port in (1, 2, 3):
        (corpus / "ports.md").write_text(f"# Guide\n\nThe service listens on port {port}.\n")
        run("corpus", "--keep-versions", "5")
    done = CliRunner().invoke(group, ["index", "gc", "docs", "--json"], catch_exceptions=False)
    removed = json.loads(done.stdout)
    assert (removed["versions"], removed["kept"], removed["spare"]) == (["000001"], ["000002", "000003"], 1)
    done = CliRunner().invoke(group, ["index", "gc", "docs", "--keep-versions", "0"], catch_exceptions=False)
    assert "index 'docs': 1 versions and 1 vectors removed" in done.stdout


def test_a_build_that_is_stopped_says_how_to_go_on(corpus, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("chatkit.retrieval.build.embed_missing", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare-index", "corpus"])
    assert stopped.value.code == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_progress_has_the_rate_and_the_time_that_is_left():
    from chatkit.cli._building import _line
    from chatkit.retrieval.building.progress import Progress

    cut = Progress("cut", 3, 9, chunks=40, chunks_per_s=80.0, skipped=1, eta_s=75.2)
    assert _line(cut) == "cut 3 of 9 files, 40 chunks, 80 chunks/s, 1 min 15 s left, 1 skipped"
    embed = Progress("embed", 9, 9, chunks=256, chunks_total=51200, embedded=128, chunks_per_s=7.0, eta_s=7277.7)
    assert _line(embed) == "embedded 256 of 51200 chunks of 9 files, 7 chunks/s, 2 h 01 min left, 0 skipped"


def test_a_missing_source_exits_with_wrong_input(corpus, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prepare-index", "corpsu"])
    assert stop.value.code == 2
    assert "'corpsu' does not exist" in capsys.readouterr().err
