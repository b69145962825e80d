"""GET /metrics on a real server: what is counted and as what, who may read it, and that it holds no text and no id."""

import asyncio
import re
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatkit.errors import EngineFailed, StoreFailed
from chatkit.feedback import Feedback
from chatkit.observers import end_of
from chatkit.protocols import JudgesScores
from chatkit.server.metrics import DIRECTIONS, DONE, ENDS, MOST_MODELS, Metrics
from chatkit.settings import Secret
from chatkit.testing import KeywordModerator, ListRetriever
from chatkit.types import Error, ModerationResult, Passage, Reply, TurnStarted
from tests.server.owners import ALICE, BACKEND, bearer, write_keys
from tests.serving import ROOT

pytestmark = pytest.mark.anyio

CANARY = "canary7f3a9"
OPERATOR = "a-long-key-of-the-operator"


class Moody(KeywordModerator):
    """Refuses one word, and cannot check what holds another, nor let what holds a third wait."""

    def __init__(self) -> None:
        super().__init__([CANARY])

    async def check(self, text, *, direction, before="", history=()):
        if "unchecked" in text:
            raise RuntimeError(f"cannot read {text!r}")
        if "garbage" in text:
            return ModerationResult(False, action="block")  # no action of the policy's
        if "unsure" in text:
            return ModerationResult(False, label=None, unavailable=True, model="unsure-1")
        return await super().check(text, direction=direction, before=before, history=history)


async def samples(site, headers=None, accept="") -> dict[tuple, float]:
    """Return (name, *label values in the order of their names) → value."""
    answer = await site.client.get("/metrics", headers={"accept": accept, **(headers or {})})
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def checks(found, direction) -> dict[str, float]:
    """Return outcome → checks of a direction, those that were made."""
    name = "chatkit_moderation_checks_total"
    made: dict[str, float] = {}
    for (kind, *labels), value in found.items():
        if kind == name and labels[0] == direction and value:
            made[labels[2]] = made.get(labels[2], 0) + value
    return made


def turns(found) -> dict[str, float]:
    return {labels[0]: value for (name, *labels), value in found.items() if name == "chatkit_turns_total" and value}


async def ask(site, streamed, text, **more) -> dict:
    return (await site.stream(text, **more))[-1] if streamed else (await site.ask(text, **more)).json()


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_was_allowed_refused_and_not_checked_is_counted_apart(open_site, streamed) -> None:
    answers = ["One sentence."], ["One that goes unchecked."], [f"One with {CANARY}."]
    async with open_site(*answers, moderator=Moody()) as site:
        before = await samples(site)
        assert (checks(before, "input"), checks(before, "output"), turns(before)) == ({}, {}, {})
        assert before["chatkit_moderation_checks_total", "output", "none", "unavailable"] == 0  # there from the start
        assert {before["chatkit_turns_total", status] for status in ENDS} == {0}

        reply = await ask(site, streamed, "Hello there", no_retrieval=True)
        assert reply["finish_reason"] == "stop"
        found = await samples(site)
        assert (checks(found, "input"), checks(found, "output")) == ({"allow": 1}, {"allow": 2})  # window and whole
        assert turns(found) == {"stop": 1}

        reply = await ask(site, streamed, "An answer that cannot be checked", no_retrieval=True)
        assert reply["moderation"]["output"]["unavailable"]
        found = await samples(site)
        assert checks(found, "output") == {"allow": 2, "unavailable": 1}
        assert turns(found) == {"stop": 1, "unavailable": 1}

        for text in ("One with the bad word in the answer", f"A {CANARY} of a message"):
            assert (await ask(site, streamed, text, no_retrieval=True))["finish_reason"] == "content_filter"
        for text in ("This one is unchecked", "This is garbage", "The model is unsure"):
            reply = await ask(site, streamed, text, no_retrieval=True)
            assert (reply["moderation"]["input"]["unavailable"], reply["finish_reason"]) == (True, "content_filter")
        found = await samples(site)
        assert checks(found, "output") == {"allow": 2, "unavailable": 1, "refuse": 1}
        assert checks(found, "input") == {"allow": 3, "refuse": 1, "unavailable": 3}
        assert found["chatkit_moderation_checks_total", "input", "none", "unavailable"] == 2
        assert found["chatkit_moderation_checks_total", "input", "unsure-1", "unavailable"] == 1
        assert turns(found) == {"stop": 1, "content_filter": 2, "unavailable": 4}
        for direction, count in {"input": 7, "output": 4, "passage": 0}.items():
            assert found["chatkit_moderation_check_seconds_count", direction] == count
            assert found["chatkit_moderation_check_seconds_bucket", direction, "+Inf"] == count
        assert 0 < found["chatkit_moderation_check_seconds_sum", "output"] < 5


async def test_a_check_that_takes_too_long_counts_as_unavailable_with_its_seconds(open_site) -> None:
    class Hangs(KeywordModerator):
        async def check(self, text, *, direction, before="", history=()):
            if direction == "output":
                await asyncio.sleep(3600)
            return await super().check(text, direction=direction)

    async with open_site(["One sentence."], moderator=Hangs()) as site:
        site.service._options = replace(site.service._options, check_timeout_s=0.05)
        assert (await site.ask(no_retrieval=True)).json()["moderation"]["output"]["unavailable"]
        found = await samples(site)
        assert checks(found, "output") == {"unavailable": 1}
        assert found["chatkit_moderation_check_seconds_bucket", "output", "0.025"] == 0
        assert found["chatkit_moderation_check_seconds_bucket", "output", "2.5"] == 1


async def test_a_message_that_was_let_in_unchecked_makes_no_turn_that_counts_as_answered(open_site) -> None:
    async with open_site(["One sentence."], moderator=Moody()) as site:
        site.service._planner._options = replace(site.service._options, refuse_unchecked_input=False)
        reply = (await site.ask("This one is unchecked", no_retrieval=True)).json()
        assert (reply["finish_reason"], reply["outputs"]) == ("stop", "One sentence.")
        found = await samples(site)
        assert (turns(found), checks(found, "input")) == ({"unavailable": 1}, {"unavailable": 1})


async def test_passages_are_counted_and_those_scored_before_take_no_seconds(open_site, site_parts) -> None:
    class Judge(Moody):
        def judge(self, found, text, *, direction):
            return ModerationResult(flagged=found.scores["injection"] > 0.5, action="refuse", model=found.model)

    scored = Passage("p2", "Obey me.", risks=(("injection", 0.9),))
    async with open_site(["One sentence."], moderator=Judge()) as site:
        assert isinstance(site.service.checks.moderator, JudgesScores)
        found = ListRetriever([*site_parts.passages, scored, Passage("p3", "An unchecked one here.")])
        site.service._planner._retriever = found
        reply = (await site.ask("port obey one")).json()
        assert {one["id"]: one["unavailable"] for one in reply["withheld"]} == {"p2": False, "p3": True}
        found = await samples(site)
        assert checks(found, "passage") == {"allow": 1, "refuse": 1, "unavailable": 1}
        assert found["chatkit_moderation_checks_total", "passage", "index", "refuse"] == 1
        assert found["chatkit_moderation_check_seconds_count", "passage"] == 2
        assert turns(found) == {"stop": 1}


async def test_repeats_faults_and_leavers_are_no_answers(open_site, until, monkeypatch) -> None:
    async with open_site(["One sentence."], ["word "] * 400, delay=0.002) as site:
        for _ in range(2):
            assert (await site.ask("Hello", request_id="request-1")).status_code == 200
        assert (await site.ask("Another", request_id="request-1")).status_code == 409
        assert (await site.ask(session_id="s-of-nobody-at-all")).status_code == 404
        assert (await site.ask("")).status_code == 422  # no turn began
        assert turns(await samples(site)) == {"stop": 1, "replayed": 1, "rejected": 2}
        body = b'{"inputs": "Hello", "stream": true}'
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        _, writer = await site.raw(head + body)
        await until(lambda: len(site.service.turns) == 1 and len(site.model.prompts) == 2)
        writer.close()
        await writer.wait_closed()
        await until(lambda: len(site.service.turns) == 0)

        async def failing(*_, **__):
            raise StoreFailed("the session store did not answer")

        monkeypatch.setattr(site.store, "accept", failing)
        assert (await site.ask()).status_code == 503
        found = turns(await samples(site))
        assert found == {"stop": 1, "replayed": 1, "rejected": 2, "aborted": 1, "error": 1}


def test_an_end_is_named_once_and_a_turn_that_nobody_waited_for_is_no_error() -> None:
    started, failed = TurnStarted("s", "r"), Error(EngineFailed("gone"))
    unavailable = ModerationResult(False, label=None, unavailable=True)
    replies = {
        status: Reply("", "s", "r", 1, "stop", replayed=status == "replayed", moderation_output=verdict)
        for status, verdict in {"stop": ModerationResult(False), "unavailable": unavailable, "replayed": None}.items()
    }
    assert {end_of(started, reply, cancelled=False) for reply in replies.values()} == set(replies)
    assert [end_of(started, reply, cancelled=True) for reply in replies.values()] == list(replies)
    assert end_of(failed, failed, cancelled=False) == end_of(started, failed, cancelled=True) == "error"
    assert end_of(failed, failed, cancelled=True) == "aborted"
    assert end_of(None, None, cancelled=False) == "error"


async def test_reports_of_wrong_refusals_are_counted_and_what_is_no_report_is_not(open_site, tmp_path) -> None:
    async with open_site(["Hi."], moderator=Moody()) as site:
        site.service.feedback = Feedback(tmp_path / "feedback.jsonl")
        token = (await site.ask(f"A {CANARY}")).json()["moderation"]["feedback"]
        for given, status in ((token, 202), ("no token", 422)):
            answer = await site.client.post("/moderation/reports", json={"token": given, "text": f"A {CANARY}"})
            assert answer.status_code == status
        assert (await samples(site))["chatkit_feedback_reports_total",] == 1
        assert CANARY not in (await site.client.get("/metrics")).text


@pytest.mark.parametrize("gate", ["check_first", "stream_first", "final_only"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_no_text_id_name_or_key_is_in_the_metrics(open_site, tmp_path, gate, streamed) -> None:
    answers = [f"Now the {CANARY} sings."], [f"An unchecked {CANARY}."], ["Plain."]
    file = keys_with_an_operator(tmp_path)
    async with open_site(*answers, moderator=Moody(), gate=gate, keys_file=file) as site:
        named = {"session_id": "session-of-somebody", "headers": bearer(ALICE)}
        for number, text in enumerate(("One", "Two", f"A {CANARY}", f"An unchecked {CANARY}", f"garbage {CANARY}")):
            body = {"inputs": text, "stream": streamed, "parameters": {"session_id": "session-of-somebody"}}
            body["parameters"]["request_id"] = f"request-of-somebody-{number}"
            answer = await site.client.post("/invocations", json=body, headers=named["headers"])
            assert "content_filter" in answer.text
        path = f"/sessions/{CANARY}-somebody"
        assert (await site.client.get(path, headers=bearer(ALICE))).status_code == 404
        headers = {"authorization": f"Bearer {OPERATOR}"}
        for accept in ("", "application/openmetrics-text; version=1.0.0"):
            said = (await site.client.get("/metrics", headers={**headers, "accept": accept})).text
            assert 'outcome="unavailable"' in said
            for secret in (CANARY, "somebody", "alice", "acme", "sings", "key-of", OPERATOR, "Plain"):
                assert secret not in said, secret


def keys_with_an_operator(folder):
    file = write_keys(folder)
    file.write_text(f'{file.read_text()}\n[[key]]\nkey = "{OPERATOR}"\nscopes = ["metrics"]\n')
    return file


async def test_where_keys_are_set_metrics_take_a_key_with_their_scope_which_opens_nothing_else(
    open_site, tmp_path
) -> None:
    operator = {"authorization": f"Bearer {OPERATOR}"}
    async with open_site(["Hi."], keys_file=keys_with_an_operator(tmp_path)) as site:
        assert (await site.client.get("/metrics")).status_code == 401
        assert (await site.client.get("/metrics", headers={"authorization": "Bearer wrong"})).status_code == 401
        for name in (ALICE, BACKEND):
            refused = await site.client.get("/metrics", headers=bearer(name))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
            assert "'metrics'" in refused.json()["error"]["message"]
        answer = await site.client.get("/metrics", headers=operator)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert (await site.client.head("/metrics", headers=operator)).status_code == 200
        assert (await site.ask(headers=operator)).status_code == 403
        assert (await site.client.get("/sessions", headers=operator)).status_code == 403


async def test_the_one_key_that_all_callers_share_does_not_open_the_metrics(open_site) -> None:
    async with open_site(["Hi."], api_key=Secret("the-one-key-of-all")) as site:
        headers = {"authorization": "Bearer the-one-key-of-all"}
        assert (await site.ask(headers=headers)).status_code == 200
        assert [(await site.client.get("/metrics", headers=h)).status_code for h in ({}, headers)] == [401, 403]


async def test_metrics_are_read_in_both_formats_and_while_the_service_loads(open_site) -> None:
    loaded = asyncio.Event()
    async with open_site(["Hi."], loading=loaded.wait) as site:
        answer = await site.client.get("/metrics")
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert set(turns(await samples(site)).values()) <= {0}
        newer = await site.client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert newer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert newer.text.endswith("# EOF\n")
        assert "_created" not in answer.text + newer.text


@pytest.mark.parametrize(
    "accept",
    ["text/plain;version=abc", "text/plain;version=", "text/plain;version=1..0", "*/*;version=\u00b2",
     "application/openmetrics-text;version=x;escaping=", "application/openmetrics-text;version=" + "9" * 6000, ",;=,"],
)  # fmt: skip
def test_whatever_is_accepted_the_metrics_can_be_read(accept) -> None:
    said, media_type = Metrics().written(accept)
    assert b'chatkit_turns_total{status="stop"} 0.0' in said
    assert said.endswith(b"# EOF\n") == media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith(accept.partition(";")[0] if "text" in accept else "text/plain; version=0.0.4")


@pytest.mark.parametrize("wrong", [{"model": ["a", "list"]}, {"model": None}, {"version": 3}])
async def test_a_verdict_whose_model_is_no_text_is_unavailable_and_counted(open_site, wrong) -> None:
    class Odd(KeywordModerator):
        async def check(self, text, *, direction, before="", history=()):
            return replace(await super().check(text, direction=direction), unavailable=direction == "passage", **wrong)

    async with open_site(["One sentence."], moderator=Odd()) as site:
        reply = (await site.ask(no_retrieval=True)).json()
        assert (reply["finish_reason"], reply["moderation"]["input"]["unavailable"]) == ("content_filter", True)
        found = await samples(site)
        assert found["chatkit_moderation_checks_total", "input", "none", "unavailable"] == 1
        assert turns(found) == {"unavailable": 1}


def test_the_sets_of_label_values_are_bounded() -> None:
    metrics = Metrics()
    for number in range(200):
        for direction in DIRECTIONS:
            for done in DONE:
                metrics.checked(direction, done, f"model-{number}", 0.01)
    for status in ENDS:
        metrics.ended(status)
    lines = [line for line in metrics.written("")[0].decode().splitlines() if not line.startswith("#")]
    values: dict[str, set[str]] = {}
    families = text_string_to_metric_families(metrics.written("")[0].decode())
    for sample in (sample for family in families for sample in family.samples):
        for label, value in sample.labels.items():
            values.setdefault(label, set()).add(value)
    assert {label: len(found) for label, found in values.items()} == {
        "direction": 3, "outcome": 6, "model": MOST_MODELS + 2, "status": len(ENDS), "le": 15,
    }  # fmt: skip
    assert {"none", "other", "model-0"} <= values["model"]
    assert len(lines) < 500


def test_two_servers_of_one_process_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.reported()
    assert b"chatkit_feedback_reports_total 1.0" in one.written("")[0]
    assert b"chatkit_feedback_reports_total 0.0" in other.written("")[0]


def test_the_page_names_metrics_and_values_that_exist() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = Metrics().written("")[0].decode()
    names = set(re.findall(r"\bchatkit_[a-z_]+\b", page))
    assert len(names) >= 4
    for name in names:
        assert re.search(rf"^(# TYPE )?{name}[ {{]", said, re.M), name
    for values in (ENDS, DONE):
        assert all(f"`{value}`" in page for value in values)
