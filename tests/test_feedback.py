"""Reports of wrong refusals: who may make one, what is kept of it, and what comes out."""

import base64
import json
import stat

import pytest
from click.testing import CliRunner

from chatkit import feedback
from chatkit.cli import group
from chatkit.errors import ConfigError, InvalidRequest
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


def test_another_text_than_the_refused_one_is_marked(taking) -> None:
    assert taking.report(taking.token(VERDICT, "input", MESSAGE), "something else").verified is False


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
