"""`chatkit sessions check`: a store is sound, or what is wrong with it is named and what can be read is still read."""

import json

import pytest

from chatkit.cli._sessions_store import turns_of
from chatkit.errors import StoreFailed
from chatkit.sessions import items
from chatkit.sessions.budget import Budget
from chatkit.testing import turn_with
from chatkit.types import Owner
from tests.cli.places import Place, talk, talk_of_everything

# The turns of each session that hold what is damaged.
DAMAGED = {"session-of-all": (2, 5), "session-2": (2, 4, 5)}
REPAIR = "what can be read: chatkit sessions export --all > FILE; "


async def fill(store) -> None:
    await talk_of_everything(store, Owner(), "session-of-all")
    await talk(store, Owner(), "session-2", 6)


def damage(place: Place, text: str) -> None:
    """Break the stored forms that hold a text, byte for byte, as a bad disk would."""
    whole = place.file.read_bytes()
    assert text.encode() in whole
    place.file.write_bytes(whole.replace(text.encode(), b'"' * len(text.encode())))


@pytest.mark.parametrize("kind", ["sqlite", "dynamodb"])
def test_a_sound_store_has_no_problems(request, tmp_path, kind) -> None:
    place = Place(kind, request, tmp_path / "file")
    place.run(fill)
    done = place.chatkit("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "sessions 2, turns 12, problems 0\n", "")
    done = place.chatkit("check", "--json", "--user", "alice")
    assert json.loads(done.stdout) == {"sessions": 0, "turns": 0, "problems": []}


def test_a_damaged_turn_is_named_and_the_rest_can_still_be_exported(request, tmp_path) -> None:
    place = Place("sqlite", request, tmp_path / "file")
    place.run(fill)
    for number in (2, 4, 5):
        damage(place, f"question {number} of anonymous")
    where = "session {!r} of owner T#default#U#anonymous cannot be read"
    damaged = [f"turn {seq} of " + where.format(name) for name, seqs in DAMAGED.items() for seq in seqs]
    done = place.chatkit("check")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [*damaged, "sessions 2, turns 7, problems 5"]
    assert done.stderr.startswith(REPAIR)
    told = place.chatkit("check", "--json")
    assert (told.returncode, json.loads(told.stdout)["problems"]) == (1, damaged)

    exported = place.chatkit("export", "session-2", "session-of-all")
    assert exported.returncode == 1
    rows = [json.loads(line) for line in exported.stdout.strip("\n").split("\n")]
    assert [row["seq"] for row in rows if row["session_id"] == "session-2"] == [1, 3, 6]
    assert "error: sessions that cannot be read as a whole: 2; the rest of each was written\n" in exported.stderr
    there = Place("sqlite", request, tmp_path / "there")
    refused = there.chatkit("import", "-", given=exported.stdout.encode())
    assert refused.returncode == 2
    assert "line 2: it has turn 3 where turn 2 is expected" in refused.stderr
    assert there.ids() == []


@pytest.mark.parametrize("kind", ["sqlite", "dynamodb"])
def test_a_session_whose_own_entry_is_damaged_is_exported_with_an_error_named_and_removed(
    request, tmp_path, kind
) -> None:
    place = Place(kind, request, tmp_path / "file")
    place.run(fill)
    before = place.turns(Owner(), "session-2")
    if kind == "sqlite":
        with place.opened() as store:
            store._write.execute("UPDATE sessions SET body = '[' WHERE name = 'session-2'")
    else:
        with place.opened() as store:
            values = {"update": "SET #version = :version", "version": "three"}
            store._table.update(Budget(9), items.session_key(Owner(), "session-2"), items.META, **values)
    assert place.turns(Owner(), "session-2") == before
    for arguments in (["--all"], ["session-2"]):
        exported = place.chatkit("export", *arguments)
        assert exported.returncode == 1
        assert "error: sessions that cannot be read as a whole: 1; the rest of each was written\n" in exported.stderr
        rows = [json.loads(line) for line in exported.stdout.strip("\n").split("\n")]
        assert [row["seq"] for row in rows if row["session_id"] == "session-2"] == list(range(1, 7))
    assert place.chatkit("export", "session-of-all").returncode == 0
    assert [row["damaged"] for row in json.loads(place.chatkit("list", "--json").stdout)["sessions"]].count(True) == 1
    assert "session-2           ?  " in place.chatkit("list").stdout
    checked = place.chatkit("check")
    assert (checked.returncode, checked.stdout.count("session-2")) == (1, 1)
    assert "own entry" in checked.stdout
    removed = place.chatkit("delete", "session-2", "--yes")
    assert (removed.returncode, removed.stdout) == (0, "removed session-2\n")
    assert place.ids() == ["session-of-all"]
    assert place.chatkit("check").returncode == 0


def test_a_turn_that_says_an_older_number_is_named_and_left_out_by_whatever_reads_to_the_end(request, tmp_path) -> None:
    place = Place("sqlite", request, tmp_path / "file")
    place.run(fill)
    with place.opened() as store:
        store._write.execute(
            "UPDATE turns SET body = json_set(body, '$.seq', 1) "
            "WHERE seq = 6 AND session = (SELECT id FROM sessions WHERE name = 'session-2')"
        )
    done = place.chatkit("check")
    assert (done.returncode, done.stdout) == (
        1,
        "turn 6 of session 'session-2' of owner T#default#U#anonymous says that it is turn 1\n"
        "sessions 2, turns 11, problems 1\n",
    )
    shown = json.loads(place.chatkit("show", "session-2", "--all", "--json").stdout)["turns"]
    assert [turn["seq"] for turn in shown] == [1, 2, 3, 4, 5]
    exported = place.chatkit("export", "session-2")
    assert (exported.returncode, exported.stdout.count("\n")) == (1, 5)


@pytest.mark.anyio
async def test_a_store_that_gives_the_same_page_again_and_again_is_not_read_without_end() -> None:
    class Stuck:
        async def page(self, owner, session_id, *, limit, after=0):
            return turn_with(1, "Hello", "Hi."), turn_with(2, "Hello", "Hi.")

    with pytest.raises(StoreFailed, match="gives turn 2 of session 'my-session' after turn 2"):
        _ = [turn async for turn in turns_of(Stuck(), Owner(), "my-session")]


def test_a_turn_that_is_missing_from_a_table_is_named(request, tmp_path) -> None:
    place = Place("dynamodb", request, tmp_path)
    place.run(fill)
    import boto3

    client = boto3.client("dynamodb", endpoint_url=place.address)
    key = {"pk": {"S": items.session_key(Owner(), "session-2")}, "sk": {"S": items.turn_key(3)}}
    client.delete_item(TableName=place.table, Key=key)
    client.close()
    done = place.chatkit("check")
    assert done.returncode == 1
    assert done.stdout == ("session 'session-2': 3 of its 6 turns cannot be read\nsessions 2, turns 11, problems 1\n")
    assert REPAIR in done.stderr


def test_a_session_that_is_half_removed_is_a_problem_until_it_is_removed(request, tmp_path) -> None:
    place = Place("dynamodb", request, tmp_path)
    place.run(fill)
    with place.opened() as store:
        values = {"update": "SET #state = :closing", "closing": "closing"}
        store._table.update(Budget(9), items.session_key(Owner(), "session-2"), items.META, **values)
    done = place.chatkit("check")
    assert done.returncode == 1
    assert done.stdout == (
        "session 'session-2' is half removed: that goes on, or broke off; chatkit sessions delete session-2 ends it\n"
        "sessions 1, turns 6, problems 1\n"
    )
    assert place.chatkit("delete", "session-2", "--yes").returncode == 0
    done = place.chatkit("check")
    assert (done.returncode, done.stdout) == (0, "sessions 1, turns 6, problems 0\n")


def test_two_turns_of_one_request_are_a_problem(request, tmp_path) -> None:
    place = Place("dynamodb", request, tmp_path)
    place.run(fill)
    with place.opened() as store:
        values = {"update": "SET #request_id = :other", "other": "request-session-2-1"}
        store._table.update(Budget(9), items.session_key(Owner(), "session-2"), items.turn_key(3), **values)
    done = place.chatkit("check", "--json")
    assert json.loads(done.stdout)["problems"] == [
        "the request 'request-session-2-1' of turn 3 of session 'session-2' points at turn 1 of session 'session-2'",
        "session 'session-2': turns 1 and 3 have one request id",
    ]


def test_a_turn_that_no_import_would_take_is_a_problem(request, tmp_path) -> None:
    place = Place("dynamodb", request, tmp_path)
    place.run(fill)
    import boto3

    client = boto3.client("dynamodb", endpoint_url=place.address)
    key = {"pk": {"S": items.session_key(Owner(), "session-2")}, "sk": {"S": items.turn_key(3)}}
    client.update_item(
        TableName=place.table,
        Key=key,
        UpdateExpression="SET #attempt = :odd",
        ExpressionAttributeNames={"#attempt": "attempt"},
        ExpressionAttributeValues={":odd": {"N": "0"}},
    )
    client.close()
    done = place.chatkit("check", "--json")
    assert done.returncode == 1
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem.startswith("session 'session-2', turn 3: attempt is 0, expected a whole number from 1 on")
