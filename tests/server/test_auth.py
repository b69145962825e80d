"""Who may call: every route but one needs the key, and no key means no address that others can reach."""

import asyncio
import hashlib
import hmac
from pathlib import Path

import pytest

from chatkit.cli import exit_code
from chatkit.errors import ConfigError, Forbidden, Unauthorized
from chatkit.server.app import ChatApp
from chatkit.server.auth import Gatekeeper, require_safe_bind
from chatkit.server.callers import SCOPES
from chatkit.settings import Secret, Settings
from chatkit.types import Owner

KEY = "canary-key-123"


@pytest.mark.anyio
async def test_every_route_but_ping_refuses_a_caller_without_the_key_in_the_same_words(open_site) -> None:
    async with open_site(["Hi."], api_key=Secret(KEY)) as site:
        answers = set()
        routes = ChatApp(Settings()).asgi().routes
        assert {route.path for route in routes} >= {"/ping", "/invocations"}
        for route in routes:
            if route.path == "/ping":
                assert (await site.client.get("/ping")).status_code == 200
                continue
            for method in route.methods:
                for value in (None, "", KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", "Bearer \xe4\xf6"):
                    headers = {} if value is None else {"authorization": value.encode("latin-1")}
                    answer = await site.client.request(method, route.path, headers=headers, content=b"{")
                    assert answer.status_code == 401
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert KEY not in answer.text
                    if method != "HEAD":
                        answers.add(answer.json()["error"]["message"])
        assert answers == {"the API key is missing or wrong; send it as `Authorization: Bearer KEY`"}
        assert site.stored_items() == 0


@pytest.mark.anyio
async def test_the_key_opens_a_namespace_of_its_own(open_site) -> None:
    async with open_site(["Hi."], api_key=Secret(KEY)) as site:
        for kind in ("Bearer", "bearer", "BEARER"):
            assert (await site.ask(headers={"authorization": f"{kind} {KEY}"})).status_code == 200
        assert await site.turns() == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host, caplog) -> None:
    require_safe_bind(Settings(host=host))
    require_safe_bind(Settings(host=host, sagemaker=True, allow_local_store=True))
    assert caplog.records == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "127.0.0.1.example.org", "0"])
def test_any_other_address_needs_a_key_a_key_file_or_sagemaker_in_front(host, caplog) -> None:
    ways = r"set CHATKIT_API_KEY, CHATKIT_API_KEY_FILE or CHATKIT_KEYS_FILE, or use 127\.0\.0\.1$"
    with pytest.raises(ConfigError, match=ways) as caught:
        require_safe_bind(Settings(host=host))
    assert "\n" not in str(caught.value)
    require_safe_bind(Settings(host=host, api_key=Secret("key")))
    require_safe_bind(Settings(host=host, keys_file=Path("keys.toml")))
    assert caplog.records == []
    require_safe_bind(Settings(host=host, sagemaker=True, allow_local_store=True))
    assert [record.getMessage() for record in caplog.records] == [
        f"SageMaker mode: whoever reaches {host} may act for any user, no key is asked for"
    ]


def test_one_thing_alone_says_who_may_call(tmp_path) -> None:
    file = tmp_path / "keys.toml"
    with pytest.raises(ConfigError, match=r"^keys_file is '.*keys\.toml', expected nothing where api_key is set"):
        Settings(keys_file=file, api_key=Secret(KEY))
    for more in ({"keys_file": file}, {"api_key": Secret(KEY)}):
        with pytest.raises(ConfigError, match=r"^sagemaker is True, expected no api_key and no keys_file") as caught:
            Settings(sagemaker=True, store="dynamodb", **more)
        assert KEY not in str(caught.value)


def test_the_callers_of_each_mode_have_their_owner_scopes_and_no_name() -> None:
    bearer = {"authorization": f"Bearer {KEY}"}
    modes = {
        ("anonymous", ("chat", "sessions", "metrics")): (Settings(), {}),
        ("key", ("chat", "sessions")): (Settings(api_key=Secret(KEY)), bearer),
        ("anonymous", SCOPES): (Settings(sagemaker=True, store="dynamodb"), {}),
    }
    for (user, scopes), (settings, headers) in modes.items():
        caller = Gatekeeper(settings).caller(headers)
        assert (caller.owner, caller.scopes, caller.named) == (Owner("default", user), frozenset(scopes), False)


def test_a_key_is_compared_with_every_one_of_the_file_in_constant_time(tmp_path, monkeypatch) -> None:
    names = [f"key-number-{number:06}" for number in range(20)]
    file = tmp_path / "keys.toml"
    file.write_text("".join(f'[[key]]\nkey = "{name}"\nuser = "{name}"\n' for name in names))
    file.chmod(0o600)
    gatekeeper = Gatekeeper(Settings(keys_file=file))
    compared = []
    whole = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or whole(a, b))
    for name in (names[0], names[19], names[10]):
        compared.clear()
        assert gatekeeper.caller({"authorization": f"Bearer {name}"}).owner.user == name
        assert compared == [(32, 32)] * 20
    compared.clear()
    with pytest.raises(Unauthorized):
        gatekeeper.caller({"authorization": "Bearer key-number-000020"})
    assert compared == [(32, 32)] * 20


@pytest.mark.anyio
async def test_the_files_keys_open_their_own_namespaces_and_a_wrong_one_none(open_site, tmp_path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[key]]\nkey = "{KEY}-alice"\nuser = "alice"\n[[key]]\nkey = "{KEY}-other"\n')
    file.chmod(0o600)
    async with open_site(["Hi."], keys_file=file) as site:
        for name in ("alice", "other"):
            headers = {"authorization": f"Bearer {KEY}-{name}"}
            assert (await site.ask(f"I am {name}.", headers=headers, session_id="my-session")).status_code == 200
        assert [turn.user for turn in await site.turns(owner=Owner(user="alice"))] == ["I am alice."]
        other = f"key-{hashlib.sha256(f'{KEY}-other'.encode()).hexdigest()[:32]}"
        assert [turn.user for turn in await site.turns(owner=Owner(user=other))] == ["I am other."]
        for key in (KEY, f"{KEY}-alic", "alice", "x"):
            refused = await site.ask(headers={"authorization": f"Bearer {key}"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.anyio
async def test_each_route_asks_for_its_scope_and_a_key_without_it_gets_403_in_the_shape_of_the_door(
    open_site, tmp_path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(f'[[key]]\nkey = "{KEY}-{scope}"\nuser = "alice"\nscopes = ["{scope}"]\n' for scope in SCOPES)
    )
    file.chmod(0o600)
    opened: dict[str, set[str]] = {scope: set() for scope in SCOPES}
    async with open_site(["Hi."], keys_file=file) as site:
        routes = [route for route in ChatApp(Settings()).asgi().routes if route.path != "/ping"]
        for scope in SCOPES:
            for route in routes:
                for method in route.methods - {"HEAD"}:
                    path = route.path.format(session_id="s-unknown-session") if "{session" in route.path else route.path
                    answer = await site.client.request(
                        method, path, content=b"{", headers={"authorization": f"Bearer {KEY}-{scope}"}
                    )
                    if answer.status_code != 403:
                        opened[scope].add(route.path)
                        continue
                    error = answer.json()["error"]
                    assert error["code"] == "forbidden"
                    assert error.get("type") == ("permission_error" if path.startswith("/v1/") else None)
                    needed = path[1:] if path == "/metrics" else "sessions" if path.startswith("/sessions") else "chat"
                    assert error["message"] == (
                        f"this takes a key with the scope {needed!r}, which yours has not; ask the operator for one"
                    )
    paths = {route.path for route in routes}
    sessions = {path for path in paths if path.startswith("/sessions")}
    metrics = {"/metrics"}
    assert opened == {"chat": paths - sessions - metrics, "sessions": sessions, "delegate": set(), "metrics": metrics}


def test_forbidden_has_its_exit_code() -> None:
    assert (exit_code(Forbidden("no")), exit_code(Unauthorized("no"))) == (1, 1)


@pytest.mark.anyio
async def test_ping_and_turns_are_503_while_loading_and_answered_from_then_on(open_site, until) -> None:
    loaded = asyncio.Event()
    async with open_site(["Hi."], loading=loaded.wait) as site:
        ping = await site.client.get("/ping")
        assert (ping.status_code, ping.json(), ping.headers["retry-after"]) == (503, {"status": "loading"}, "1")
        turn = await site.ask()
        assert (turn.status_code, turn.json()["error"]["code"]) == (503, "unavailable")
        loaded.set()
        for _ in range(100):
            if (await site.client.get("/ping")).status_code == 200:
                break
            await asyncio.sleep(0.01)
        assert (await site.client.get("/ping")).json() == {"status": "ready"}
        assert (await site.ask()).status_code == 200
        site.model.ready = False
        ping = await site.client.get("/ping")
        assert (ping.status_code, ping.json()) == (503, {"status": "engine stopped"})
