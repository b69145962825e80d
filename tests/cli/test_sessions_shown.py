"""`chatkit sessions list` and `show`: when a session ends, and which turns later ones have replaced."""

import asyncio
import json
import time

import pytest

from chatkit.cli._sessions_store import read_session
from chatkit.errors import Conflict
from chatkit.protocols import Outcome
from chatkit.testing import MemoryStore
from chatkit.types import Owner
from tests.cli.places import DAY, Place, say, talk, talk_of_everything


@pytest.fixture(params=["sqlite", "dynamodb"])
def place(request, tmp_path) -> Place:
    return Place(request.param, request, tmp_path / "file")


def test_replaced_turns_are_left_out_and_counted_and_all_shows_them_marked(place) -> None:
    place.run(lambda store: talk_of_everything(store, Owner(), "session-of-all"))
    shown = place.chatkit("show", "session-of-all")
    assert shown.returncode == 0
    assert [turn.split()[0] for turn in shown.stdout.split("\n\n")] == ["#1", "#6"]
    assert "complete, replaces #2  request-session-of-all-6" in shown.stdout
    assert shown.stderr == "hidden, for later ones replace them: 4; --all shows them too\n"

    everything = place.chatkit("show", "session-of-all", "--all")
    heads = [turn.splitlines()[0] for turn in everything.stdout.split("\n\n")]
    assert [head.split()[0] for head in heads] == [f"#{seq}" for seq in range(1, 7)]
    assert [", hidden  " in head for head in heads] == [False, True, True, True, True, False]
    assert "complete, attempt 2, hidden  " in heads[1]
    assert everything.stderr == ""

    table = json.loads(place.chatkit("show", "session-of-all", "--json").stdout)
    assert (table["session_id"], table["expires_at"]) == ("session-of-all", None)
    assert [(turn["seq"], turn["hidden"]) for turn in table["turns"]] == [(1, False), (6, False)]
    table = json.loads(place.chatkit("show", "session-of-all", "--all", "--json").stdout)
    assert [turn["hidden"] for turn in table["turns"]] == [False, True, True, True, True, False]


def test_the_end_of_a_session_is_listed_and_shown_and_past_it_there_is_nothing(place) -> None:
    began = time.time()
    place.run(lambda store: talk(store, Owner(), "session-1", 1), retention_s=30 * DAY)
    place.run(lambda store: talk(store, Owner(), "session-2", 1))
    place.run(lambda store: talk(store, Owner(), "session-3", 1), retention_s=DAY, clock=lambda: began - 2 * DAY)
    rows = json.loads(place.chatkit("list", "--json").stdout)["sessions"]
    ends = {row["session_id"]: row["expires_at"] for row in rows}
    assert set(ends) == {"session-1", "session-2"}
    assert ends["session-2"] is None
    assert began + 30 * DAY <= ends["session-1"] <= time.time() + 30 * DAY + 1
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ends["session-1"]))
    (line,) = [line for line in place.chatkit("list").stdout.splitlines() if line.startswith("session-1")]
    assert line.endswith(f"  {moment}")
    assert place.chatkit("show", "session-1").stderr == f"expires {moment} UTC\n"
    for command in ("show", "export"):
        gone = place.chatkit(command, "session-3")
        assert (gone.returncode, gone.stdout) == (3, "")
        assert "session 'session-3' does not exist" in gone.stderr


def test_what_an_unanswered_message_was_to_replace_is_shown_again(place) -> None:
    place.run(lambda store: talk(store, Owner(), "session-1", 1))

    async def replace_and_stop(store) -> None:
        ticket = (await say(store, Owner(), "session-1", 2, after=1, replaces=1)).ticket
        assert [turn.seq for turn in await store.load(Owner(), "session-1", limit=9)] == [2]
        await store.finish(ticket, Outcome("aborted", "aborted", "half"))

    place.run(replace_and_stop)
    shown = place.chatkit("show", "session-1")
    assert [turn.split()[0] for turn in shown.stdout.split("\n\n")] == ["#1", "#2"]
    assert shown.stderr == ""


@pytest.mark.anyio
async def test_a_session_that_was_removed_and_opened_again_while_it_was_read_is_a_conflict() -> None:
    store, owner = MemoryStore(), Owner()
    await talk(store, owner, "my-session", 1)
    page = store.page

    async def another_meanwhile(*arguments, **more):
        found = await page(*arguments, **more)
        if not more["after"]:
            await asyncio.sleep(0.01)  # two that are opened in one moment cannot be told apart
            await store.delete(owner, "my-session")
            await talk(store, owner, "my-session", 1)
        return found

    store.page = another_meanwhile
    with pytest.raises(Conflict, match="'my-session' was removed while it was read; run this again"):
        await read_session(store, owner, "my-session")
