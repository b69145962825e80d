import json

import pytest
from click.testing import CliRunner

from chatkit.cli import group, main


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
    assert 0.35 <= float(score) <= 1.0
    assert place == "Guide > Ports"
    assert lines[1].strip() == "guide.md:19-52"
    assert lines[2].strip() == "The service listens on port 8080."


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
    assert "nothing in 'docs' has a score of 0.35 or more" in result.stderr


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
