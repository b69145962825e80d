"""`chatkit sessions purge`: everything of one owner goes, nothing of another's, and nothing comes back."""

import asyncio
import json
import re
import time

import pytest

from chatkit.errors import Conflict
from chatkit.protocols import Outcome
from chatkit.types import Owner
from tests.cli.places import Place, say, talk
from tests.terminal import Terminal

ALICE, BOB = Owner(user="alice"), Owner(user="alice#O")  # the second's name is like the key of the first one's mark


@pytest.fixture
def file(request, tmp_path) -> Place:
    return Place("sqlite", request, tmp_path / "file")


async def fill(store) -> None:
    for number in range(1, 4):
        await talk(store, ALICE, f"session-{number}", number)
    await talk(store, BOB, "session-1", 1)
    await talk(store, Owner("other", "alice"), "session-1", 1)


@pytest.mark.parametrize("kind", ["sqlite", "dynamodb"])
def test_everything_of_one_owner_goes_and_a_late_turn_brings_nothing_back(request, tmp_path, kind) -> None:
    place = Place(kind, request, tmp_path / "file")
    place.run(fill)
    others = [place.turns(owner, "session-1") for owner in (BOB, Owner("other", "alice"))]
    with place.opened() as store:
        late = asyncio.run(say(store, ALICE, "session-1", 9, after=1)).ticket
        began = time.time()
        purged = place.chatkit("purge", "--user", "alice", "--yes", "--json")
        assert (purged.returncode, purged.stderr) == (0, "")
        told = json.loads(purged.stdout)
        assert {**told, "closed_until": 0} == {"tenant": "default", "user": "alice", "removed": 3, "closed_until": 0}
        assert began + 600 <= told["closed_until"] <= time.time() + 602
        with pytest.raises(Conflict):
            asyncio.run(store.finish(late, Outcome("complete", "stop", "too late")))
        with pytest.raises(Conflict, match="everything of this owner is being removed"):
            asyncio.run(say(store, ALICE, "session-1", 1))  # the first request, sent again
    assert place.ids("--user", "alice") == []
    assert place.chatkit("export", "--all", "--user", "alice").stdout == ""
    assert [place.turns(owner, "session-1") for owner in (BOB, Owner("other", "alice"))] == others

    again = place.chatkit("purge", "--user", "alice", "--yes", "--reopen")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == "removed everything of default/alice, sessions 0; new turns are taken\n"
    place.run(lambda store: talk(store, ALICE, "session-1", 1))
    assert place.ids("--user", "alice") == ["session-1"]


@pytest.mark.parametrize("kind", ["sqlite", "dynamodb"])
def test_an_export_from_before_can_be_brought_in_again(request, tmp_path, kind) -> None:
    place = Place(kind, request, tmp_path / "file")
    place.run(fill)
    before = place.turns(ALICE, "session-3")
    exported = place.chatkit("export", "--all", "--user", "alice").stdout
    assert place.chatkit("purge", "--user", "alice", "--yes").returncode == 0
    assert place.chatkit("import", "-", "--user", "alice", given=exported.encode()).returncode == 0
    assert place.turns(ALICE, "session-3") == before


def test_it_says_until_when_the_owner_is_shut_out(file) -> None:
    file.run(fill)
    done = file.chatkit("purge", "--user", "alice", "--yes")
    said = r"removed everything of default/alice, sessions 3; nothing new is taken before (\S+ \S+) UTC\n"
    assert re.fullmatch(said, done.stdout), done.stdout


def test_where_nobody_can_be_asked_nothing_is_removed(file) -> None:
    file.run(fill)
    done = file.chatkit("purge", "--user", "alice")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: There is nobody to ask; say --yes to remove everything of the owner. See: ")
    assert len(file.ids("--user", "alice")) == 3


@pytest.mark.parametrize(
    ("flags", "question"),
    [((), " and take nothing new from them for 10 minutes"), (("--reopen",), "")],
    ids=["closed", "reopened"],
)
@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 130, 3), ("", 130, 3)])
def test_on_a_terminal_it_asks_first(file, flags, question, answer, code, left) -> None:
    file.run(fill)
    words = ("purge", "--user", "alice", *flags, *file.flags)
    with Terminal("-m", "chatkit", "sessions", *words, size=(24, 200)) as command:
        command.expect_exact(f"Remove every session of default/alice for good{question}? [y/N]: ")
        command.sendline(answer)
        assert command.wait() == code
    assert len(file.ids("--user", "alice")) == left
