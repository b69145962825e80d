"""`chatkit chat` without a terminal: a queue of lines in, answers on stdout, the rest on stderr."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from chatkit.cli._screens import error_line
from chatkit.cli._shell import _next_step
from chatkit.errors import Conflict, NotFound, TooLarge, Unavailable
from chatkit.types import Owner
from tests.cli.test_chat import turns_of
from tests.client.test_native import Wire
from tests.server.conftest import open_site  # noqa: F401
from tests.serving import ROOT

COMMAND = [sys.executable, "-W", "error", "-m", "tests.cli.shell_on_fakes"]
SHELL = [sys.executable, "-W", "error", "-m", "chatkit", "chat"]


def pipe(lines: str | bytes, *flags: str, command=COMMAND) -> subprocess.CompletedProcess:
    given = lines.encode() if isinstance(lines, str) else lines
    done = subprocess.run([*command, *flags], cwd=ROOT, input=given, capture_output=True, timeout=60, check=False)
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def test_answers_alone_are_on_stdout_and_no_escape_codes_anywhere() -> None:
    done = pipe("Which port is it?\r\n\n   \n/hyperparameters temperature=0.5\necho it\n/sources\n")
    assert done.returncode == 0
    assert done.stdout == "It listens on port 8080.\ntemperature 0.5, 2 messages.\n"
    assert "[1] 0.88 serving.md Serving - Ports\n" in done.stderr
    assert ">>>" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "go on with: chatkit chat --session s-" in done.stderr


def test_quit_ends_it_before_the_last_line_which_needs_no_line_end() -> None:
    assert pipe("echo one\n/quit\necho two\n").stdout == "temperature 0.0, 1 messages.\n"
    assert pipe("echo one\necho two").stdout == "temperature 0.0, 1 messages.\ntemperature 0.0, 2 messages.\n"
    assert (pipe("").returncode, pipe("").stdout) == (0, "")


def test_json_is_one_object_a_turn_with_nothing_a_terminal_would_obey() -> None:
    done = pipe("Which port is it?\na canary question\nevil port\n/reset\necho\n", "--json")
    first, refused, evil, last = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["outputs"], first["finish_reason"]) == ("It listens on port 8080.", "stop")
    assert [source["source"] for source in first["sources"]] == ["serving.md", "evil.md"]
    assert (refused["outputs"], refused["moderation"]["flagged"]) == ("I cannot help with that.", True)
    assert first["session_id"] == refused["session_id"] != last["session_id"]
    assert evil["outputs"] == "Look: \x1b[31mred\x1b]0;owned\x07 \x9b2J \u202eback\rover."
    assert not set("\x1b\x07\x9b\u202e\r") & set(done.stdout)
    assert "serving.md" not in done.stderr


def test_a_failed_turn_a_bad_command_and_bad_bytes_go_to_stderr_and_the_shell_goes_on() -> None:
    done = pipe(b"fail now\n/nothing\n\xff\xfe\nplease withdraw this\necho on\n")
    assert done.returncode == 4  # that of the first failure
    # Neither the half answer nor the withdrawn one reaches the pipe.
    assert done.stdout == "I cannot help with that. [refused: needs intervention]\ntemperature 0.0, 1 messages.\n"
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told[0] == "error: the engine stopped; send it again later"
    assert told[1].startswith("error: '/nothing' is no command, /help lists the commands; nothing was sent")
    assert told[2] == "error: line 3 is not UTF-8: byte 0xff; nothing was sent"
    assert len(told) == 3


def test_the_exit_code_is_that_of_the_first_line_that_failed() -> None:
    assert pipe("fail now\n").returncode == 4
    assert pipe("/nothing\nfail now\necho on\n").returncode == 2
    assert pipe("a canary question\n").returncode == 0  # a refusal is a result


def test_a_failed_turn_is_an_object_too() -> None:
    done = pipe(b"fail now\n\xff\necho on\n", "--json")
    failed, unread, answered = (json.loads(line) for line in done.stdout.splitlines())
    assert failed == {"error": {"code": "engine_failed", "message": "the engine stopped"}}
    assert unread["error"]["code"] == "invalid_request"
    assert answered["outputs"] == "temperature 0.0, 1 messages."
    assert done.returncode == 4
    assert done.stderr.count("error: ") == 2


def test_a_step_is_said_once_and_none_is_a_command_where_nobody_types() -> None:
    told = TooLarge("the message is over the window; send a shorter message or ask for fewer max_new_tokens")
    assert error_line(told, *_next_step(told)[1:]) == f"error: {told}"
    assert error_line(TooLarge("too long"), "send a shorter message") == "error: too long; send a shorter message"
    for error in (Conflict("x"), Unavailable("x"), NotFound("no session"), NotFound("no index"), TooLarge("x")):
        typed, piped = _next_step(error)
        assert typed
        assert piped
        assert "/" not in piped


@pytest.mark.parametrize("session", ["bad id", "short", "s-ends-with-a-newline\n", "x" * 129])
def test_a_session_that_cannot_be_is_refused_before_anything_loads(session) -> None:
    done = pipe("hello\n", "--session", session)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --session is ")
    assert "expected 8 to 128 letters, digits or any of ._~:@-" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_session_that_cannot_be_is_refused_by_the_command_and_the_old_one_stays() -> None:
    done = pipe("/session bad id\necho one\n", "--session", "my-session")
    assert done.returncode == 2
    assert "the session is 'bad id', expected" in done.stderr
    assert done.stderr.endswith("go on with: chatkit chat --session my-session\n")


def test_how_to_go_on_is_said_only_where_there_is_something_to_go_on_with() -> None:
    assert "go on with" not in pipe("/sources\n", "--session", "my-session").stderr
    assert "go on with" not in pipe("hello\n", "--url", "http://127.0.0.1:9", "--session", "my-session").stderr


@pytest.mark.parametrize(
    ("closed", "told"),
    [
        ("<&-", "error: standard input is closed, expected a terminal, a pipe or a file\n"),
        (">&-", "error: standard output is closed, expected a terminal, a pipe or a file\n"),
        ("0>/dev/null", "loading the models …\nerror: [Errno 9] Bad file descriptor\n"),
        (">/dev/full", "loading the models …\nerror: [Errno 28] No space left on device\n"),
    ],
)
def test_a_stream_that_cannot_be_used_is_one_line(closed, told) -> None:
    command = f"{shlex.join(COMMAND)} --index '' {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, input="hi\n", text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, told)


def test_control_characters_are_pictures_on_both_streams() -> None:
    done = pipe("evil port\n")
    assert done.stdout == "Look: ␛[31mred␛]0;owned␇ �2J �backover.\n"
    assert "[2] 0.50 evil.md �Red�" in done.stderr


def test_a_conversation_here_is_of_the_owner_that_the_settings_have_or_of_the_one_named(tmp_path, monkeypatch) -> None:
    home = tmp_path / "home"

    def who_has(session: str) -> set[str]:
        return {user for user in ("anonymous", "key", "alice") if turns_of(home, session, Owner(user=user))}

    pipe("echo one\n", "--session", "session-1")
    pipe("echo one\n", "--session", "session-2", "--api-key", "a-secret-key-of-16")
    monkeypatch.setenv("CHATKIT_KEYS_FILE", "keys.toml")
    done = pipe("echo one\n", "--session", "session-3", "--user", "alice")
    assert done.stderr.endswith("go on with: chatkit chat --user alice --session session-3\n")
    done = pipe("echo one\n", "--session", "session-4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: keys_file 'keys.toml' has several owners; say whose with --user, and --tenant\n"
    assert [who_has(f"session-{number}") for number in (1, 2, 3, 4)] == [{"anonymous"}, {"key"}, {"alice"}, set()]


def test_no_line_of_a_pipe_is_kept(tmp_path) -> None:
    pipe("a plain question\n")
    assert (tmp_path / "home" / "sessions.sqlite3").exists()
    assert not list(tmp_path.rglob("chat_history"))


def test_ctrl_c_ends_it_while_it_waits_for_a_line() -> None:
    with subprocess.Popen(COMMAND, cwd=ROOT, stdin=-1, stdout=-1, stderr=-1) as child:
        assert child.stderr.readline().decode() == "loading the models …\n"
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        assert child.stdout.read() == b""
        assert child.stderr.read() == b"interrupted\n"


def test_ctrl_c_ends_it_while_it_answers_and_the_turn_is_stored_as_aborted(tmp_path) -> None:
    home = tmp_path / "home"
    with subprocess.Popen([*COMMAND, "--session", "my-session"], cwd=ROOT, stdin=-1, stdout=-1, stderr=-1) as child:
        child.stdin.write(b"echo once\ngo slowly\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"temperature 0.0, 1 messages.\n"
        for _ in range(1000):
            if len(turns_of(home, "my-session")) == 2:
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        assert child.stdout.read() == b""
        assert child.stderr.read().endswith(b"interrupted\n")
    assert [(turn.user, turn.status) for turn in turns_of(home, "my-session")] == [
        ("echo once", "complete"),
        ("go slowly", "aborted"),
    ]


def test_what_does_not_fit_is_refused_before_anything_loads() -> None:
    done = pipe("hello\n", "--url", "http://127.0.0.1:1", "--policy", "strict", command=SHELL)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--policy is for the service at http://127.0.0.1:1 to decide" in done.stderr
    done = pipe("hello\n", "--url", "http://127.0.0.1:1", "--user", "alice", command=SHELL)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--user is for the service at http://127.0.0.1:1 to decide" in done.stderr
    done = pipe("hello\n", "--url", "127.0.0.1:8080", command=SHELL)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected http://HOST:PORT" in done.stderr


async def shell_at(url, lines, *flags, code=0, **environment):
    """Run a shell on an address beside the server of this very loop, and expect its exit code."""
    child = await asyncio.create_subprocess_exec(
        *SHELL, "--url", url, *flags, cwd=ROOT, env={**os.environ, **environment}, stdin=-1, stdout=-1, stderr=-1
    )
    out, err = await asyncio.wait_for(child.communicate(lines.encode()), 60)
    assert child.returncode == code
    return out.decode(), err.decode()


@pytest.mark.anyio
async def test_a_dropped_connection_is_asked_again_and_makes_no_second_turn(open_site) -> None:  # noqa: F811
    async with open_site(["It listens on port 8080."]) as site, Wire(site, [40]) as wire:
        out, err = await shell_at(wire.address, "Which port is it?\n", "--session", "my-session")
        assert out == "It listens on port 8080.\n"
        assert err.count("asking again") == 1
        assert [(turn.seq, turn.status) for turn in await site.turns()] == [(1, "complete")]
        assert wire.connections == 2


@pytest.mark.anyio
async def test_a_connection_that_breaks_mid_answer_is_an_error_and_again_finds_the_turn(open_site) -> None:  # noqa: F811
    pieces = [f"This is sentence number {n}. " for n in range(40)]
    async with open_site(pieces, delay=0.005) as site, Wire(site, [1500]) as wire:
        out, err = await shell_at(wire.address, "Hello there\n/again\n", "--session", "my-session", code=4)
        assert out.strip() == "".join(pieces).strip()
        assert "broke before the answer was complete; send it again later" in err
        assert [(turn.seq, turn.attempt, turn.status) for turn in await site.turns()] == [(1, 2, "complete")]


@pytest.mark.anyio
async def test_the_key_and_the_hyperparameters_reach_the_service(open_site) -> None:  # noqa: F811
    lines = "a port\n/hyperparameters max_new_tokens=1 k=2\na port\n/session s-nobodys-session\na port\n"
    async with open_site(["one ", "two"], api_key="key-1") as site:
        at = f"http://{site.host}:{site.port}"
        out, err = await shell_at(at, lines, "--no-retrieval", code=3, CHATKIT_API_KEY="key-1")
        assert out == "one two\none \n"
        assert "serving.md" not in err
        assert "'s-nobodys-session'" in err
        assert "without --session a new conversation begins" in err
        assert "key-1" not in out + err
        out, err = await shell_at(at, "hello\n", "--api-key", "wrong", code=1)
        assert out == ""
        assert "start again with --api-key or CHATKIT_API_KEY" in err
        out, err = await shell_at(f"{at}/v1", "hello\n", "--session", "my-session", code=3, CHATKIT_API_KEY="key-1")
        assert out == ""
        assert err.endswith("are; check --url\n")
