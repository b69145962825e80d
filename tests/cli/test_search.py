import json

import pytest
from click.testing import CliRunner

from chatkit.cli import group, main
from chatkit.cli.search import _shown
from chatkit.types import Passage


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    (tmp_path / "guide.md").write_text("# Guide\n\n## Ports\n\nThe service listens on port 8080.\n")
    monkeypatch.chdir(tmp_path)
    assert run("prepare-index", "guide.md").exit_code == 0


def run(*arguments):
    return CliRunner().invoke(group, [*arguments], catch_exceptions=False)


def test_a_hit_is_printed_with_score_place_offsets_and_words(indexed):
    lines = run("search", "Which port does the service listen on?").stdout.splitlines()
    score, place = lines[0].split("  ", 1)
    assert 0.33 <= float(score) <= 1.0
    assert place == "Guide > Ports"
    assert lines[1].strip() == "guide.md:19-52"
    assert lines[2].strip() == "The service listens on port 8080."


def test_titles_and_texts_cannot_speak_to_the_terminal_and_text_without_spaces_is_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    escapes = "\x1b]0;pwned\x07\x1b[2J"
    (tmp_path / "a.md").write_text(f"# Harbour {escapes}\n\nBoats {escapes} moor here.\n")
    assert run("prepare-index", "a.md").exit_code == 0
    shown = CliRunner().invoke(group, ["search", "boats moor in the harbour", "-k", "1"], color=True).stdout
    assert "pwned" in shown
    assert not set(shown) & set("\x1b\x07")
    *_, text = _shown(Passage("a", "港口的船只每天早上出海" * 40)).rstrip().splitlines()
    assert (len(text.strip()), text[-2:]) == (240 + 2, " …")


def test_json_carries_every_field_of_the_passages(indexed):
    answer = json.loads(run("search", "Which port does the service listen on?", "-k", "1", "--json").stdout)
    assert (answer["index"], len(answer["passages"])) == ("docs", 1)
    passage = answer["passages"][0]
    assert (passage["source"], passage["start"], passage["end"]) == ("guide.md", 19, 52)
    assert passage["text"] == "The service listens on port 8080."


def test_nothing_relevant_is_said_on_stderr_and_stdout_stays_empty(indexed):
    result = run("search", "hello")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "nothing in 'docs' has a score of 0.33 or more" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--index", "absent"], 3, "chatkit prepare-index"),
        (["-k", "0"], 2, "k is 0"),
        (["--index", ""], 2, "expected the name of an index"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_an_exit_code(indexed, capsys, arguments, code, words):
    with pytest.raises(SystemExit) as stop:
        main(["search", "port", *arguments])
    assert stop.value.code == code
    assert words in capsys.readouterr().err


def test_where_neighbours_and_weight_reach_the_search(indexed, tmp_path):
    (tmp_path / "other.md").write_text("# Other\n\n## Doors\n\nThe harbour has ports for ships.\n")
    assert run("prepare-index", "guide.md", "other.md").exit_code == 0
    query = "Which port does the service listen on?"

    def sources(*options):
        answer = json.loads(run("search", query, "--json", "--min-score", "-1", *options).stdout)
        return [passage["source"] for passage in answer["passages"]]

    assert sources() == ["guide.md", "other.md"]
    assert sources("--where", "source=o*.md") == ["other.md"]
    assert sources("--where", "source=*.md", "--where", "title=Guide") == ["guide.md"]
    assert sources("--where", "source=absent") == []
    assert sources("-k", "1", "--neighbours", "2", "--dense-weight", "0") == ["guide.md"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["port", "--where", "source"], 2, "--where is 'source', expected NAME=PATTERN"),
        (["port", "--where", "author=me"], 2, "where has 'author', expected each of source, title, document"),
        (["port", "--where", "source=[z-a]"], 2, "'[z-a]' is no pattern for source"),
        (["port", "--where", "source="], 2, "the pattern for source has 0 characters"),
        (["port", "--dense-weight", "2"], 2, "dense_weight is 2"),
        (["port\udcff"], 2, "half a character"),
    ],
)
def test_a_search_that_cannot_be_made_says_why(indexed, capsys, arguments, code, words):
    with pytest.raises(SystemExit) as stop:
        main(["search", *arguments])
    assert stop.value.code == code
    assert words in capsys.readouterr().err


def test_blank_queries_find_nothing_and_are_no_error(indexed):
    result = run("search", "  ")
    assert (result.exit_code, result.stdout) == (0, "")
