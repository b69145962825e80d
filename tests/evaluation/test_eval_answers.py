"""`eval answers` on a small set and the default models: the real turn, asked three ways."""

import json

import pytest
from click.testing import CliRunner

from chatkit.cli.eval_answers import answers
from chatkit.errors import InvalidRequest, NotFound
from chatkit.evaluation.answers import WAYS, AnswerEval, answer_figures, eval_answers
from chatkit.settings import load_settings

CORPUS = [
    ("d/1", "Nebelhorn", "The lighthouse at Port Hale was built in 1871. It is painted red. Ships have used it since."),
    ("d/2", "Library", "The town library was designed by Ada Brandt. Its reading room holds four hundred people."),
    ("d/3", "Bees", "Bees of the genus Osmia nest alone. Each female seals her cells with mud."),
]
QUERIES = [
    ("q1", "When was the lighthouse at Port Hale built?", ["1871"], "d/1", {}),
    ("q2", "Who designed the town library?", ["Ada Brandt"], "d/2", {}),
    ("q3", "And what do the females seal their cells with?", ["mud"], "d/3", {
        "history": [
            {"role": "user", "text": "Do bees of the genus Osmia nest alone?"}, {"role": "assistant", "text": "Yes."},
        ],
    }),
    ("q4", "How long is the pier of the lighthouse at Port Hale?", ["It is not said."], "", {
        "answerability": "UNANSWERABLE",
    }),
    ("q5", "How high is it?", ["Some of it is said."], "d/1", {"answerability": "PARTIAL"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("set")
    (made / "qrels").mkdir()
    rows = [{"_id": key, "title": title, "text": text} for key, title, text in CORPUS]
    (made / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": key, "text": text, "metadata": {"answers": said, **more}} for key, text, said, _, more in QUERIES]
    (made / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [f"{key}\t{document}\t1\n" for key, _, _, document, _ in QUERIES if document]
    (made / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(pairs))
    return made


def test_every_question_is_asked_alone_with_what_is_found_and_with_the_right_passage(folder, models_dir) -> None:
    seen = []
    report = eval_answers(
        load_settings({"models_dir": str(models_dir)}),
        folder,
        AnswerEval(max_new_tokens=24),
        lambda done, total: seen.append((done, total)),
    )
    assert report.command == "eval answers"
    assert seen == [(n, 10) for n in range(1, 11)]  # three ways of three, and the unanswerable one
    by_id = {row["id"]: row for row in report.rows}
    for row in report.rows[:3]:
        assert row["sources"][0] == dict((key, document) for key, _, _, document, _ in QUERIES)[row["id"]]
        assert set(row) >= {"closed", "retrieved", "gold"}
        assert row["sentences"] >= row["supported"] >= 0
        assert 0 < row["copied_document"] <= 1
    assert "1871" in by_id["q1"]["gold"]["reply"]
    assert by_id["q1"]["gold"]["contains"]
    assert set(by_id["q4"]) & {"closed", "gold"} == set()
    figures = report.figures
    assert figures["questions"] == 3
    assert figures["contains.gold"] > figures["contains.closed"] == 0.0
    assert figures["unanswerable.questions"] == 1
    assert figures["unanswerable.answered_with_source"] == 1.0  # the passage is about the lighthouse, not its pier
    assert 0 < figures["reply_words"] <= 24
    assert figures["with_source"] == 1.0
    assert report.settings["sampling"] == "greedy"
    assert json.loads(report.as_json())["figures"] == figures


def test_a_set_without_answers_is_refused(folder, tmp_path) -> None:
    with pytest.raises(NotFound, match="BEIR"):
        eval_answers(load_settings(), tmp_path, AnswerEval())
    (tmp_path / "qrels").mkdir()
    for name in ("corpus.jsonl", "qrels/test.tsv"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "What?"}\n')
    with pytest.raises(InvalidRequest, match=r"metadata\.answers"):
        eval_answers(load_settings(), tmp_path, AnswerEval())


@pytest.mark.parametrize("values", [{"limit": -1}, {"at_once": 0}])
def test_a_bound_is_named(values) -> None:
    with pytest.raises(InvalidRequest, match="expected at least 0 and 1"):
        AnswerEval(**values)


def row(**more):
    way = {"reply": "x", "finish_reason": "stop", "words": 4, "contains": True, "f1": 0.5, "em": False}
    closed = way | {"contains": False, "f1": 0.0, "words": 8}
    told = {
        "answerable": True,
        "closed": closed,
        "retrieved": way,
        "gold": way,
        "sources": ["d"],
        "copied": 0.2,
        "copied_document": 0.1,
        "quoted": 0.9,
    }
    return told | {"sentences": 2, "supported": 1, "citations_ms": 3.0} | more


def test_the_figures_are_means_over_the_answerable_questions() -> None:
    bare = {"reply": "y", "finish_reason": "stop", "words": 9}
    unanswerable = row(answerable=False, retrieved=bare, supported=0)
    figures = answer_figures([row(), row(copied=0.6, quoted=0.5, sources=[], sentences=0, supported=0), unanswerable])
    assert figures["contains.retrieved"] == figures["contains.gold"] == 1.0
    assert (figures["contains.closed"], figures["f1.retrieved"], figures["em.gold"]) == (0.0, 0.5, 0.0)
    assert (figures["reply_words"], figures["reply_words.closed"]) == (4.0, 8.0)
    assert (figures["copied_half"], figures["supported"], figures["with_source"]) == (0.5, 0.5, 0.5)
    assert (figures["quoted_half"], figures["copied_half.document"]) == (0.5, 0.0)
    assert figures["unanswerable.answered_with_source"] == 1.0
    assert figures["unanswerable.answered_with_support"] == 0.0


def test_the_retrieved_replies_alone_have_their_figures_alone() -> None:
    told = {key: value for key, value in row().items() if key not in ("closed", "gold")}
    figures = answer_figures([told])
    assert (figures["contains.retrieved"], figures["reply_words"]) == (1.0, 4.0)
    assert not any(name.endswith((".closed", ".gold")) for name in figures)
    assert (AnswerEval(only_retrieved=True).ways, AnswerEval().ways) == (("retrieved",), WAYS)


def test_the_command_names_a_folder_that_is_none(tmp_path) -> None:
    result = CliRunner().invoke(answers, [str(tmp_path / "none"), "--limit", "3"])
    assert isinstance(result.exception, NotFound)
    assert result.stdout == ""
