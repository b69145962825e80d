"""Who may call: every route but one needs the key, and no key means no address that others can reach."""

import asyncio

import pytest

from chatkit.errors import ConfigError
from chatkit.server.app import ChatApp
from chatkit.server.auth import require_safe_bind
from chatkit.settings import Secret, Settings

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
def test_loopback_needs_no_key(host) -> None:
    require_safe_bind(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "127.0.0.1.example.org", "0"])
def test_any_other_address_needs_one(host) -> None:
    with pytest.raises(ConfigError, match=r"set CHATKIT_API_KEY or CHATKIT_API_KEY_FILE, or use 127") as caught:
        require_safe_bind(host, None)
    assert "\n" not in str(caught.value)
    require_safe_bind(host, "key")


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
