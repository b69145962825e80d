"""Naming the user: for keys with the scope `delegate` and in SageMaker mode, at every door; for nobody else."""

import json

import pytest

from chatkit.types import Owner
from tests.server.owners import ALICE, BACKEND, BOB, SCRIPT, bearer, write_keys

pytestmark = pytest.mark.anyio
CAROL = Owner("acme", "carol")
MESSAGES = [{"role": "user", "content": "Hello"}]
TAKES = "which takes a key with the scope 'delegate'; leave it out"


@pytest.fixture
def owned(open_site, tmp_path):
    """Return a context manager that opens a site with a key file."""
    return lambda *replies, **more: open_site(*replies, keys_file=write_keys(tmp_path), **more)


async def chat(site, headers, **fields):
    body = {"messages": MESSAGES, "session_id": "my-session", **fields}
    return await site.client.post("/v1/chat/completions", json=body, headers=headers)


async def test_a_backend_acts_for_the_users_it_names_at_every_door_and_each_has_a_namespace(owned) -> None:
    async with owned(["Hi."]) as site:
        headers = bearer(BACKEND)
        own = await site.ask("From the backend", headers=headers, session_id="my-session")
        native = await site.ask("From carol", headers=headers, session_id="my-session", user="carol")
        openai = await chat(site, headers, user="carol")
        other = await site.ask("From dave", headers=headers, session_id="my-session", user="dave b. åß 漢")
        assert [answer.status_code for answer in (own, native, openai, other)] == [200] * 4
        assert "x-chatkit-ignored" not in openai.headers
        assert [turn.user for turn in await site.turns(owner=CAROL)] == ["From carol", "Hello"]
        assert [turn.user for turn in await site.turns(owner=Owner("acme", "dave b. åß 漢"))] == ["From dave"]
        assert await site.turns(owner=Owner("default", "carol")) == ()

        listed = (await site.client.get("/sessions?user=carol", headers=headers)).json()["sessions"]
        assert [(row["session_id"], row["turns"]) for row in listed] == [("my-session", 2)]
        read = (await site.client.get("/sessions/my-session?user=carol", headers=headers)).json()["turns"]
        assert [turn["user"] for turn in read] == ["From carol", "Hello"]
        export = await site.client.get("/sessions/my-session/export?user=carol", headers=headers)
        assert [json.loads(line)["user"] for line in export.text.splitlines()] == ["From carol", "Hello"]
        mine = (await site.client.get("/sessions/my-session", headers=headers)).json()["turns"]
        assert [turn["user"] for turn in mine] == ["From the backend"]

        removed = await site.client.delete("/sessions/my-session?user=carol", headers=headers)
        assert removed.status_code == 204
        assert await site.turns(owner=CAROL) == ()
        purged = await site.client.delete("/sessions", params={"user": "dave b. åß 漢"}, headers=headers)
        assert purged.json() == {"removed": 1}
        assert (await site.client.get("/sessions/my-session", headers=headers)).status_code == 200


async def test_without_the_scope_naming_a_user_is_403_and_openais_user_is_left_alone(owned) -> None:
    async with owned(["Hi."]) as site:
        assert (await site.ask("Hello", headers=bearer(BOB), session_id="my-session")).status_code == 200
        for name in (ALICE, SCRIPT):
            refused = [await site.ask("Hello", headers=bearer(name), session_id="my-session", user="bob")]
            for method, path in (
                ("GET", "/sessions"), ("DELETE", "/sessions"), ("GET", "/sessions/my-session"),
                ("DELETE", "/sessions/my-session"), ("GET", "/sessions/my-session/export"),
            ):  # fmt: skip
                refused.append(await site.client.request(method, path + "?user=bob", headers=bearer(name)))
            assert {answer.status_code for answer in refused} == {403}
            assert [answer.json()["error"]["message"] for answer in refused] == [
                f"parameters.user names a user, {TAKES}", *[f"user names a user, {TAKES}"] * 5
            ]  # fmt: skip
        for user in ("bob", 5, ["x"], ""):
            answer = await chat(site, bearer(ALICE), user=user)
            assert (answer.status_code, answer.headers["x-chatkit-ignored"]) == (200, "user")
        assert len(await site.turns(owner=Owner(user="alice"))) == 4
        assert [turn.user for turn in await site.turns(owner=Owner(user="bob"))] == ["Hello"]


BAD = [
    ("", "expected 1 to 64 characters that print"),
    ("x" * 65, "expected 1 to 64 characters that print"),
    ("a\nb", "expected 1 to 64 characters that print"),
    ("a\x00", "expected 1 to 64 characters that print"),
    ("\u202eevil", "expected 1 to 64 characters that print"),
    (" carol", "expected no space around it"),
    ("carol ", "expected no space around it"),
    ("anonymous", "which the service calls owners without a name; choose another"),
    ("key", "which the service calls owners without a name"),
    ("key-" + "0" * 32, "which the service calls owners without a name"),
]


@pytest.mark.parametrize(("user", "words"), BAD)
async def test_a_name_that_is_none_or_the_services_own_is_refused_everywhere_and_nothing_is_stored(
    owned, user, words
) -> None:
    async with owned(["Hi."]) as site:
        headers = bearer(BACKEND)
        native = await site.ask("Hello", headers=headers, user=user)
        openai = await chat(site, headers, user=user)
        listed = await site.client.get("/sessions", params={"user": user}, headers=headers)
        purged = await site.client.delete("/sessions", params={"user": user}, headers=headers)
        answers = (native, openai, listed, purged)
        assert [answer.status_code for answer in answers] == [422, 400, 422, 422]
        for answer in answers:
            assert words in answer.json()["error"]["message"]
            assert "\n" not in answer.json()["error"]["message"]
        assert site.stored_items() == 0


async def test_a_user_of_another_type_is_refused(owned) -> None:
    async with owned(["Hi."]) as site:
        headers = bearer(BACKEND)
        native = await site.ask("Hello", headers=headers, user=5)
        openai = await chat(site, headers, user=["carol"])
        assert (native.status_code, native.json()["error"]["message"]) == (
            422, "'parameters.user' is 5, expected a valid string",
        )  # fmt: skip
        assert (openai.status_code, openai.json()["error"]["message"]) == (
            400, "'user' is ['carol'], expected a name",
        )  # fmt: skip
        assert (await site.ask("Hello", headers=headers, user=None, session_id="my-session")).status_code == 200
        assert site.stored_items() > 0


async def test_a_delegates_user_is_the_owner_of_the_key_with_that_name_in_the_same_tenant(open_site, tmp_path) -> None:
    file = write_keys(tmp_path)
    file.write_text(file.read_text() + '\n[[key]]\nkey = "canary-key-of-carol"\ntenant = "acme"\nuser = "carol"\n')
    async with open_site(["Hi."], keys_file=file) as site:
        await site.ask("From the backend", headers=bearer(BACKEND), session_id="my-session", user="carol")
        turns = (await site.client.get("/sessions/my-session", headers=bearer("carol"))).json()["turns"]
        assert [turn["user"] for turn in turns] == ["From the backend"]


async def test_in_sagemaker_mode_nobody_sends_a_key_and_everybody_may_name_the_user(open_site) -> None:
    async with open_site(["Hi."], sagemaker=True, allow_local_store=True) as site:
        own = await site.ask("From somebody", session_id="my-session")
        named = await site.ask("From carol", session_id="my-session", user="carol")
        ignored = await site.ask("With a header", headers={"authorization": "Bearer x"}, session_id="my-session")
        assert [answer.status_code for answer in (own, named, ignored)] == [200] * 3
        assert (await chat(site, {}, user="carol")).status_code == 200
        assert [turn.user for turn in await site.turns()] == ["From somebody", "With a header"]
        assert [turn.user for turn in await site.turns(owner=Owner(user="carol"))] == ["From carol", "Hello"]
        unnamed = await site.client.get("/sessions")
        assert (unnamed.status_code, "?user=NAME" in unnamed.text) == (403, True)
        rows = (await site.client.get("/sessions?user=carol")).json()["sessions"]
        assert [(row["session_id"], row["turns"]) for row in rows] == [("my-session", 2)]
        assert (await site.client.delete("/sessions?user=carol")).json() == {"removed": 1}
        assert len(await site.turns()) == 2
