"""`chatkit sessions export` and `import`: a session goes from one store to another whole, or not at all."""

import asyncio
import base64
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from chatkit.protocols import Outcome
from chatkit.types import Owner
from tests.cli.places import DAY, Place, say, talk, talk_of_everything

ALICE = Owner(user="alice")
ODD = "s-_.~:@-9"


@pytest.fixture
def file(request, tmp_path) -> Place:
    return Place("sqlite", request, tmp_path / "file")


def rows_of(done) -> list[dict]:
    return json.loads(done.stdout)["sessions"]


@pytest.mark.parametrize(("source", "target"), [("sqlite", "dynamodb"), ("dynamodb", "sqlite"), ("sqlite", "sqlite")])
def test_sessions_go_from_any_store_to_any_other_and_are_the_same_there(request, tmp_path, source, target) -> None:
    here, there = Place(source, request, tmp_path / "here"), Place(target, request, tmp_path / "there")

    async def fill(store) -> None:
        await talk_of_everything(store, Owner(), "session-of-all")
        await talk(store, Owner(), ODD.replace("s-", "c-"), 101)

    here.run(fill, retention_s=DAY)
    here.run(lambda store: talk(store, Owner(), "session-for-ever", 1))
    exported = here.chatkit("export", "--all")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert exported.stdout.count("\n") == 6 + 101 + 1

    imported = there.chatkit("import", "-", "--user", "alice", given=exported.stdout.encode())
    assert (imported.returncode, imported.stderr) == (0, "imported 3\n")
    assert sorted(imported.stdout.strip("\n").split("\n")) == [
        "imported c-_.~:@-9, turns 101", "imported session-for-ever, turns 1", "imported session-of-all, turns 6",
    ]  # fmt: skip
    for session_id in ("session-of-all", "c-_.~:@-9", "session-for-ever"):
        turns = here.turns(Owner(), session_id)
        assert turns == there.turns(ALICE, session_id)
        assert len(turns) > 0
    assert there.ids() == []  # they are alice's alone
    again = there.chatkit("export", "--all", "--user", "alice")
    assert sorted(again.stdout.strip("\n").split("\n")) == sorted(exported.stdout.strip("\n").split("\n"))
    ends = {row["expires_at"] is None for row in map(json.loads, again.stdout.strip("\n").split("\n"))}
    assert ends == {True, False}


@pytest.mark.parametrize("target", ["sqlite", "dynamodb"])
def test_an_imported_session_goes_on_where_it_was_and_knows_its_requests(request, tmp_path, file, target) -> None:
    there = Place(target, request, tmp_path / "there")
    file.run(lambda store: talk_of_everything(store, Owner(), "session-of-all"))
    exported = file.chatkit("export", "session-of-all").stdout
    assert there.chatkit("import", "-", given=exported.encode()).returncode == 0

    async def go_on(store) -> None:
        loaded = await store.load(Owner(), "session-of-all", limit=9)
        assert [turn.seq for turn in loaded] == [1, 6]
        repeat = (await say(store, Owner(), "session-of-all", 2, after=6)).repeat
        assert (repeat.seq, repeat.attempt, repeat.assistant) == (2, 2, "answer 2")
        again = await say(store, Owner(), "session-of-all", 5, after=6)  # it was stopped, so it runs again
        assert (again.ticket.seq, again.ticket.attempt) == (5, 2)
        await store.finish(again.ticket, Outcome("complete", "stop", "answer 5"))
        assert (await say(store, Owner(), "session-of-all", 7, after=6)).ticket.seq == 7

    there.run(go_on)


def test_a_session_that_is_there_is_left_alone_and_the_others_are_written(request, tmp_path, file) -> None:
    for number in (1, 2, 3):
        file.run(lambda store, number=number: talk(store, Owner(), f"session-{number}", number))
    written = tmp_path / "turns.jsonl"
    written.write_text(file.chatkit("export", "--all").stdout)
    assert file.chatkit("delete", "session-3", "--yes").returncode == 0
    file.run(lambda store: say(store, Owner(), "session-2", 9, after=2))
    before = file.turns(Owner(), "session-2")

    refused = file.chatkit("import", str(written))
    assert (refused.returncode, refused.stdout) == (1, "imported session-3, turns 3\n")
    first, second, counts = refused.stderr.splitlines()
    said = f"error: session 'session-2' was not imported: {written}, line 4: session 'session-2' is there already"
    assert first.startswith(said)
    assert "session 'session-1' is there already" in second
    assert counts == "imported 1, refused 2"
    assert file.turns(Owner(), "session-2") == before

    skipped = file.chatkit("import", str(written), "--skip-existing", "--json")
    assert (skipped.returncode, skipped.stderr) == (0, "")
    told = json.loads(skipped.stdout)
    assert (told["imported"], told["skipped"], told["refused"]) == (0, 3, 0)
    there = "it is there already"
    assert {row["session_id"]: row["why"] for row in told["sessions"]} == {
        "session-1": there, "session-2": f"{there}, with other turns", "session-3": there,
    }  # fmt: skip
    assert file.turns(Owner(), "session-2") == before


def without(line: int):
    return lambda lines: [text for at, text in enumerate(lines) if at != line]


def changed(line: int, **fields):
    def change(lines):
        table = json.loads(lines[line])
        return [*lines[:line], json.dumps(table | fields), *lines[line + 1 :]]

    return change


def rewritten(line: int, old: str, new: str):
    return lambda lines: [text.replace(old, new) if at == line else text for at, text in enumerate(lines)]


# What is wrong with the three lines of a session → the line that is named, and what is said of it.
WRONG = {
    "first-line-missing": (without(0), 1, "it has turn 2 where turn 1 is expected"),
    "second-line-missing": (without(1), 2, "it has turn 3 where turn 2 is expected"),
    "last-line-missing": (without(2), 1, "2 of its 3 turns are in the file, expected all"),
    "cut": (lambda lines: [*lines[:2], lines[2][:70]], 3, "it is not JSON ("),
    "no-object": (lambda lines: [*lines[:2], "[]"], 3, "it is [], expected a line of chatkit sessions export"),
    "nested": (lambda lines: [*lines[:2], "[" * 100_000], 3, "it is not JSON ("),
    "unknown-field": (changed(1, mood="fine"), 2, "'mood' is no field that chatkit sessions export writes"),
    "missing-field": (rewritten(1, '"attempt": 1, ', ""), 2, "attempt is missing, expected every field"),
    "wrong-type": (changed(1, user=5), 2, "user is 5, expected text of whole characters"),
    "half-a-character": (rewritten(1, "answer", "\\ud800"), 2, "expected text of whole characters"),
    "no-number": (rewritten(1, '"created_at": 1', '"created_at": NaN, "x": 1'), 2, "NaN is no number of JSON"),
    "endless": (rewritten(1, '"score": 0.25', '"score": 1e999'), 2, "passages: score is inf, expected a number of at"),
    "true-is-no-number": (changed(1, attempt=True), 2, "attempt is True, expected a whole number from 1 on"),
    "unknown-status": (changed(1, status="done"), 2, "status is 'done', expected one of pending, complete"),
    "unknown-reason": (changed(1, finish_reason="tired"), 2, "finish_reason is 'tired', expected one of stop"),
    "pending": (changed(2, status="pending"), 3, "turn 3 was being answered when it was exported; export the session"),
    "replaces-itself": (changed(2, replaces=3), 3, "turn 3 replaces turn 3, expected an older one"),
    "blocked-with-text": (
        changed(2, status="blocked", blocked="output"), 3, "a turn with status 'blocked' has text, expected its label",
    ),
    "blocked-and-complete": (changed(2, blocked="input"), 3, "blocked is 'input' where status is 'complete'"),
    "another-count": (changed(1, turns=4), 2, "turns or expires_at is not that of line 1"),
    "another-end": (changed(1, expires_at=4_000_000_000), 2, "turns or expires_at is not that of line 1"),
    "no-such-id": (changed(1, session_id="a/b/c/d/e/f"), 2, "session_id is 'a/b/c/d/e/f', expected 8 to 128"),
    "another-session-between": (changed(1, session_id="session-x"), 1, "1 of its 3 turns are in the file"),
    "backwards": (lambda lines: lines[::-1], 1, "it has turn 3 where turn 1 is expected"),
}  # fmt: skip


def test_never_is_half_a_session_written_and_the_line_that_is_wrong_is_named(request, tmp_path, file) -> None:
    file.run(lambda store: talk(store, Owner(), "session-good", 2))
    good = file.chatkit("export", "--all").stdout.strip("\n").split("\n")
    file.run(lambda store: talk(store, Owner(), "session-bad", 3))
    bad = file.chatkit("export", "session-bad").stdout.strip("\n").split("\n")
    for name, (change, _, _) in WRONG.items():
        lines = [line.replace("session-bad", f"session-{name}") for line in change(bad)]
        mine = [line.replace("session-good", f"session-{name}-after") for line in good]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*lines, "", *mine]) + "\n")
    there = Place("sqlite", request, tmp_path / "there")
    done = there.chatkit("import", "--json", *(str(tmp_path / f"{name}.jsonl") for name in WRONG))
    assert (done.returncode, done.stderr) == (2, "")
    rows = rows_of(done)
    for name, (_, line, said) in WRONG.items():
        first, *rest = [row for row in rows if row["file"] == str(tmp_path / f"{name}.jsonl")]
        assert first["status"] == "refused", name
        assert first["why"].startswith(f"{first['file']}, line {line}: "), (name, first)
        assert said in first["why"], (name, first)
        assert (rest[-1]["session_id"], rest[-1]["status"]) == (f"session-{name}-after", "imported")
        assert {row["status"] for row in rest[:-1]} <= {"refused"}
    assert there.ids() == sorted(f"session-{name}-after" for name in WRONG)
    assert len(there.turns(Owner(), "session-cut-after")) == 2


def test_bytes_that_are_no_text_and_a_line_without_end_are_refused(file) -> None:
    done = file.chatkit("import", "-", given=b"\xff\xfe\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: standard input, line 1: it is not UTF-8, expected a line of chatkit sessions export\nrefused 1\n"
    )
    done = file.chatkit("import", "-", given=b"x" * (16 * 1024 * 1024))
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input, line 1: it has more than 16777216 bytes" in done.stderr
    file.run(lambda store: talk(store, Owner(), "session-1", 2))
    first, second = file.chatkit("export", "session-1").stdout.encode().splitlines()
    other = [line.replace(b"session-1", b"session-2") for line in (first, second)]
    endless = b"x" * (40 * 1024 * 1024)
    done = file.chatkit("import", "-", "--json", "--user", "alice", given=b"\n".join([first, endless, second, *other]))
    assert [(row["session_id"], row["line"], row["status"]) for row in rows_of(done)] == [
        ("session-1", 1, "refused"), ("session-2", 4, "imported"),
    ]  # fmt: skip
    assert rows_of(done)[0]["why"].startswith("standard input, line 2: it has more than 16777216 bytes")
    done = file.chatkit("import", "-", "--user", "bob", given=b"\n".join([endless, *other, b""]))
    assert (done.returncode, done.stdout) == (2, "imported session-2, turns 2\n")
    assert "standard input, line 1: it has more than 16777216 bytes" in done.stderr
    assert file.chatkit("import", "-").stderr == "no session in it\n"
    missing = file.chatkit("import", "nowhere.jsonl")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "nowhere.jsonl" in missing.stderr


def test_a_request_id_of_another_session_keeps_the_whole_session_out(request, tmp_path, file) -> None:
    file.run(lambda store: talk(store, Owner(), "session-1", 3))
    lines = file.chatkit("export", "session-1").stdout.replace('"session-1"', '"session-2"')
    done = file.chatkit("import", "-", "--skip-existing", given=lines.encode())
    assert (done.returncode, done.stdout) == (1, "")
    assert "session 'session-2' was not imported: standard input, line 1: request_id 'request-session-1-" in done.stderr
    assert file.ids() == ["session-1"]
    assert file.chatkit("import", "-", "--tenant", "other", given=lines.encode()).returncode == 0


def test_a_session_that_has_expired_meanwhile_is_skipped(file) -> None:
    file.run(lambda store: talk(store, Owner(), "session-1", 1))
    lines = file.chatkit("export", "session-1").stdout.replace('"expires_at": null', '"expires_at": 1700000000')
    done = file.chatkit("import", "-", "--user", "alice", given=lines.encode())
    assert (done.returncode, done.stderr) == (0, "skipped 1\n")
    assert done.stdout == "skipped session-1, turns 1: it has expired\n"
    assert file.ids("--user", "alice") == []


def test_a_turn_that_is_being_answered_is_exported_as_that_and_imported_once_it_has_ended(
    request, tmp_path, file
) -> None:
    there = Place("sqlite", request, tmp_path / "there")
    file.run(lambda store: talk(store, Owner(), "session-1", 1))
    with file.opened() as store:
        ticket = asyncio.run(say(store, Owner(), "session-1", 2, after=1)).ticket
        exported = file.chatkit("export", "--all")
        assert exported.returncode == 0
        assert exported.stderr == (
            "turn 2 of session 'session-1' is being answered; import takes no such turn, so export the session again "
            "when it has ended\n"
        )
        assert [json.loads(line)["status"] for line in exported.stdout.strip("\n").split("\n")] == [
            "complete",
            "pending",
        ]
        refused = there.chatkit("import", "-", given=exported.stdout.encode())
        assert refused.returncode == 2
        assert "line 2: turn 2 was being answered when it was exported; export the session again now" in refused.stderr
        assert there.ids() == []
        asyncio.run(store.finish(ticket, Outcome("complete", "stop", "whole")))
    exported = file.chatkit("export", "--all")
    assert exported.stderr == ""
    assert there.chatkit("import", "-", given=exported.stdout.encode()).returncode == 0
    assert there.turns(Owner(), "session-1") == file.turns(Owner(), "session-1")


@pytest.mark.parametrize("target", ["sqlite", "dynamodb"])
def test_a_source_of_an_older_version_has_no_hash_there_either(request, tmp_path, file, target) -> None:
    there = Place(target, request, tmp_path / "there")
    file.run(lambda store: talk(store, Owner(), "session-1", 1))
    (turn,) = file.turns(Owner(), "session-1")
    older = replace(turn, passages=(replace(turn.passages[0], text_hash=""),))
    assert older != turn
    file.run(lambda store: store.restore(ALICE, "session-1", [older], expires_at=None))
    exported = file.chatkit("export", "--all", "--user", "alice").stdout
    assert there.chatkit("import", "-", given=exported.encode()).returncode == 0
    assert there.turns(Owner(), "session-1") == (older,)


def test_an_encrypted_store_takes_an_export_and_gives_it_back(request, tmp_path, file) -> None:
    key = tmp_path / "master.key"
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    key.chmod(0o600)
    sealed = Place("sqlite", request, tmp_path / "sealed", keys=f"file:{key}")
    file.run(lambda store: talk_of_everything(store, Owner(), "session-of-all"))
    exported = file.chatkit("export", "--all").stdout
    assert sealed.chatkit("import", "-", given=exported.encode()).returncode == 0
    assert b"question 1 of" in file.file.read_bytes()
    assert b"question 1 of" not in sealed.file.read_bytes()
    assert sealed.chatkit("export", "--all").stdout == exported
    again = sealed.chatkit("import", "-", "--skip-existing", given=exported.encode())
    assert again.stdout == "skipped session-of-all, turns 6: it is there already\n"
    assert sealed.chatkit("check").stdout == "sessions 1, turns 6, problems 0\n"
    assert json.loads(sealed.chatkit("purge", "--yes", "--json").stdout)["removed"] == 1
    assert sealed.chatkit("export", "--all").stdout == ""


def test_an_import_that_breaks_off_has_written_whole_sessions_and_is_run_again(request, tmp_path, file) -> None:
    for number in (1, 2, 3):
        file.run(lambda store, number=number: talk(store, Owner(), f"session-{number}", number))
    exported = file.chatkit("export", "--all").stdout.encode()
    there = Place("sqlite", request, tmp_path / "there")
    assert there.ids() == []
    with closing(sqlite3.connect(there.file)) as broken:  # the second of two turns cannot be written
        broken.execute(
            "CREATE TRIGGER full BEFORE INSERT ON turns WHEN NEW.body LIKE '%request-session-2-2%' "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    done = there.chatkit("import", "-", given=exported)
    assert (done.returncode, done.stdout) == (4, "imported session-3, turns 3\n")
    assert "no room" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("; then run it again with --skip-existing")
    assert there.ids() == ["session-3"]
    told = json.loads(there.chatkit("import", "-", "--skip-existing", "--json", given=exported).stdout)
    assert (told["imported"], told["skipped"], told["refused"]) == (0, 1, 0)
    with closing(sqlite3.connect(there.file)) as mended:
        mended.execute("DROP TRIGGER full")
    done = there.chatkit("import", "-", "--skip-existing", given=exported)
    assert (done.returncode, done.stderr) == (0, "imported 2, skipped 1\n")
    for number in (1, 2, 3):
        assert there.turns(Owner(), f"session-{number}") == file.turns(Owner(), f"session-{number}")
