"""One owner with every route and another's ids: 404 as for ids that nobody has, the same work, nothing changed."""

import json
import re
import sqlite3

import pytest

from chatkit.server.app import ChatApp
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.settings import Settings
from tests import ministack
from tests.server.conftest import open_site  # noqa: F401
from tests.server.owners import ALICE, BACKEND, BOB, SCRIPT, bearer, write_keys

pytestmark = pytest.mark.anyio

SECRET = "Zebulon's secret"
# Who tries, and what it adds to its requests; the last one names the victim's user, in its own tenant.
ATTACKERS = [(ALICE, None), (SCRIPT, None), (BACKEND, None), (BACKEND, "bob"), (BACKEND, "mallory")]
# Routes that take no id of anything that is stored.
WITHOUT_IDS = {
    ("GET", "/metrics"),
    ("GET", "/ping"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name:path}"),
    ("POST", "/v1/embeddings"),
    ("POST", "/moderation/reports"),
}
# Routes that concern all sessions of the caller; what they take of another owner is a cursor.
OF_THE_CALLER = {("GET", "/sessions"), ("DELETE", "/sessions")}


def native(session_id, request_id, /, **more):
    return {"json": {"inputs": "Go on.", "parameters": {"session_id": session_id, **more}}}


def streamed(session_id, request_id, /, **more):
    table = native(session_id, request_id, **more)["json"]
    return {"json": table | {"stream": True}}


def chat(session_id, request_id, /, **more):
    return {"json": {"messages": [{"role": "user", "content": "Go on."}], "session_id": session_id, **more}}


def bare(session_id, request_id, /, **more):
    return {"params": {name: value for name, value in more.items() if name == "user"}}


# How each route is asked with a session's id, and with the id of a request in it.
WITH_IDS = {
    ("POST", "/invocations"): [
        native,
        streamed,
        lambda session, request, **more: native(session, request, request_id=request, **more),
        lambda session, request, **more: native(session, request, replaces=1, **more),
        lambda session, request, **more: streamed(session, request, request_id=request, replaces=1, **more),
    ],
    ("POST", "/v1/chat/completions"): [
        chat,
        lambda session, request, **more: chat(session, request, request_id=request, **more),
        lambda session, request, **more: chat(session, request, stream=True, **more),
        lambda session, request, **more: chat(session, request, **more) | {"headers": {"idempotency-key": request}},
    ],
    ("GET", "/sessions/{session_id}"): [
        bare,
        lambda session, request, **more: {"params": bare(session, request, **more)["params"] | {"after": "1"}},
        lambda session, request, **more: {"params": bare(session, request, **more)["params"] | {"limit": "1"}},
    ],
    ("DELETE", "/sessions/{session_id}"): [bare],
    ("GET", "/sessions/{session_id}/export"): [bare],
}


def route_table(app) -> set[tuple[str, str]]:
    return {(method, route.path) for route in app.routes for method in route.methods if method != "HEAD"}


@pytest.fixture
def calls(monkeypatch) -> list:
    """What the stores ask their databases: SQL without its values, names of DynamoDB's operations and parameters."""
    import botocore.client

    made: list = []
    connect, call = sqlite3.connect, botocore.client.BaseClient._make_api_call

    def traced(*arguments, **more):
        connection = connect(*arguments, **more)
        connection.set_trace_callback(asked)
        return connection

    def asked(sql: str) -> None:
        # Every sixteenth write, whatever it writes, looks whether something is to be erased.
        if sql != "PRAGMA application_id":
            made.append(re.sub(r"'[^']*'|\d+(\.\d+)?", "?", sql))

    def counted(client, operation, parameters):
        made.append((operation, sorted(parameters)))
        return call(client, operation, parameters)

    monkeypatch.setattr(sqlite3, "connect", traced)
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", counted)
    return made


@pytest.fixture(params=["sqlite", "dynamodb"])
def kept(request, tmp_path, calls):
    """An open store, and a function that returns all it holds, row by row."""
    if request.param == "sqlite":
        file = tmp_path / "sessions.sqlite3"

        def rows() -> list[str]:
            connection = sqlite3.connect(file)
            try:
                return sorted(connection.iterdump())
            finally:
                connection.close()

        return SQLiteStore(file), rows
    address = request.getfixturevalue("dynamodb")
    table = ministack.new_table(address)
    store = DynamoDBStore(table, endpoint=address)
    return store, lambda: sorted(
        json.dumps(item, sort_keys=True)
        for page in json.loads(ministack.everything_in(address, table))
        for item in page
    )


class Victim:
    """What an owner has: sessions of the server's and of its own naming, requests, and a cursor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.chosen = f"session-of-{name}"
        self.request = f"request-of-{name}"
        self.made = self.cursor = ""

    async def settle(self, site) -> None:
        answer = await site.ask(f"{SECRET} {self.name}", headers=bearer(self.name), request_id=self.request)
        self.made = answer.json()["session_id"]
        for number in range(3):
            named = {"session_id": self.chosen, "request_id": f"{self.request}-{number}"}
            assert (await site.ask(f"{SECRET} {number}", headers=bearer(self.name), **named)).status_code == 200
        if self.name != SCRIPT:
            page = await site.client.get("/sessions?limit=1", headers=bearer(self.name))
            self.cursor = page.json()["cursor"]
            assert self.cursor


@pytest.fixture
def settled(open_site, kept, tmp_path):  # noqa: F811
    """Return a context manager: a site over the store, with two owners who have something there."""
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def opened():
        store, rows = kept
        async with open_site([f"The answer. {SECRET}"], store=store, keys_file=write_keys(tmp_path)) as site:
            victims = [Victim(BOB), Victim(SCRIPT)]
            for victim in victims:
                await victim.settle(site)
            yield site, victims, rows

    return opened


def unwalked(app) -> set[tuple[str, str]]:
    return route_table(app) ^ (set(WITH_IDS) | WITHOUT_IDS | OF_THE_CALLER)


def test_every_route_of_the_table_is_walked_and_a_new_one_would_be_missed_here() -> None:
    from starlette.routing import Route

    app = ChatApp(Settings()).asgi()
    assert unwalked(app) == set()
    app.routes.append(Route("/sessions/{session_id}/new", lambda request: None, methods=["PATCH"]))
    assert unwalked(app) == {("PATCH", "/sessions/{session_id}/new")}


async def answered(site, calls, method, path, attacker, user, make, session_id, request_id):
    """Send one attack; return status, body and what the store was asked, the ids taken out of each."""
    given = make(session_id, request_id, **({} if user is None else {"user": user}))
    given["headers"] = bearer(attacker) | given.get("headers", {})
    calls.clear()
    answer = await site.client.request(method, path.format(session_id=session_id), **given)
    return answer.status_code, answer.text.replace(session_id, "ID"), list(calls)


async def test_foreign_ids_are_404_on_every_route_like_unknown_ones_and_change_nothing(settled, calls) -> None:
    tried = 0
    async with settled() as (site, victims, rows):
        before = rows()
        assert any(SECRET in row for row in before) or any("Zebulon" in row for row in before)
        for victim in victims:
            unknown = "s-" + "x" * len(victim.made[2:])
            for attacker, user in ATTACKERS:
                if attacker == victim.name:
                    continue
                for (method, path), makes in WITH_IDS.items():
                    methods = [method, "HEAD"] if method == "GET" else [method]
                    for verb in methods:
                        for make in makes:
                            at = (site, calls, verb, path, attacker, user, make)
                            foreign = await answered(*at, victim.made, victim.request)
                            nobodys = await answered(*at, unknown, "request-of-nobody")
                            assert foreign[0] == 404, (verb, path, foreign)
                            assert foreign == nobodys, (verb, path)
                            assert foreign[2], "the store was asked"
                            assert SECRET not in foreign[1]
                            tried += 1
                if not tried % 5:
                    assert rows() == before
        assert rows() == before
        assert tried >= 100
        for victim in victims:
            answer = await site.client.get(f"/sessions/{victim.made}", headers=bearer(victim.name))
            assert [turn["user"] for turn in answer.json()["turns"]] == [f"{SECRET} {victim.name}"]


async def test_ids_that_a_victim_chose_are_the_callers_own_and_nothing_of_the_victim_changes(settled) -> None:
    async with settled() as (site, victims, rows):
        before = rows()
        for victim in victims:
            for attacker, user in ATTACKERS:
                if attacker == victim.name:
                    continue
                more = {} if user is None else {"user": user}
                query = "" if user is None else f"?user={user}"
                headers = bearer(attacker)
                for path in (f"/sessions/{victim.chosen}", f"/sessions/{victim.chosen}/export"):
                    assert (await site.client.get(path + query, headers=headers)).status_code == 404
                removed = await site.client.delete(f"/sessions/{victim.chosen}{query}", headers=headers)
                assert removed.status_code == 404
                assert rows() == before
                opened = await site.ask(
                    "Hello", headers=headers, session_id=victim.chosen, request_id=f"{victim.request}-0", **more
                )
                assert (opened.status_code, opened.json()["seq"], opened.json()["replayed"]) == (200, 1, False)
                assert SECRET not in site.model.prompts[-1]
                path = f"/sessions/{victim.chosen}{query}"
                turns = (await site.client.get(path, headers=headers)).json()["turns"]
                assert [turn["user"] for turn in turns] == ["Hello"]
                assert (await site.client.delete(path, headers=headers)).status_code == 204
                assert rows() == before


async def test_a_cursor_of_another_is_of_no_use_and_lists_and_purges_reach_the_callers_own_alone(settled) -> None:
    async with settled() as (site, victims, rows):
        before = rows()
        bob = victims[0]
        for attacker, user in ATTACKERS:
            query = {} if user is None else {"user": user}
            headers = bearer(attacker)
            named = attacker == ALICE or user is not None
            listed = await site.client.get("/sessions", params=query, headers=headers)
            assert (listed.status_code, listed.json().get("sessions")) == ((200, []) if named else (403, None))
            taken = await site.client.get("/sessions", params=query | {"cursor": bob.cursor}, headers=headers)
            assert taken.status_code == (422 if named else 403)
            for more in ({"owner": "bob"}, {"tenant": "default"}, {"user": "bob", "tenant": "default"}):
                for method in ("GET", "DELETE"):
                    answer = await site.client.request(method, "/sessions", params=more, headers=headers)
                    assert answer.status_code == 422
            assert rows() == before
            purged = await site.client.delete("/sessions", params=query, headers=headers)
            assert (purged.status_code, purged.json().get("removed")) == ((200, 0) if named else (403, None))
            assert set(before) <= set(rows())
            before = rows()  # with the mark that shuts the caller itself out for a while
        own = await site.client.get("/sessions", params={"cursor": bob.cursor}, headers=bearer(BOB))
        assert (own.status_code, len(own.json()["sessions"])) == (200, 1)
