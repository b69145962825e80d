"""`/regenerate` and `/edit` in the shell: an answer or a message gets another one in its place, and nothing is lost."""

import asyncio
import json

import pytest

from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
from tests.cli.test_chat import Shell
from tests.cli.test_chat_piped import pipe, shell_at
from tests.server.conftest import open_site  # noqa: F401

SAMPLED = (
    "asking with temperature 0.7, since at 0 the same answer would come; /hyperparameters temperature=… sets another"
)


def kept_of(home, session: str) -> list[tuple]:
    """Return what is stored of a session, hidden turns too: number, status, message, and the number it replaces."""
    store = SQLiteStore(home / "sessions.sqlite3")
    try:
        turns = asyncio.run(store.page(Owner(), session, limit=99))
    finally:
        store.close()
    return [(turn.seq, turn.status, turn.user, turn.replaces) for turn in turns]


def seen_of(shell: Shell, session: str) -> list[tuple[int, str]]:
    return [(turn.seq, turn.user) for turn in shell.turns(session)]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def test_an_answer_is_made_again_in_its_place_and_samples_where_no_temperature_was_chosen(home) -> None:
    with Shell(home) as shell:
        shell.say("echo one")
        assert "temperature 0.0, 2 messages." in shell.say("echo two")
        shown = shell.say("/regenerate").replace("\n", " ")
        assert SAMPLED in shown
        assert "temperature 0.7, 2 messages." in shown
        shell.say("/hyperparameters temperature=0.3 seed=4")
        shown = shell.say("/regenerate")
        assert "seed is set to 4, so the same answer may come; /hyperparameters seed= takes it back" in shown
        assert "temperature 0.3, 2 messages." in shown
        session = shell.session()
        assert seen_of(shell, session) == [(1, "echo one"), (4, "echo two")]
        assert kept_of(home, session) == [
            (1, "complete", "echo one", None),
            (2, "complete", "echo two", None),
            (3, "complete", "echo two", 2),
            (4, "complete", "echo two", 3),
        ]
        assert "temperature 0.3, 3 messages." in shell.say("echo three")
        shell.leave()


def test_a_message_is_edited_and_the_model_no_longer_sees_the_old_one(home) -> None:
    with Shell(home) as shell:
        shell.say("echo one")
        shell.say("echo the wrong thing")
        assert "temperature 0.0, 2 messages." in shell.say("/edit echo the right thing")
        prompt = shell.say("/raw_prompt")
        assert "right thing" in prompt
        assert "wrong thing" not in prompt
        session = shell.session()
        assert seen_of(shell, session) == [(1, "echo one"), (3, "echo the right thing")]
        assert kept_of(home, session)[1] == (2, "complete", "echo the wrong thing", None)
        shell.leave()
    assert json.dumps("/edit echo the right thing") in (home / "chat_history").read_text()


def test_where_there_is_nothing_to_replace_it_says_so_and_sends_nothing(home) -> None:
    nothing = "nothing was said in this conversation here yet; send a message first"
    with Shell(home, "--session", "my-session") as shell:
        for command in ("/regenerate", "/edit echo it"):
            assert nothing in shell.say(command)
        assert "/edit is without a text, expected /edit TEXT" in shell.say("/edit")
        assert "expected nothing; nothing was done" in shell.say("/regenerate now")
        shell.say("/raw_say echo alone")
        assert nothing in shell.say("/regenerate")
        shell.say("echo one")
        shell.say("/raw_say echo alone")
        assert "1 messages." in shell.say("/regenerate")  # the last turn of the conversation, not the raw one
        shell.say("/session another-session")
        assert nothing in shell.say("/regenerate")
        shell.say("/reset")
        assert nothing in shell.say("/edit echo it")
        assert [row[0] for row in kept_of(home, "my-session")] == [1, 2]
        shell.leave()


def test_what_was_stopped_hides_nothing_and_may_be_edited_or_made_again(home) -> None:
    with Shell(home) as shell:
        shell.say("echo one")
        stop(shell, "go slowly")
        assert "the last message has no answer to replace; /again asks for one" in shell.say("/regenerate")
        assert ", 2 messages." in shell.say("/edit echo two")
        stop(shell, "/edit go slowly, please")
        session = shell.session()
        assert seen_of(shell, session) == [
            (1, "echo one"), (2, "go slowly"), (3, "echo two"), (4, "go slowly, please"),
        ]  # fmt: skip
        assert ", 2 messages." in shell.say("/edit echo three")
        assert seen_of(shell, session) == [(1, "echo one"), (2, "go slowly"), (5, "echo three")]
        assert [row[3] for row in kept_of(home, session)] == [None, None, None, 3, 3]
        shell.leave()


def stop(shell: Shell, line: str) -> None:
    shell.type(line)
    shell.child.expect("Word2 follows it. ")
    shell.child.interrupt()
    assert shell.prompt().endswith("[stopped]\n")


def test_a_refused_message_is_edited_into_one_that_is_answered(home) -> None:
    with Shell(home) as shell:
        assert "[refused: needs intervention]" in shell.say("a canary question")
        assert ", 1 messages." in shell.say("/edit echo it")
        assert "[refused: needs intervention]" in shell.say("/edit another canary question")
        session = shell.session()
        # What is refused takes no place: the answered one still stands.
        assert [(turn.seq, turn.status) for turn in shell.turns(session)] == [(2, "complete"), (3, "blocked")]
        assert ", 1 messages." in shell.say("/edit echo something else")
        assert seen_of(shell, session) == [(4, "echo something else")]
        assert kept_of(home, session)[-1] == (4, "complete", "echo something else", 2)
        assert ", 2 messages." in shell.say("echo on")
        shell.leave()


def test_in_a_pipe_they_are_lines_like_any_other(home) -> None:
    done = pipe("echo one\n/regenerate\n/edit echo two\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "temperature 0.0, 1 messages.", "temperature 0.7, 1 messages.", "temperature 0.0, 1 messages.",
    ]  # fmt: skip
    assert SAMPLED in done.stderr
    done = pipe("/regenerate\n", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "invalid_request"


@pytest.mark.anyio
async def test_behind_an_address_they_are_the_same(open_site) -> None:  # noqa: F811
    async with open_site(["one ", "answer"]) as site:
        at = f"http://{site.host}:{site.port}"
        lines = "a port\n/regenerate\n/edit another port\n"
        out, err = await shell_at(at, lines, "--session", "my-session", "--no-retrieval")
        assert out == "one answer\n" * 3
        assert SAMPLED in err
        turns = await site.store.page(Owner(), "my-session", limit=9)
        assert [(turn.seq, turn.user, turn.replaces) for turn in turns] == [
            (1, "a port", None), (2, "a port", 1), (3, "another port", 2),
        ]  # fmt: skip
        assert [turn.seq for turn in await site.turns()] == [3]
        assert site.model.prompts[-1].count("<human>:") == 1
