"""`chatkit sessions`: lists, pages, JSON lines and removals of whoever keeps the store."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys

import pytest

from chatkit.protocols import NewTurn, Outcome
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.settings import load_settings
from chatkit.types import Owner, Passage, Usage
from tests import ministack
from tests.terminal import Terminal

STEP = "chatkit sessions list shows those there are"
PASSAGE = Passage("p1", "words of the passage", "Title", "a.md", "Section", 5, 25, 0.25)


def chatkit(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "chatkit", "sessions", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def talk(store, owner: Owner, session_id: str, turns: int) -> None:
    for number in range(1, turns + 1):
        text = f"question {number} of {owner.user} \x1b[31m漢"
        turn = NewTurn(owner, session_id, f"request-{session_id}-{number}", text, len(text), after=number - 1)
        accepted = await store.accept(turn)
        outcome = Outcome("complete", "length", f"answer\n{number}", usage=Usage(3, 2), passages=(PASSAGE,))
        await store.finish(accepted.ticket, outcome)


async def fill(store) -> None:
    """Three sessions of everybody's, one of a key's, one of another tenant's; the last of the three has refusals."""
    for number in range(1, 4):
        await talk(store, Owner(), f"session-{number}", number)
    refused = NewTurn(Owner(), "session-3", "request-x", "", 11, status="blocked", label="needs caution", after=3)
    await store.accept(refused)
    blocked = (await store.accept(NewTurn(Owner(), "session-3", "request-y", "How?", 4, after=4))).ticket
    await store.finish(blocked, Outcome("blocked", "content_filter", label="needs intervention"))
    await store.accept(NewTurn(Owner(), "session-3", "request-z", "Being answered", 14, after=5))
    await talk(store, Owner(user="key"), "session-key", 1)
    await talk(store, Owner("other", "alice"), "session-alice", 1)


@pytest.fixture(params=["sqlite", "dynamodb"])
def filled(request, monkeypatch):
    """A store with sessions in it, named by the environment; returns how to open it."""
    ticks = iter(range(10**9))
    clock = lambda: 1_700_000_000.0 + next(ticks)  # noqa: E731
    if request.param == "dynamodb":
        address = request.getfixturevalue("dynamodb")
        table = ministack.new_table(address)
        monkeypatch.setenv("CHATKIT_STORE", "dynamodb")
        monkeypatch.setenv("CHATKIT_DYNAMODB_TABLE", table)
        monkeypatch.setenv("CHATKIT_DYNAMODB_ENDPOINT", address)
        store = DynamoDBStore(table, endpoint=address, clock=clock)
    else:
        store = SQLiteStore(load_settings().database, clock=clock)
    asyncio.run(fill(store))
    store.close()


@pytest.mark.usefixtures("filled")
def test_sessions_are_listed_exported_shown_and_removed() -> None:
    listed = chatkit("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = listed.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ID", "TURNS"], ["session-3", "6"], ["session-2", "2"], ["session-1", "1"],
    ]  # fmt: skip
    assert lines[0].endswith("  OPENED (UTC)         EXPIRES (UTC)")
    assert lines[3].endswith("  2023-11-14 22:13:20  never")

    exported = chatkit("export", "session-2", "session-1")
    rows = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [(row["session_id"], row["seq"]) for row in rows] == [("session-2", 1), ("session-2", 2), ("session-1", 1)]
    assert rows[0] | {"created_at": 0} == {
        "session_id": "session-2", "turns": 2, "expires_at": None, "seq": 1,
        "request_id": "request-session-2-1", "attempt": 1, "status": "complete",
        "user": "question 1 of anonymous \x1b[31m漢", "assistant": "answer\n1", "finish_reason": "length",
        "blocked": None, "label": None, "user_length": 30, "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "passages": [
            {"id": "p1", "text": "", "title": "Title", "source": "a.md", "section": "Section", "start": 5, "end": 25,
             "score": 0.25, "text_hash": hashlib.sha256(b"words of the passage").hexdigest()[:16], "page": 0,
             "document": ""},
        ],
        "created_at": 0, "replaces": None,
    }  # fmt: skip
    assert "\x1b" not in exported.stdout
    everything = chatkit("export", "--all").stdout.splitlines()
    assert len(everything) == 9
    assert {json.loads(line)["session_id"] for line in everything} == {"session-1", "session-2", "session-3"}

    removed = chatkit("delete", "session-2", "never-there", "--yes", "--json")
    assert json.loads(removed.stdout) == {
        "removed": [{"session_id": "session-2", "found": True}, {"session_id": "never-there", "found": False}]
    }
    assert chatkit("delete", "session-2", "--yes").stdout == "there is no session-2\n"
    assert [row["session_id"] for row in json.loads(chatkit("list", "--json").stdout)["sessions"]] == [
        "session-3",
        "session-1",
    ]


@pytest.fixture
def sqlite():
    ticks = iter(range(10**9))
    store = SQLiteStore(load_settings().database, clock=lambda: 1_700_000_000.0 + next(ticks))
    asyncio.run(fill(store))
    yield store
    store.close()


@pytest.mark.usefixtures("sqlite")
def test_a_session_is_shown_with_labels_and_lengths_in_place_of_what_was_refused() -> None:
    shown = chatkit("show", "session-3")
    assert shown.returncode == 0, shown.stderr
    turns = shown.stdout.rstrip("\n").split("\n\n")
    assert len(turns) == 6
    assert turns[0].splitlines()[1:] == [
        "user: question 1 of anonymous ␛[31m漢",
        "assistant: answer",
        "1",
        "[1] 0.25 a.md Title - Section",
    ]
    assert turns[0].startswith("#1  2023-11-14 22:13:2")
    assert "complete, ended by length  request-session-3-1" in turns[0]
    assert turns[3].splitlines()[1:] == ["message blocked as 'needs caution'; the message had 11 characters"]
    assert turns[4].splitlines()[1:] == ["answer blocked as 'needs intervention'; the message had 4 characters"]
    assert turns[5].splitlines()[1:] == ["user: Being answered"]
    table = json.loads(chatkit("show", "session-3", "--json").stdout)
    assert (table["session_id"], [turn["seq"] for turn in table["turns"]]) == ("session-3", [1, 2, 3, 4, 5, 6])


@pytest.mark.usefixtures("sqlite")
def test_a_list_is_read_in_parts_with_the_cursor_of_the_one_before() -> None:
    first = json.loads(chatkit("list", "--limit", "2", "--json").stdout)
    assert [row["session_id"] for row in first["sessions"]] == ["session-3", "session-2"]
    assert set(first["sessions"][0]) == {"session_id", "turns", "created_at", "expires_at", "damaged"}
    second = chatkit("list", "--limit", "2", "--json", "--cursor", first["cursor"])
    assert [row["session_id"] for row in json.loads(second.stdout)["sessions"]] == ["session-1"]
    assert json.loads(second.stdout)["cursor"] is None
    spoken = chatkit("list", "--limit", "1")
    assert spoken.stdout.count("\n") == 2
    assert spoken.stderr.startswith("more: --cursor ")
    stolen = chatkit("list", "--user", "key", "--cursor", first["cursor"])
    assert (stolen.returncode, stolen.stdout) == (2, "")
    assert stolen.stderr.startswith("error: cursor is ")


@pytest.mark.usefixtures("sqlite")
def test_the_owner_is_that_of_the_services_callers_unless_another_is_named(tmp_path) -> None:
    def listed(*arguments: str, **environment: str) -> list[str]:
        done = chatkit("list", "--json", *arguments, **environment)
        return [row["session_id"] for row in json.loads(done.stdout)["sessions"]]

    assert listed(CHATKIT_API_KEY="a-key") == ["session-key"]
    assert listed("--user", "key") == ["session-key"]
    assert listed("--tenant", "other", "--user", "alice") == ["session-alice"]
    assert listed("--tenant", "other") == []
    assert len(listed("--user", "anonymous", CHATKIT_API_KEY="a-key")) == 3
    assert chatkit("show", "session-alice").returncode == 3


@pytest.mark.usefixtures("sqlite")
def test_what_cannot_be_done_is_one_line_and_an_exit_code() -> None:
    for arguments, code, said in (
        (("show", "no-session"), 3, f"error: session 'no-session' does not exist; {STEP}"),
        (("export", "session-1", "no-session"), 3, f"error: session 'no-session' does not exist; {STEP}"),
        (("export",), 2, "error: Name the sessions to export, or say --all."),
        (("export", "--all", "session-1"), 2, "error: Name the sessions to export, or say --all."),
        (("delete", "session-1"), 2, "error: There is nobody to ask; say --yes"),
        (("list", "--store", "memory"), 2, "error: store is 'memory', which only the running service can see"),
        (("list", "--limit", "0"), 2, "error: Invalid value for '--limit'"),
    ):
        done = chatkit(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert done.stderr.startswith(said)
    assert chatkit("show", "session-1").returncode == 0


BAD_IDS = ("", "short", "x" * 3000, "with space", "a/b/c/d/e", "\udcff\udcfe123456", "漢" * 8, "session-1\n")


@pytest.mark.usefixtures("filled")
def test_an_id_that_the_service_would_refuse_is_refused_with_the_command_that_lists_them() -> None:
    for command in (("show",), ("export", "session-1"), ("delete", "--yes")):
        for session_id in BAD_IDS if command == ("show",) else BAD_IDS[:3]:
            done = chatkit(*command, session_id)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == (
                f"error: ID is {session_id[:140]!r}, expected 8 to 128 letters, digits or any of ._~:@-; {STEP}\n"
            )
    assert len(json.loads(chatkit("list", "--json").stdout)["sessions"]) == 3


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("flag", ["--user", "--tenant"])
def test_an_owners_name_that_nobody_can_have_is_refused(flag) -> None:
    for name in ("", "\udcff", "x" * 65, "a\nb", "\x1b[31m"):
        done = chatkit("list", flag, name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"error: {flag} is {name!r}, expected 1 to 64 characters that print; ")
        assert "chatkit sessions list" in done.stderr
    assert chatkit("list", flag, "漢" * 64).returncode == 0
    assert chatkit("show", "x" * 128, "--user", "漢" * 64, "--tenant", "漢" * 64).returncode == 3


@pytest.mark.usefixtures("filled")
def test_a_forged_cursor_is_one_line_and_exit_code_2() -> None:
    for cursor in ("\udcff", "[" * 60_000, "W10", ""):
        done = chatkit("list", "--cursor", cursor)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: cursor is ")


def test_a_failing_store_says_everything_once(tmp_path) -> None:
    (tmp_path / "sessions.sqlite3").write_bytes(b"no database" * 1000)
    done = chatkit("list", "--home", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n"), done.stderr.count("not a database")) == (4, 1, 1)
    assert done.stderr.endswith("move the file away or set --home\n")


def test_a_password_in_the_endpoint_is_refused_and_not_printed() -> None:
    done = chatkit("list", "--store", "dynamodb", "--dynamodb-endpoint", "http://u:canary@127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(
        "error: dynamodb_endpoint is 'an address with a name or key in it', expected an address"
    )
    assert "canary" not in done.stderr


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 130, 1), ("", 130, 1)])
def test_on_a_terminal_it_asks_before_it_removes(sqlite, answer, code, left) -> None:
    with Terminal("-m", "chatkit", "sessions", "delete", "session-1") as command:
        command.expect_exact("Remove 'session-1' of default/anonymous for good? [y/N]: ")
        command.sendline(answer)
        assert command.wait() == code
    assert ("removed session-1" in command.before) == (left == 0)
    heads = asyncio.run(sqlite.sessions(Owner(), limit=9)).sessions
    assert sum(head.session_id == "session-1" for head in heads) == left


def test_a_table_is_created_once_and_its_absence_names_the_command(dynamodb) -> None:
    place = ("--dynamodb-table", "by-command", "--dynamodb-endpoint", dynamodb)
    missing = chatkit("list", "--store", "dynamodb", *place)
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (2, "", 1)
    assert f"run: chatkit sessions create-table {' '.join(place)}" in missing.stderr
    first = chatkit("create-table", *place)
    assert (first.returncode, first.stdout) == (0, "table 'by-command': created\n")
    assert json.loads(chatkit("create-table", "--json", *place).stdout) == {"table": "by-command", "created": False}
    assert chatkit("list", "--store", "dynamodb", *place).stdout == "ID  TURNS  OPENED (UTC)         EXPIRES (UTC)\n"
