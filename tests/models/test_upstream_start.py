"""The openai engine learns what its server tells, waits for it, and knows whether it is there."""

import asyncio

import pytest

from chatkit.errors import ConfigError, EngineFailed
from chatkit.models import upstream
from chatkit.settings import Settings
from chatkit.types import SamplingParams
from tests.models.upstream_fake import (
    MODELS,
    answers,
    opened,
    prompt,
    read,
    running,
    stalls,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fake():
    async with running() as server:
        yield server


@pytest.fixture
async def model(fake):
    async with opened(fake) as made:
        yield made


async def test_readiness_follows_the_server_without_anybody_waiting_for_it(fake, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    async with opened(fake) as model:
        assert model.ready
        bodies = ("{", "[" * 200_000, "x" * (5 << 20), {})
        for broken in (answers(500), answers(401), *(answers(200, body) for body in bodies)):
            fake.models = broken
            await until(lambda: not model.ready)
            fake.models = answers(200, MODELS)
            await until(lambda: model.ready)
        looks = fake.looks
        fake.models = stalls
        monkeypatch.setattr(upstream, "_LOOK_TIMEOUT", 0.1)
        await until(lambda: fake.looks > looks and not model.ready)
        fake.models = answers(200, MODELS)
        await until(lambda: model.ready)
    assert not model.ready


async def test_a_look_that_fails_once_changes_nothing(fake, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    async with opened(fake) as model:
        seen = []

        async def once(peer) -> None:
            fake.models = answers(200, MODELS)
            await answers(500)(peer)
            seen.append(peer)

        fake.models = once
        await until(lambda: seen)
        looks = fake.looks
        while fake.looks < looks + 3:
            assert model.ready
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("row", "context"),
    [
        ({"max_model_len": 8192}, 8192),
        ({"context_length": 1000}, 1000),
        ({"meta": {"n_ctx": 2048, "n_ctx_train": 9000}}, 2048),
        ({"meta": {"n_ctx_train": 9000}}, 9000),
        ({"max_model_len": None, "meta": None, "context_window": 77}, 77),
    ],
)
async def test_the_name_and_the_context_are_learnt_from_the_server(fake, row, context) -> None:
    fake.models = answers(200, {"data": [{"id": "org/name", **row}, {"id": "other", "max_model_len": 1}]})
    async with opened(fake) as model:
        assert (model.name, model.context_window) == ("org/name", context)
        await read(model)
    assert fake.asked[0].body["model"] == "org/name"


async def test_the_context_is_asked_for_where_llama_cpp_and_tgi_have_it(fake) -> None:
    fake.models = answers(200, {"data": [{"id": "m", "meta": {"n_ctx_train": 9000}}]})
    fake.elsewhere["/props"] = answers(200, {"default_generation_settings": {"n_ctx": 4000}})
    async with opened(fake) as model:
        assert model.context_window == 4000
    fake.elsewhere = {"/info": answers(200, {"max_total_tokens": 3000})}
    async with opened(fake) as model:
        assert model.context_window == 3000


async def test_what_the_operator_says_goes_before_what_the_server_does(fake) -> None:
    async with opened(fake, model="lora-7", context=99) as model:
        assert (model.name, model.context_window, model.ready) == ("lora-7", 99, True)
        await read(model)
    assert fake.asked[0].body["model"] == "lora-7"


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (answers(401), r"refuses the key \(401\); set upstream_key"),
        (answers(404), "answers 404; upstream_url ends in /v1 as a rule"),
        (answers(301, location="http://127.0.0.1:1/"), "a redirect, which is not followed"),
        (answers(200, {"data": [{"id": "m"}]}), "does not tell how many tokens its model holds; set upstream_context"),
        (answers(200, {"data": []}), "does not tell how many tokens"),
        (answers(500), "answers 500; start the server, or correct upstream_url"),
    ],
)
async def test_a_start_that_cannot_succeed_says_what_to_do(fake, behaviour, words, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "_START_EVERY", 0.05)
    fake.models = behaviour
    with pytest.raises(EngineFailed, match=words) as caught:
        async with opened(fake, first_s=0.2):
            pass
    assert "\n" not in str(caught.value)


async def test_a_start_waits_for_a_server_that_is_still_loading(fake, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "_START_EVERY", 0.01)
    tries = []

    async def loading(peer) -> None:
        tries.append(peer)
        await (answers(503) if len(tries) < 4 else answers(200, MODELS))(peer)

    fake.models = loading
    async with opened(fake) as model:
        assert model.ready
        assert len(tries) == 4


async def test_where_all_is_set_the_server_may_come_later(fake, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    fake.models = answers(503)
    async with opened(fake, model="m", context=512) as model:
        assert not model.ready
        fake.models = answers(200, MODELS)
        await until(lambda: model.ready)


async def test_a_server_without_a_list_of_models_is_ready_while_it_answers(fake) -> None:
    fake.models = answers(404)
    async with opened(fake, context=512) as model:
        assert model.ready
        assert (await read(model))[0] == "Hello"
    async with opened(fake, context=512, lists_models=False) as model:
        looks = fake.looks
        assert model.ready
        assert (await read(model))[0] == "Hello"
        assert fake.asked[-1].body["model"] == ""
        assert fake.looks == looks


async def test_closing_ends_what_runs_and_leaves_nothing_open(fake) -> None:
    fake.script = [stalls]
    async with opened(fake) as model:
        running_one = asyncio.create_task(read(model))
        await until(lambda: fake.asked)
        await model.close()
        with pytest.raises(EngineFailed, match="shutting down"):
            await running_one
        await model.close()
    await until(lambda: not fake.open)
    with pytest.raises(EngineFailed, match="shutting down"):
        model.generate(prompt(model), SamplingParams())


async def test_prompts_and_the_key_go_to_no_proxy_but_the_one_in_the_settings(fake, monkeypatch) -> None:
    async with running() as proxy:
        address = proxy.url.removesuffix("/v1")
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, address)
        async with opened(fake) as model:
            assert (await read(model))[0] == "Hello"
        assert (proxy.connections, len(fake.asked)) == (0, 1)
        async with opened(fake, proxy=address, model="m", context=512) as model:
            assert (await read(model))[0] == "Hello"
        assert [asked.path for asked in proxy.asked] == [f"{fake.url}/chat/completions"]
        assert len(fake.asked) == 1


def test_a_proxy_with_a_password_is_refused_without_printing_it() -> None:
    with pytest.raises(ConfigError, match=r"upstream_proxy is 'an address with a name or key in it'") as caught:
        Settings(upstream_proxy="http://user:canary@proxy:3128")
    assert "canary" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"upstream_proxy is 'proxy:3128', expected an address that starts http"):
        Settings(upstream_proxy="proxy:3128")


def listing(name: str, **row: object):
    return answers(200, {"data": [{"id": name, **row}]})


async def test_a_server_that_comes_back_with_another_model_is_used_with_that(fake, monkeypatch, caplog) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    async with opened(fake) as model:
        fake.models = answers(503)
        await until(lambda: not model.ready)
        fake.models = listing("fake-2", max_model_len=512)
        await until(lambda: model.ready)
        assert (model.name, model.context_window) == ("fake-2", 512)
        assert (await read(model))[0] == "Hello"
        fake.models = listing("fake-2")  # what it no longer tells stays
        looks = fake.looks
        await until(lambda: fake.looks > looks + 2)
        assert (model.ready, model.name, model.context_window) == (True, "fake-2", 512)
        fake.models = answers(200, {"data": []})
        await until(lambda: not model.ready)
    assert fake.asked[-1].body["model"] == "fake-2"
    assert caplog.text.count("its model is 'fake-2' now, and holds 512 tokens") == 1


async def test_a_named_model_that_the_server_no_longer_lists_makes_it_not_ready(fake, monkeypatch, caplog) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    async with opened(fake, model="fake-1", context=512) as model:
        fake.models = listing("fake-2", max_model_len=64)
        await until(lambda: not model.ready)
        looks = fake.looks
        await until(lambda: fake.looks > looks + 3)
        assert caplog.text.count("GET models no longer lists 'fake-1'") == 1
        fake.models = answers(200, MODELS)
        await until(lambda: model.ready)
        assert (model.name, model.context_window) == ("fake-1", 512)


async def test_the_context_of_a_named_model_is_learnt_anew_and_what_is_set_stays(fake, monkeypatch) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    async with opened(fake, model="fake-1") as model, opened(fake, context=99) as other:
        fake.models = listing("fake-1", max_model_len=True)
        looks = fake.looks
        await until(lambda: fake.looks > looks + 3)
        assert (model.context_window, other.context_window) == (4096, 99)
        fake.models = listing("fake-1", max_model_len=1024)
        await until(lambda: model.context_window == 1024)
        assert (other.name, other.context_window) == ("fake-1", 99)


async def test_the_model_in_use_stays_while_it_is_listed_whatever_stands_before_it(fake, monkeypatch, caplog) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    own, other = {"id": "fake-1", "max_model_len": 4096}, {"id": "fake-2", "max_model_len": 64}
    async with opened(fake) as model:
        fake.models = answers(200, {"data": [other, own]})
        looks = fake.looks
        await until(lambda: fake.looks > looks + 3)
        assert (model.name, model.context_window) == ("fake-1", 4096)
        fake.models = answers(200, {"data": [other]})
        await until(lambda: model.name == "fake-2")
        assert model.context_window == 64
    assert caplog.text.count("the upstream has changed") == 1


def counting(status: int, body: object, seen: list[str]):
    """Answer, and note that it was asked."""

    async def behave(peer) -> None:
        seen.append(peer.asked.path)
        await answers(status, body)(peer)

    return behave


async def test_other_paths_are_asked_only_while_the_context_is_not_known_or_the_server_was_away(
    fake, monkeypatch
) -> None:
    monkeypatch.setattr(upstream, "_LOOK_EVERY", 0.02)
    seen: list[str] = []
    fake.models = answers(200, {"data": [{"id": "m", "meta": {"n_ctx_train": 9000}}]})
    fake.elsewhere["/props"] = counting(200, {"default_generation_settings": {"n_ctx": 4000}}, seen)
    async with opened(fake) as model, opened(fake, context=99) as told:
        looks = fake.looks
        await until(lambda: fake.looks > looks + 6)
        assert (model.context_window, told.context_window, seen) == (4000, 99, ["/props"])
        here = fake.models
        fake.models = answers(503)
        await until(lambda: not model.ready)
        fake.elsewhere["/props"] = counting(200, {"default_generation_settings": {"n_ctx": 2000}}, seen)
        fake.models = here
        await until(lambda: model.ready)
        assert (model.context_window, told.context_window) == (2000, 99)
        assert seen == ["/props"] * 2


async def test_a_start_waits_for_a_server_that_lists_its_model_before_it_has_loaded_it(
    fake, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(upstream, "_START_EVERY", 0.01)
    row = {"id": "llama", "meta": None}
    fake.elsewhere = {"/props": answers(503), "/info": answers(503)}

    async def loading(peer) -> None:
        if fake.looks > 3:
            row["meta"] = {"n_ctx_train": 9000}
            fake.elsewhere["/props"] = answers(200, {"default_generation_settings": {"n_ctx": 4000}})
        await answers(200, {"data": [row]})(peer)

    fake.models = loading
    async with opened(fake) as model:
        assert (model.name, model.context_window, model.ready, fake.looks) == ("llama", 4000, True, 4)
    assert caplog.text.count("waiting for the upstream: it does not tell how many tokens its model holds") == 1


async def test_no_cookie_is_kept(fake) -> None:
    fake.models = answers(200, MODELS, **{"set-cookie": "replica=7; Path=/"})
    async with opened(fake) as model:
        await read(model)
        await read(model)
    assert [asked.headers.get("cookie") for asked in fake.asked] == [None, None]
