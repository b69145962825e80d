"""What a service logs of turns, repeats, failures and removals holds no id, name, message or key: hashes at most."""

import hashlib
import logging
import re
import sqlite3

import pytest

from chatkit.errors import EngineFailed, StoreFailed
from chatkit.service import hint_of
from chatkit.sessions.dynamodb import DynamoDBStore
from chatkit.sessions.sqlite import SQLiteStore
from chatkit.types import Owner
from tests import ministack
from tests.server.conftest import open_site  # noqa: F401
from tests.server.owners import ALICE, BACKEND, SCRIPT, bearer, key_of, write_keys

pytestmark = pytest.mark.anyio

# One word that every id, name, message and key of these tests holds.
CANARY = "canary"
SESSION, REQUEST, MESSAGE = "canary-session", "canary-request", "My canary-message"
# Beside them, what is made of them: an owner's name, the server's ids.
MADE = [hashlib.sha256(key_of(SCRIPT).encode()).hexdigest()[:32]]


@pytest.fixture(params=["sqlite", "dynamodb"])
def store(request, tmp_path):
    if request.param == "sqlite":
        return SQLiteStore(tmp_path / "sessions.sqlite3")
    address = request.getfixturevalue("dynamodb")
    return DynamoDBStore(ministack.new_table(address), endpoint=address)


@pytest.fixture
def logged(caplog, capfd):
    """Return what was logged by chatkit and the server, with everything that reached a stream."""
    for name in ("chatkit", "uvicorn", "asyncio", ""):
        caplog.set_level(logging.DEBUG if name else logging.INFO, logger=name)

    def lines() -> str:
        captured = capfd.readouterr()
        records = [
            record.getMessage() + (logging.Formatter().formatException(record.exc_info) if record.exc_info else "")
            for record in caplog.records
            if not record.name.startswith("httpx")  # the test's own client
        ]
        return "\n".join([*records, captured.out, captured.err])

    return lines


async def ask(site, text=MESSAGE, *, name=ALICE, number=1, **more):
    parameters = {"session_id": SESSION, "request_id": f"{REQUEST}-{number}", **more}
    return await site.ask(text, headers=bearer(name), **parameters)


async def live_through_everything(site, monkeypatch) -> set[int]:
    """Do what callers do and what fails; return the statuses that were seen."""
    seen = [await ask(site), await ask(site), await ask(site, "Another canary-message")]  # a repeat, and a conflict
    seen.append(await ask(site, number=2, replaces=1))
    seen.append(await ask(site, "a refused-word of canary", number=3))
    seen.append(await ask(site, number=4, replaces=99))
    seen.append(await ask(site, number=5, session_id="s-canary-session-of-nobody"))
    seen.append(await ask(site, name=BACKEND, user="canary-carol"))
    seen.append(await ask(site, name=SCRIPT))
    seen.append(await ask(site, name=ALICE, number=6, user="canary-carol"))
    seen.append(await site.ask(MESSAGE, headers={"authorization": "Bearer canary-wrong-key"}))
    chat = {"messages": [{"role": "user", "content": MESSAGE}], "session_id": SESSION, "user": "canary-carol"}
    seen += [await site.client.post("/v1/chat/completions", json=chat, headers=bearer(n)) for n in (ALICE, BACKEND)]
    seen.append(await site.client.post("/invocations", content=b'{"inputs": "canary', headers=bearer(ALICE)))
    generate = site.model.generate
    for error in (EngineFailed("the engine stopped"), RuntimeError("a defect")):

        def broken(*_, error=error, **__):
            raise error

        monkeypatch.setattr(site.model, "generate", broken)
        seen.append(await ask(site, number=7, stream=True))
        seen.append(await ask(site, number=8))
    monkeypatch.setattr(site.model, "generate", generate)
    for verb in ("load", "accept", "finish"):
        whole = getattr(site.store, verb)

        async def failing(*_, **__):
            raise StoreFailed("the session store did not answer; send the request again later")

        monkeypatch.setattr(site.store, verb, failing)
        seen.append(await ask(site, number=9))
        monkeypatch.setattr(site.store, verb, whole)
    for path in (f"/sessions/{SESSION}", f"/sessions/{SESSION}/export", "/sessions", "/sessions/canary-of-nobody"):
        seen += [await site.client.request(m, path, headers=bearer(ALICE)) for m in ("GET", "PUT", "DELETE")]
    seen.append(await site.client.delete("/sessions?user=canary-carol", headers=bearer(BACKEND)))
    seen.append(await site.client.get("/canary-path", headers=bearer(ALICE)))

    async def defect(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr(site.store, "page", defect)
    seen.append(await site.client.get(f"/sessions/{SESSION}", headers=bearer(ALICE)))
    return {answer.status_code for answer in seen}


async def test_nothing_that_opens_names_or_quotes_a_session_is_logged(
    open_site,  # noqa: F811
    store,
    tmp_path,
    monkeypatch,
    logged,
) -> None:
    file = write_keys(tmp_path)
    file.chmod(0o644)
    async with open_site(["A canary-answer."], store=store, keys_file=file, moderator=Words()) as site:
        made = (await site.ask(MESSAGE, headers=bearer(ALICE))).json()["session_id"]
        statuses = await live_through_everything(site, monkeypatch)
        assert statuses >= {200, 204, 401, 403, 404, 405, 409, 422, 500, 503}
    said = logged()
    for secret in (CANARY, MADE[0], made, key_of(ALICE), "Bearer"):
        assert secret not in said.replace(str(tmp_path), "FOLDER"), secret
    assert f"session {hint_of(Owner('default', 'alice'), SESSION)} was removed" in said
    assert f"sessions of owner {hint_of(Owner('acme', 'canary-carol'))} were removed" in said
    assert "unexpected error in /sessions/{session_id}" in said
    assert "so others may use it" in said


class Words:
    """A moderator that fails for some and refuses one word."""

    async def check(self, text, *, direction, before="", history=()):
        from chatkit.types import ModerationResult

        if "Another" in text:
            raise RuntimeError("the check broke")
        flagged = "refused-word" in text
        return ModerationResult(
            flagged, "refuse" if flagged else "allow", "needs intervention" if flagged else "casual"
        )


async def test_a_damaged_turn_is_reported_without_its_session(open_site, tmp_path, logged) -> None:  # noqa: F811
    store = SQLiteStore(tmp_path / "sessions.sqlite3")
    async with open_site(["A canary-answer."], store=store, keys_file=write_keys(tmp_path)) as site:
        for number in (1, 2):
            assert (await ask(site, number=number)).status_code == 200
        damage(tmp_path / "sessions.sqlite3")
        answer = await site.client.get(f"/sessions/{SESSION}", headers=bearer(ALICE))
        assert (answer.status_code, [turn["seq"] for turn in answer.json()["turns"]]) == (200, [2])
    said = logged()
    assert "is damaged" in said
    assert CANARY not in said.replace(str(tmp_path), "FOLDER")


def damage(file) -> None:
    """Write over the first turn of the file, whichever table holds it."""
    with sqlite3.connect(file) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for row in connection.execute(f"SELECT * FROM {table}").fetchall():
                body = next((c for c, v in zip(columns, row, strict=True) if is_first_turn(v)), None)
                if body is not None:
                    connection.execute(
                        f"UPDATE {table} SET {body} = '{{' WHERE {body} = ?", (row[columns.index(body)],)
                    )
    connection.close()


def is_first_turn(value) -> bool:
    return isinstance(value, str | bytes) and re.search(rf'"request_id":\s*"{REQUEST}-1"', str(value)) is not None
