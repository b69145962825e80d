"""The whole turn over a store that loses answers: one stored turn a request, and 503 while it stays broken."""

import asyncio

import httpx
import pytest

from chatkit.errors import Conflict, Unavailable
from chatkit.service import OpenChatKitService
from chatkit.sessions import items
from chatkit.testing import KeywordModerator, ScriptedModel
from chatkit.types import ChatRequest, Owner
from tests.faults.proxy import Fault, Faults

pytestmark = pytest.mark.anyio
CHANCE = 0.12


def asked(number: int, session: str = "my-session") -> ChatRequest:
    return ChatRequest(f"Question {number}", f"{session}-request-{number}", session_id=session, client_request_id=True)


async def until_answered(service, request, clock):
    """Send a request again as a client does, the lease of a broken attempt left to run out."""
    for _ in range(8):
        try:
            return await service.reply(request)
        except (Unavailable, Conflict):
            clock.now += items.LEASE_S + 1
    return await service.reply(request)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_service_over_a_store_with_random_faults_stores_what_it_acknowledged_once(
    seed, store, proxy, beside, clock
) -> None:
    kinds = ("drop", "error", "throttle", "delay")
    faults = [
        Fault(kind, forwarded, at=None, chance=CHANCE / 4, seconds=0.05) for kind in kinds for forwarded in (0, 1)
    ]
    proxy.faults = Faults(*faults, seed=seed)
    service = OpenChatKitService(ScriptedModel(["One. ", "Two."]), KeywordModerator(), store)

    async def talk(session: str) -> list:
        return [await until_answered(service, asked(number, session), clock) for number in range(1, 9)]

    sessions = [f"session-{number}" for number in range(4)]
    replies = await asyncio.gather(*(talk(session) for session in sessions))
    assert proxy.faults.struck > 5
    for session, told in zip(sessions, replies, strict=True):
        turns = await beside.page(Owner(), session, limit=99)
        assert [turn.seq for turn in turns] == [reply.seq for reply in told] == list(range(1, 9))
        assert [turn.request_id for turn in turns] == [reply.request_id for reply in told]
        assert {(turn.status, turn.assistant) for turn in turns} == {("complete", "One. Two.")}
        assert {reply.text for reply in told} == {"One. Two."}


@pytest.mark.parametrize("kind", ["drop", "error", "hang"])
@pytest.mark.parametrize("lost", [1, 2], ids=["accept", "finish"])
async def test_a_turn_whose_write_is_acknowledged_to_nobody_is_one_turn_and_one_generation(
    kind, lost, store, proxy, beside
) -> None:
    model = ScriptedModel(["Hello."])
    service = OpenChatKitService(model, KeywordModerator(), store)
    proxy.faults = Faults(Fault(kind, forwarded=True, operation="TransactWriteItems", at=lost if lost == 1 else 2))
    reply = await service.reply(asked(1))
    assert (reply.text, reply.seq, reply.replayed) == ("Hello.", 1, False)
    assert (proxy.faults.struck, model.tokens_made) == (1, 1)
    (turn,) = await beside.page(Owner(), "my-session", limit=9)
    assert (turn.status, turn.attempt, turn.assistant) == ("complete", 1, "Hello.")


@pytest.mark.parametrize(
    ("operation", "first", "code", "seconds"),
    [
        ("Query", 1, "store_failed", "5"),
        ("TransactWriteItems", 1, "store_failed", "5"),
        ("TransactWriteItems", 2, "not_saved", "16"),
    ],
    ids=["load", "accept", "finish"],
)
async def test_a_store_that_stays_broken_is_503_with_retry_after_and_the_request_succeeds_when_it_heals(
    operation, first, code, seconds, store, proxy, beside, clock, serve
) -> None:
    body = {"inputs": "Hello", "parameters": {"session_id": "my-session", "request_id": "request-1"}}
    async with serve(ScriptedModel(["Hi."]), store) as client:
        proxy.faults = Faults(Fault("throttle", forwarded=False, operation=operation, at=first, times=10**6))
        refused = await client.post("/invocations", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, seconds)
        assert refused.json()["error"]["code"] == code
        assert (await client.get("/ping")).status_code == 200
        proxy.faults = Faults()
        clock.now += items.LEASE_S + 1
        answer = await client.post("/invocations", json=body)
        assert (answer.status_code, answer.json()["seq"], answer.json()["outputs"]) == (200, 1, "Hi.")
    (turn,) = await beside.page(Owner(), "my-session", limit=9)
    assert (turn.status, turn.assistant) == ("complete", "Hi.")


async def test_a_streamed_turn_whose_end_cannot_be_stored_ends_with_an_error_and_never_as_done(
    store, proxy, beside, serve
) -> None:
    body = {"inputs": "Hello", "stream": True, "parameters": {"session_id": "my-session"}}
    async with serve(ScriptedModel(["Hi."]), store) as client:
        proxy.faults = Faults(Fault("throttle", False, operation="TransactWriteItems", at=2, times=10**6))
        answer = await client.post("/invocations", json=body)
        frames = [httpx.Response(200, content=line).json() for line in answer.text.splitlines()]
    assert [frame["event"] for frame in frames] == ["start", "delta", "error"]
    assert frames[-1]["error"]["code"] == "not_saved"
    (turn,) = await beside.page(Owner(), "my-session", limit=9)
    assert turn.status == "pending"


@pytest.mark.parametrize("slow", ["model", "store"])
async def test_a_client_that_sends_its_whole_request_again_after_its_own_time_out_gets_the_one_answer(
    slow, store, proxy, beside, serve
) -> None:
    """As boto3's client of an endpoint does: the same bytes, up to three times, each time over a new connection."""
    model = ScriptedModel(["One. ", "Two. ", "Three."], delay=0.4 if slow == "model" else 0.0)
    body = {"inputs": "Hello", "parameters": {"session_id": "my-session", "request_id": "request-1"}}
    timed_out = 0
    async with serve(model, store, timeout=0.5) as client:
        if slow == "store":
            proxy.faults = Faults(Fault("delay", True, operation="TransactWriteItems", times=2, seconds=0.8))
        for _ in range(8):
            try:
                answer = await client.post("/invocations", json=body)
                break
            except httpx.ReadTimeout:
                timed_out += 1
        again = await client.post("/invocations", json=body, timeout=60)
    assert timed_out >= 1
    assert (answer.status_code, answer.json()["seq"]) == (200, 1)
    assert answer.json()["outputs"] == again.json()["outputs"] == "One. Two. Three."
    assert again.json()["replayed"] is True
    assert (len(model.prompts), model.tokens_made) == (1, 3)
    (turn,) = await beside.page(Owner(), "my-session", limit=9)
    assert (turn.status, turn.attempt) == ("complete", 1)
