"""Reports of wrong refusals: who may make one, what is kept of it, and what comes out."""

import base64
import json
import stat

import pytest
from click.testing import CliRunner

from chatkit import feedback
from chatkit.cli import group
from chatkit.cli.moderate import _rows as judged_rows
from chatkit.errors import ConfigError, InvalidRequest
from chatkit.evaluation.moderation import read_set
from chatkit.feedback import Feedback, rows
from chatkit.types import ModerationResult
from tests.server.conftest import open_site  # noqa: F401

pytestmark = pytest.mark.anyio
VERDICT = ModerationResult(True, "refuse", "needs intervention", "hate", {"hate": 1.0}, model="head", version="1f" * 32)
MESSAGE = "How do I kill a canary process?"


@pytest.fixture
def taking(tmp_path):
    return Feedback(tmp_path / "feedback.jsonl")


def file_of(taking):
    return taking._file


def test_a_report_is_a_row_of_an_evaluation_and_says_what_was_decided(taking) -> None:
    kept = taking.report(taking.token(VERDICT, "input", MESSAGE), MESSAGE)
    (row,) = rows(file_of(taking))
    assert (row["text"], row["flagged"], row["direction"], row["verified"]) == (MESSAGE, 0, "input", True)
    assert (row["label"], row["category"], row["model"], row["version"]) == (
        "needs intervention", "hate", "head", "1f" * 8,
    )  # fmt: skip
    assert row["id"] == kept.id


def test_no_text_is_kept_unless_it_is_sent_and_none_is_in_the_token(taking) -> None:
    token = taking.token(VERDICT, "input", MESSAGE)
    body = token.split(".")[0]
    assert "canary" not in token + base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
    assert not file_of(taking).exists()
    assert taking.report(token).verified is None
    assert "canary" not in file_of(taking).read_text()


def test_another_text_than_the_refused_one_is_not_kept_and_takes_no_place(taking) -> None:
    token = taking.token(VERDICT, "input", MESSAGE)
    assert taking.report(token, "a canary of my own").verified is False
    assert "canary of" not in file_of(taking).read_text()
    assert taking.report(token, MESSAGE).verified
    assert not taking.report(token, "a canary of my own").verified
    assert [(row["text"], row["verified"]) for row in rows(file_of(taking))] == [(MESSAGE, True)]


def test_a_report_that_is_sent_again_adds_nothing_not_even_in_another_process(taking) -> None:
    token = taking.token(VERDICT, "input", MESSAGE)
    assert [taking.report(token, text).new for text in (None, MESSAGE)] == [True, False]
    size = file_of(taking).stat().st_size
    for other in (taking, Feedback(file_of(taking))):
        for text in (None, MESSAGE, "something else"):
            assert not other.report(token, text).new
    assert file_of(taking).stat().st_size == size
    next_one = Feedback(file_of(taking))
    assert next_one.report(taking.token(VERDICT, "input", MESSAGE)).new
    again = taking.token(VERDICT, "input", MESSAGE)
    assert (next_one.report(again).new, taking.report(again).new) == (True, False)


def test_an_older_row_with_another_text_does_not_go_before_the_refused_message(taking) -> None:
    taking.report(taking.token(VERDICT, "input", MESSAGE), MESSAGE)
    (row,) = map(json.loads, file_of(taking).read_text().splitlines())
    with file_of(taking).open("a") as stream:
        stream.write(json.dumps({**row, "text": "a false one", "verified": False}) + "\n")
    assert [row["text"] for row in rows(file_of(taking))] == [MESSAGE]


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x1c", "\r\n", "\v\f"])
def test_a_text_with_line_ends_of_its_own_comes_out_whole_and_can_be_evaluated(taking, odd, tmp_path) -> None:
    text = f"hi{odd}there"
    taking.report(taking.token(VERDICT, "input", text), text)
    taking.report(taking.token(VERDICT, "input", MESSAGE), MESSAGE)
    assert [row["text"] for row in rows(file_of(taking))] == [text, MESSAGE]
    out = tmp_path / "wrong.jsonl"
    asked = ["moderation", "report", "--home", str(tmp_path), "--out", str(out)]
    assert CliRunner().invoke(group, asked, catch_exceptions=False).exit_code == 0
    assert [row.text for row in read_set(out)] == [text, MESSAGE]
    assert [row.text for row in judged_rows(str(out), "input")] == [text, MESSAGE]


def test_a_text_with_half_a_character_is_no_report(taking) -> None:
    token = taking.token(VERDICT, "input", "what?")
    with pytest.raises(InvalidRequest, match="half a character at 4"):
        taking.report(token, "what\ud800")


def test_a_folder_that_is_missing_is_named(tmp_path) -> None:
    asked = ["moderation", "report", "--home", str(tmp_path), "--out", str(tmp_path / "none" / "x.jsonl")]
    assert "cannot be written: No such file" in str(CliRunner().invoke(group, asked).exception)


def test_a_refusal_reported_twice_is_one_row(taking) -> None:
    token = taking.token(VERDICT, "output", MESSAGE)
    taking.report(token)
    taking.report(token, MESSAGE)
    taking.report(taking.token(VERDICT, "output", MESSAGE), MESSAGE)
    assert [row["text"] for row in rows(file_of(taking))] == [MESSAGE, MESSAGE]


@pytest.mark.parametrize(
    "broken", ["", ".", "x", "x.y", "é.x", "{body}.", "{body}x.{signature}", "{body}.{signature}x"]
)
def test_a_token_that_was_not_made_here_is_refused(taking, broken) -> None:
    body, signature = taking.token(VERDICT, "input", MESSAGE).split(".")
    with pytest.raises(InvalidRequest, match="none of this service's"):
        taking.report(broken.format(body=body, signature=signature))
    assert not file_of(taking).exists()


def test_a_token_of_another_service_is_refused(taking, tmp_path) -> None:
    other = Feedback(tmp_path / "other" / "feedback.jsonl")
    with pytest.raises(InvalidRequest):
        taking.report(other.token(VERDICT, "input", MESSAGE))


def test_a_token_is_good_for_a_week_and_after_a_restart(taking, monkeypatch) -> None:
    token = taking.token(VERDICT, "input", MESSAGE)
    assert Feedback(file_of(taking)).report(token)
    now = feedback.time.time()
    monkeypatch.setattr(feedback.time, "time", lambda: now + feedback.TOKEN_LIFE + 2)
    with pytest.raises(InvalidRequest, match="older than 7 days"):
        taking.report(token)


def test_key_and_reports_are_for_the_owner_alone(taking) -> None:
    taking.report(taking.token(VERDICT, "input", MESSAGE))
    for file in (file_of(taking), file_of(taking).with_suffix(".key")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_damaged_key_or_line_is_named(taking) -> None:
    file_of(taking).write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1 of"):
        list(rows(file_of(taking)))
    file_of(taking).with_suffix(".key").write_bytes(b"x")
    with pytest.raises(ConfigError, match="1 bytes, expected 32"):
        Feedback(file_of(taking))


def test_the_command_exports_what_was_sent_with_its_own_text(taking, tmp_path) -> None:
    taking.report(taking.token(VERDICT, "input", MESSAGE), MESSAGE)
    taking.report(taking.token(VERDICT, "input", MESSAGE))
    run = CliRunner()
    out = run.invoke(group, ["moderation", "report", "--home", str(tmp_path)], catch_exceptions=False)
    (row,) = map(json.loads, out.stdout.splitlines())
    assert (row["text"], row["flagged"]) == (MESSAGE, 0)
    file = tmp_path / "rows.jsonl"
    asked = ["moderation", "report", "--all", "--home", str(tmp_path), "--out", str(file)]
    assert run.invoke(group, asked).stdout == f"2 rows written to {file}\n"
    assert len(file.read_text().splitlines()) == 2


async def test_a_refusal_over_http_has_a_token_that_reports_it(open_site, taking) -> None:  # noqa: F811
    async with open_site(["Hello."]) as site:
        off = await site.ask("a canary")
        assert "feedback" not in off.json()["moderation"]
        refused = await site.client.post("/moderation/reports", json={"token": "x.y"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
        site.service.feedback = taking
        assert "feedback" not in (await site.ask("hello")).json()["moderation"]
        token = (await site.ask("a canary")).json()["moderation"]["feedback"]
        done = (await site.stream("a canary"))[-1]
        assert done["moderation"]["feedback"] != token
        taken = await site.client.post("/moderation/reports", json={"token": token, "text": "a canary"})
        assert (taken.status_code, taken.json()["verified"], taken.json()["text_kept"]) == (202, True, True)
        for body in ({"token": token + "x"}, {"token": 3}, {"token": token, "why": "x"}, {}):
            assert (await site.client.post("/moderation/reports", json=body)).status_code == 422
        chat = {"messages": [{"role": "user", "content": "a canary"}]}
        openai = (await site.client.post("/v1/chat/completions", json=chat)).json()
        assert openai["chatkit"]["moderation"]["feedback"]
    assert [row["text"] for row in rows(file_of(taking))] == ["a canary"]
