"""`chatkit ask`: one turn here, its answer on stdout and its sources on stderr; around the wiring with fakes."""

import asyncio
import json

import pytest
from click.testing import CliRunner

from chatkit import cli, wiring
from chatkit.errors import EngineFailed
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, ListRetriever, MemoryStore, ScriptedModel
from chatkit.types import Owner, Passage

PASSAGES = [Passage("p1", "chatkit listens on port 8080", title="Serving", source="serving.md", score=0.876)]


@pytest.fixture
def ask(monkeypatch):
    """Return a function that asks a service with the given reply and hands back the result and the service."""

    def asked(*arguments: str, reply=("It listens ", "on 8080.")):
        made = []

        async def build(settings):
            service = OpenChatKitService(
                ScriptedModel(reply),
                KeywordModerator(["canary"]),
                MemoryStore(),
                retriever=ListRetriever(PASSAGES) if settings.index else None,
            )
            made.append((service, settings))
            return service

        monkeypatch.setattr(wiring, "build_service", build)
        return CliRunner().invoke(cli.group, ["ask", *arguments]), *made[0]

    return asked


def test_the_answer_goes_to_stdout_and_its_sources_to_stderr(ask) -> None:
    result, _, _ = ask("Which port does chatkit use here")
    assert result.exit_code == 0
    assert result.stdout == "It listens on 8080.\n"
    assert result.stderr == "[1] 0.88 serving.md Serving\n"


def test_json_is_one_object_with_everything(ask) -> None:
    result, _, _ = ask("--json", "Which port does chatkit use here")
    table = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert (table["outputs"], table["finish_reason"]) == ("It listens on 8080.", "stop")
    assert table["sources"][0]["source"] == "serving.md"
    assert table["session_id"].startswith("s-")
    assert result.stderr == ""


def test_without_retrieval_no_index_is_opened(ask) -> None:
    result, _, settings = ask("--no-retrieval", "Which port does chatkit use here")
    assert settings.index == ""
    assert result.stderr == ""


def test_a_blocked_message_says_so_and_the_text_is_not_shown(ask) -> None:
    result, _, _ = ask("a canary question")
    assert result.exit_code == 0
    assert "I cannot help with that. [needs intervention]" in result.stdout


def test_a_blocked_answer_is_withdrawn(ask) -> None:
    result, _, _ = ask("Hello", reply=("The first sentence is here. ", "Now the canary sings."))
    assert result.stdout == "The first sentence is here. \nI cannot help with that. [needs intervention]\n"


def test_the_settings_of_a_reply_reach_the_model(ask) -> None:
    result, service, _ = ask("Hello", "--max-new-tokens", "1", "--json")
    assert json.loads(result.stdout)["finish_reason"] == "length"
    assert service.model.tokens_made == 1


def test_a_failing_engine_is_raised_for_the_exit_code(ask) -> None:
    result, _, _ = ask("Hello", reply=(EngineFailed("the engine stopped"),))
    assert isinstance(result.exception, EngineFailed)
    assert cli.exit_code(result.exception) == 4


def test_an_unknown_session_is_not_found_and_an_empty_message_invalid(ask) -> None:
    result, _, _ = ask("--session", "s-unknown-one", "Hello")
    assert cli.exit_code(result.exception) == 3
    result, _, _ = ask(" ")
    assert cli.exit_code(result.exception) == 2


@pytest.mark.parametrize(
    ("key", "named", "owner"),
    [
        ("", [], Owner()),
        ("a-secret-key-of-16", [], Owner(user="key")),
        ("a-secret-key-of-16", ["--user", "alice", "--tenant", "acme"], Owner("acme", "alice")),
    ],
)
def test_the_turn_is_of_the_owner_that_a_service_with_these_settings_has_or_of_the_one_named(
    ask, monkeypatch, key, named, owner
) -> None:
    if key:
        monkeypatch.setenv("CHATKIT_API_KEY", key)
    result, service, _ = ask("--session", "my-session", *named, "Hello")
    assert result.exit_code == 0, result.exception
    seen = {
        someone: len(asyncio.run(service._store.load(someone, "my-session", limit=9)))
        for someone in (Owner(), Owner(user="key"), Owner("acme", "alice"))
    }
    assert {someone for someone, turns in seen.items() if turns} == {owner}


def test_with_a_file_of_keys_it_asks_whose_the_turn_is_before_anything_loads(monkeypatch) -> None:
    monkeypatch.setenv("CHATKIT_KEYS_FILE", "keys.toml")
    result = CliRunner().invoke(cli.group, ["ask", "Hello"])
    assert cli.exit_code(result.exception) == 2
    assert str(result.exception) == "keys_file 'keys.toml' has several owners; say whose with --user, and --tenant"
