"""`chatkit eval retrieval` as it is called."""

import json
import re

import pytest
from click.testing import CliRunner

from chatkit.cli import group, main

TEXTS = {"a": "The service listens on port 8080.", "b": "Bread rises for two hours.", "c": "A boat needs two lines."}
QUERIES = {"1": ("Which port does the service use?", "a"), "2": ("How is a vessel moored with lines?", "c")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    lines = {
        "corpus.jsonl": [json.dumps({"_id": key, "title": "", "text": text}) for key, text in TEXTS.items()],
        "queries.jsonl": [json.dumps({"_id": key, "text": text}) for key, (text, _) in QUERIES.items()],
        "qrels/test.tsv": ["query-id\tcorpus-id\tscore", *(f"{key}\t{row[1]}\t1" for key, row in QUERIES.items())],
    }
    for name, rows in lines.items():
        (tmp_path / "set" / name).write_text("\n".join(rows) + "\n")
    monkeypatch.setenv("CHATKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "set"


def test_one_object_of_figures_is_printed_and_vectors_and_picture_are_kept(folder, tmp_path, models_dir):
    called = ["eval", "retrieval", str(folder), "--models-dir", str(models_dir)]
    result = CliRunner().invoke(
        group, [*called, "--json", "--picture", str(tmp_path / "p.svg")], catch_exceptions=False
    )
    answer = json.loads(result.stdout)
    assert answer["command"] == "eval retrieval"
    assert answer["settings"]["encoder"] == "all-MiniLM-L6-v2"
    assert answer["figures"]["hybrid.ndcg@10"] == answer["figures"]["dense.mrr@10"] == 1
    assert {"version", "machine", "rows"} <= answer.keys()
    assert "encoded 3 of 3" in result.stderr
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert len(list((tmp_path / "home" / "evaluation").glob("*.npy"))) == 1

    table = CliRunner().invoke(group, [*called, "--limit", "1"], catch_exceptions=False)
    assert re.search(r"^  hybrid\.ndcg@10 +1\.000$", table.stdout, re.M)
    assert re.search(r"^  queries +1$", table.stdout, re.M)
    assert "encoded" not in table.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["absent"], 3, "expected a folder in the BEIR layout"),
        (["set", "--split", "dev"], 3, "the splits there are: test"),
        (["set", "--limit", "-2"], 2, "limit is -2"),
        (["set", "--limit", "few"], 2, "limit"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_an_exit_code(folder, capsys, monkeypatch, arguments, code, words):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(SystemExit) as stop:
        main(["eval", "retrieval", *arguments])
    assert stop.value.code == code
    assert words in capsys.readouterr().err
