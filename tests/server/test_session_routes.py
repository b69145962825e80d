"""Sessions over HTTP: pages, export and removal, for those whose they are."""

import asyncio
import json
import time
from dataclasses import replace

import httpx
import pytest

from chatkit.cli import group
from chatkit.errors import StoreFailed
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.testing import turn_with
from chatkit.types import Owner
from tests.server.owners import ALICE, BACKEND, BOB, SCRIPT, bearer, write_keys

pytestmark = pytest.mark.anyio


@pytest.fixture
def owned(open_site, tmp_path):
    """Return a context manager that opens a site with a key file."""
    return lambda *replies, **more: open_site(*replies, keys_file=write_keys(tmp_path), **more)


async def tell(site, name, *texts, session="my-session") -> None:
    for number, text in enumerate(texts, start=1):
        answer = await site.ask(
            text, headers=bearer(name), session_id=session, request_id=f"{session}-request-{number}"
        )
        assert answer.status_code == 200, answer.text


async def get(site, path, name=ALICE, **query):
    return await site.client.get(path, params=query, headers=bearer(name))


async def test_a_list_gives_the_owners_sessions_the_newest_first_in_pages(owned) -> None:
    async with owned(["Hi."]) as site:
        for number in range(5):
            await tell(site, ALICE, *["Hello"] * (number + 1), session=f"session-{number}")
        await tell(site, BOB, "Hello", session="session-of-bob")
        whole = await get(site, "/sessions")
        assert (whole.status_code, whole.headers["cache-control"]) == (200, "no-store")
        rows = whole.json()["sessions"]
        assert [(row["session_id"], row["turns"], row["expires_at"]) for row in rows] == [
            (f"session-{number}", number + 1, None) for number in (4, 3, 2, 1, 0)
        ]
        assert sorted(row["created_at"] for row in rows) == [row["created_at"] for row in reversed(rows)]
        assert abs(rows[0]["created_at"] - time.time()) < 600
        assert whole.json()["cursor"] is None
        pages, query = [], {"limit": "2"}
        while True:
            page = (await get(site, "/sessions", **query)).json()
            pages.append([row["session_id"] for row in page["sessions"]])
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
        assert pages == [["session-4", "session-3"], ["session-2", "session-1"], ["session-0"]]
        assert [row["session_id"] for row in (await get(site, "/sessions", BOB)).json()["sessions"]] == [
            "session-of-bob"
        ]


async def test_a_sessions_turns_come_in_pages_with_every_field(owned) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, *(f"Message {number} of chatkit" for number in range(1, 6)))
        await site.ask("a canary", headers=bearer(ALICE), session_id="my-session", request_id="request-blocked")
        after, seen = 0, []
        while True:
            page = (await get(site, "/sessions/my-session", limit="2", after=str(after))).json()
            assert page["session_id"] == "my-session"
            if not page["turns"]:
                assert page["after"] is None
                break
            seen.append([turn["seq"] for turn in page["turns"]])
            after = page["after"]
        assert seen == [[1, 2], [3, 4], [5, 6]]
        answer = await get(site, "/sessions/my-session")
        assert answer.headers["cache-control"] == "no-store"
        turns = answer.json()["turns"]
        assert [turn["user"] for turn in turns] == [f"Message {n} of chatkit" for n in range(1, 6)] + [""]
        first, last = turns[0], turns[-1]
        assert (first["status"], first["assistant"], first["attempt"]) == ("complete", "Hi.", 1)
        assert first["request_id"] == "my-session-request-1"
        assert first["usage"]["completion_tokens"] == 1
        assert [passage["source"] for passage in first["passages"]] == ["serving.md"]
        assert (last["status"], last["blocked"], last["label"]) == ("blocked", "input", "needs intervention")
        assert (last["user_length"], last["replaces"]) == (8, None)


async def test_an_export_is_what_the_command_writes(owned, tmp_path, capsys) -> None:
    async with owned(["Zeile “eins” 漢字\u2028🙂."]) as site:
        turns = [turn_with(number, "Hello", "Zeile “eins” 漢字\u2028🙂.") for number in range(1, 206)]
        await site.store.restore(Owner(user="alice"), "my-session", turns, expires_at=None)
        for number in (204, 3):
            again = {"session_id": "my-session", "request_id": f"once-more-{number}", "replaces": number}
            assert (await site.ask("Once more", headers=bearer(ALICE), **again)).status_code == 200
        answer = await get(site, "/sessions/my-session/export")
        assert answer.headers["content-type"] == "application/jsonlines"
        assert answer.headers["cache-control"] == "no-store"
    sent = [json.loads(line) for line in answer.content.split(b"\n") if line]
    arguments = ["sessions", "export", "my-session", "--user", "alice"]
    await asyncio.to_thread(group.main, arguments, standalone_mode=False)
    written = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert sent == written
    assert [row["seq"] for row in sent] == list(range(1, 208))
    assert {row["assistant"] for row in sent} == {"Zeile “eins” 漢字\u2028🙂."}


async def test_an_export_that_breaks_off_is_no_whole_answer(owned, monkeypatch, caplog) -> None:
    async with owned(["Hi."]) as site:
        turns = [turn_with(number, "Hello", "Hi.") for number in range(1, 121)]
        await site.store.restore(Owner(user="alice"), "my-session", turns, expires_at=None)
        page = SQLiteStore.page

        async def broken(store, owner, session_id, *, limit, after=0):
            if after:
                raise StoreFailed("the session store did not answer")
            return await page(store, owner, session_id, limit=limit)

        monkeypatch.setattr(SQLiteStore, "page", broken)
        async with site.client.stream("GET", "/sessions/my-session/export", headers=bearer(ALICE)) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            assert [json.loads(await anext(lines))["seq"] for _ in range(100)] == list(range(1, 101))
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                await anext(lines)
        monkeypatch.undo()
        said = [record.getMessage() for record in caplog.records if record.name.startswith("chatkit")]
        assert len(said) == 1
        assert said[0].startswith("the export of session ")
        assert said[0].endswith(" broke off: store_failed")
        assert "my-session" not in caplog.text
        assert (await get(site, "/sessions/my-session")).status_code == 200


@pytest.mark.parametrize("lost", [(3,), (6,), (1, 2, 3, 4, 5, 6)])
async def test_an_export_that_lacks_a_damaged_turn_is_no_whole_answer(owned, lost, caplog) -> None:
    async with owned(["Hi."]) as site:
        turns = [turn_with(number, "Hello", "Hi.") for number in range(1, 7)]
        await site.store.restore(Owner(user="alice"), "my-session", turns, expires_at=None)
        for seq in lost:
            site.store._write.execute("UPDATE turns SET body = '{' WHERE seq = ?", (seq,))
        left = [seq for seq in range(1, 7) if seq not in lost]
        async with site.client.stream("GET", "/sessions/my-session/export", headers=bearer(ALICE)) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            seen = [json.loads(await anext(lines)) for _ in left]
            assert [(row["seq"], row["turns"]) for row in seen] == [(seq, 6) for seq in left]
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                await anext(lines)
        assert any(
            record.getMessage().endswith(f" lacks turns: {len(lost)} of 6")
            for record in caplog.records
            if record.name.startswith("chatkit.server")
        )


async def test_an_export_of_a_session_whose_own_entry_is_damaged_is_no_whole_answer(owned, caplog) -> None:
    async with owned(["Hi."]) as site:
        turns = [turn_with(number, "Hello", "Hi.") for number in range(1, 121)]
        await site.store.restore(Owner(user="alice"), "my-session", turns, expires_at=None)
        site.store._write.execute("UPDATE sessions SET body = '{'")
        async with site.client.stream("GET", "/sessions/my-session/export", headers=bearer(ALICE)) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            assert [json.loads(await anext(lines))["seq"] for _ in range(120)] == list(range(1, 121))
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                await anext(lines)
        assert any(text.endswith("broke off: nobody knows how many turns it has") for text in caplog.messages)


@pytest.mark.parametrize("moment", ["before the first page", "after it", "and opened again"])
async def test_an_export_of_a_session_that_is_removed_meanwhile_is_no_whole_answer(owned, monkeypatch, moment) -> None:
    alice = Owner(user="alice")
    async with owned(["Hi."]) as site:
        turns = [turn_with(number, "Hello", "Hi.") for number in range(1, 151)]
        await site.store.restore(alice, "my-session", turns, expires_at=None)
        page, others = SQLiteStore.page, [replace(turn, user="Other", created_at=9.0) for turn in turns]

        async def meanwhile(store, owner, session_id, *, limit, after=0):
            if bool(after) == (moment != "before the first page"):
                await store.delete(owner, session_id)
                if moment == "and opened again":
                    await store.restore(owner, session_id, others, expires_at=None)
            return await page(store, owner, session_id, limit=limit, after=after)

        monkeypatch.setattr(SQLiteStore, "page", meanwhile)
        if moment == "before the first page":
            assert (await get(site, "/sessions/my-session/export")).status_code == 404
            return
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await get(site, "/sessions/my-session/export")


async def test_a_removed_session_is_gone_and_removing_it_again_finds_nothing(owned) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, "Hello", "Again")
        await tell(site, ALICE, "Hello", session="other-session")
        removed = await site.client.delete("/sessions/my-session", headers=bearer(ALICE))
        assert (removed.status_code, removed.content) == (204, b"")
        unknown = await site.client.delete("/sessions/never-opened", headers=bearer(ALICE))
        again = await site.client.delete("/sessions/my-session", headers=bearer(ALICE))
        assert (again.status_code, unknown.status_code) == (404, 404)
        assert again.text == unknown.text.replace("never-opened", "my-session")
        for path in ("/sessions/my-session", "/sessions/my-session/export"):
            assert (await get(site, path)).status_code == 404
        assert [turn.user for turn in await site.turns("other-session", Owner(user="alice"))] == ["Hello"]
        await tell(site, ALICE, "A new beginning")
        turns = (await get(site, "/sessions/my-session")).json()["turns"]
        assert [(turn["seq"], turn["user"]) for turn in turns] == [(1, "A new beginning")]


async def test_a_session_that_cannot_be_looked_at_is_removed_all_the_same(owned, monkeypatch) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, "Hello", "Again")
        site.store._write.execute("UPDATE sessions SET body = '{'")
        (row,) = (await get(site, "/sessions")).json()["sessions"]
        assert (row["session_id"], row["turns"], row["damaged"]) == ("my-session", 0, True)
        turns = (await get(site, "/sessions/my-session")).json()["turns"]
        assert [turn["user"] for turn in turns] == ["Hello", "Again"]

        async def broken(store, owner, session_id, *, limit, after=0):
            raise StoreFailed("the session store holds a damaged entry")

        monkeypatch.setattr(SQLiteStore, "page", broken)
        assert (await site.client.delete("/sessions/my-session", headers=bearer(ALICE))).status_code == 204
        monkeypatch.undo()
        assert (await get(site, "/sessions")).json()["sessions"] == []
        assert (await get(site, "/sessions/my-session")).status_code == 404


async def test_a_removal_that_broke_off_is_ended_by_sending_it_again(owned, monkeypatch) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, "Hello")
        delete = SQLiteStore.delete

        async def broken(store, owner, session_id):
            raise StoreFailed("the session store did not answer")

        monkeypatch.setattr(SQLiteStore, "delete", broken)
        failed = await site.client.delete("/sessions/my-session", headers=bearer(ALICE))
        assert (failed.status_code, failed.headers["retry-after"]) == (503, "5")
        monkeypatch.setattr(SQLiteStore, "delete", delete)
        assert (await site.client.delete("/sessions/my-session", headers=bearer(ALICE))).status_code == 204
        assert await site.turns("my-session", Owner(user="alice")) == ()


async def test_everything_of_a_named_owner_is_removed_and_of_nobody_else(owned) -> None:
    async with owned(["Hi."]) as site:
        for number in range(3):
            await tell(site, ALICE, "Hello", session=f"session-{number}")
        await tell(site, BOB, "Hello", session="session-0")
        removed = await site.client.delete("/sessions", headers=bearer(ALICE))
        assert (removed.status_code, removed.json()) == (200, {"removed": 3})
        assert (await get(site, "/sessions")).json() == {"sessions": [], "cursor": None}
        assert (await site.client.delete("/sessions", headers=bearer(ALICE))).json() == {"removed": 0}
        shut = await site.ask("Hello", headers=bearer(ALICE))
        assert (shut.status_code, shut.json()["error"]["code"]) == (409, "conflict")
        assert [turn.user for turn in await site.turns("session-0", Owner(user="bob"))] == ["Hello"]
        await tell(site, BOB, "And again", session="session-1")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_owner_without_a_name_is_told_why_all_sessions_at_once_are_not_for_it(
    open_site, owned, method
) -> None:
    what = {"GET": "a list of sessions", "DELETE": "removing all sessions"}[method]
    why = f"{what} is for named users: others who share this access would be concerned too; "
    async with owned(["Hi."]) as site:
        for name, step in (
            (SCRIPT, "ask the operator for a key with a user"),
            (BACKEND, "say for whom with ?user=NAME"),
        ):
            await tell(site, name, "Hello")
            answer = await site.client.request(method, "/sessions", headers=bearer(name))
            assert (answer.status_code, answer.json()) == (403, {"error": {"code": "forbidden", "message": why + step}})
            turns = (await get(site, "/sessions/my-session", name)).json()["turns"]
            assert [turn["user"] for turn in turns] == ["Hello"]
            assert (await site.client.delete("/sessions/my-session", headers=bearer(name))).status_code == 204
    async with open_site(["Hi."]) as site:
        assert (await site.client.request(method, "/sessions")).status_code == 403
        session = (await site.ask()).json()["session_id"]
        assert len((await site.client.get(f"/sessions/{session}")).json()["turns"]) == 1
        assert (await site.client.delete(f"/sessions/{session}")).status_code == 204


BAD = [
    ("/sessions?limit=0", "'limit' is '0', expected a whole number from 1 to 100"),
    ("/sessions?limit=101", "'limit' is '101'"),
    ("/sessions?limit=-1", "'limit' is '-1'"),
    ("/sessions?limit=", "'limit' is ''"),
    ("/sessions?limit=1.0", "'limit' is '1.0'"),
    ("/sessions?limit=%C2%B2", "'limit' is '²'"),
    ("/sessions?limit=" + "9" * 5000, "'limit' is '999"),
    ("/sessions?limit=1&limit=2", "'limit' is given twice"),
    ("/sessions?cursor=x", "cursor is 'x', expected what a list of these sessions gave"),
    ("/sessions?after=1", "'after' is not known; known here: limit, cursor, user"),
    ("/sessions?owner=bob", "'owner' is not known"),
    ("/sessions?tenant=acme", "'tenant' is not known"),
    ("/sessions/my-session?after=x", "'after' is 'x', expected a whole number from 0 to 9999999998"),
    ("/sessions/my-session?after=9999999999", "'after' is '9999999999'"),
    ("/sessions/my-session?cursor=x", "'cursor' is not known; known here: limit, after, user"),
    ("/sessions/my-session/export?limit=5", "'limit' is not known; known here: user"),
    ("/sessions/short", "session_id is 'short', expected 8 to 128"),
    ("/sessions/with%20a%20space", "session_id is 'with a space'"),
    ("/sessions/zero%00zero", "session_id is 'zero\\x00zero'"),
    ("/sessions/short/export", "session_id is 'short'"),
]


@pytest.mark.parametrize(("path", "words"), BAD, ids=[str(number) for number in range(len(BAD))])
async def test_a_malformed_query_is_422_in_one_line_and_removes_nothing(owned, path, words) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, "Hello")
        methods = ["GET"] if "limit" in words or "after" in words or "cursor" in words else ["GET", "DELETE"]
        for method in methods if "export" not in path else ["GET"]:
            answer = await site.client.request(method, path, headers=bearer(ALICE))
            assert answer.status_code == 422, answer.text
            assert words.split(";")[0] in answer.json()["error"]["message"]
            assert "\n" not in answer.json()["error"]["message"]
            assert len(answer.text) < 400
        assert [turn.user for turn in await site.turns("my-session", Owner(user="alice"))] == ["Hello"]


async def test_a_store_that_fails_is_503_with_a_time_to_come_back_on_every_session_route(owned, monkeypatch) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, "Hello")

        async def broken(*_, **__):
            raise StoreFailed("the session store did not answer; send the request again later")

        for verb in ("sessions", "page", "load", "delete", "purge"):
            monkeypatch.setattr(SQLiteStore, verb, broken)
        for method, path in (
            ("GET", "/sessions"), ("DELETE", "/sessions"), ("GET", "/sessions/my-session"),
            ("DELETE", "/sessions/my-session"), ("GET", "/sessions/my-session/export"),
        ):  # fmt: skip
            answer = await site.client.request(method, path, headers=bearer(ALICE))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
            assert answer.json()["error"]["code"] == "store_failed"


async def test_a_session_route_is_503_while_the_service_loads(owned) -> None:
    loaded = asyncio.Event()
    async with owned(["Hi."], loading=loaded.wait) as site:
        answer = await get(site, "/sessions")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        loaded.set()


async def test_another_method_or_path_names_what_is_served(owned) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, "Hello")
        for method, path, status in (
            ("PUT", "/sessions", 405), ("POST", "/sessions/my-session", 405),
            ("DELETE", "/sessions/my-session/export", 405), ("POST", "/ping", 405),
            ("DELETE", "/sessions/", 404), ("DELETE", "/sessions/my-session/", 404), ("GET", "/session", 404),
        ):  # fmt: skip
            answer = await site.client.request(method, path, headers=bearer(ALICE))
            assert answer.status_code == status, path
            message = answer.json()["error"]["message"]
            for served in (
                "POST /invocations", "GET /ping", "DELETE /sessions,", "GET /sessions,",
                "GET /sessions/{session_id} and",
                "DELETE /sessions/{session_id},", "and GET /sessions/{session_id}/export are",
            ):  # fmt: skip
                assert served in message
            if status == 405 and path == "/sessions":
                assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}
        assert len(await site.turns("my-session", Owner(user="alice"))) == 1


async def test_what_was_stored_before_a_restart_is_listed_and_read_after_it(owned) -> None:
    async with owned(["Hi."]) as site:
        await tell(site, ALICE, "Hello")
    async with owned(["Hi."]) as site:
        assert [row["session_id"] for row in (await get(site, "/sessions")).json()["sessions"]] == ["my-session"]
        assert [turn["user"] for turn in (await get(site, "/sessions/my-session")).json()["turns"]] == ["Hello"]
