"""A moderator that raises, hangs or answers garbage: output closed, input as configured, the server well afterwards."""

import asyncio
import re

import pytest

from chatkit.moderation.moderator import PolicyModerator
from chatkit.moderation.policy_files import named
from chatkit.planning import ServiceOptions
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedModel
from chatkit.types import ChatRequest, ModerationResult, Replace, Scores, TextDelta

pytestmark = pytest.mark.anyio
SECRET = "a secret sentence"


class Raises(KeywordModerator):
    async def check(self, text, *, direction, before="", history=()):
        raise RuntimeError(f"cannot read {text!r}")


class Hangs(KeywordModerator):
    async def check(self, text, *, direction, before="", history=()):
        await asyncio.sleep(3600)


class Answers(KeywordModerator):
    def __init__(self, said) -> None:
        super().__init__()
        self.said = said

    async def check(self, text, *, direction, before="", history=()):
        return self.said


class CutOff(KeywordModerator):
    """Waits for work of its own that somebody cancelled."""

    async def check(self, text, *, direction, before="", history=()):
        work = asyncio.ensure_future(asyncio.sleep(3600))
        work.cancel()
        await work


class Scored:
    def __init__(self, **scores) -> None:
        self.scores = scores

    async def score(self, text, *, direction, before="", history=()):
        return Scores(self.scores)


FAULTS = {
    "raises": Raises,
    "hangs": Hangs,
    "says nothing": lambda: Answers(None),
    "says text": lambda: Answers("safe"),
    "has no label": lambda: Answers(ModerationResult(False, label=None)),
    "has an unknown label": lambda: Answers(ModerationResult(False, label="safe")),
    "has an unknown action": lambda: Answers(ModerationResult(False, action="block")),
    "refuses and does not flag": lambda: Answers(ModerationResult(False, "refuse", "needs intervention")),
    "escalates and does not flag": lambda: Answers(ModerationResult(False, "escalate", "needs intervention")),
    "has no flag": lambda: Answers(ModerationResult(None)),
    "is cut off": CutOff,
    "is unavailable": lambda: Answers(ModerationResult(False, label=None, unavailable=True)),
    "scores NaN": lambda: PolicyModerator(Scored(harm=float("nan")), named("monitor")),
    "scores 7": lambda: PolicyModerator(Scored(hate=7.0), named("monitor")),
}


class OneSide(KeywordModerator):
    """Sound for all but one direction."""

    def __init__(self, broken, direction) -> None:
        super().__init__()
        self.fault, self.direction = broken, direction

    async def check(self, text, *, direction, before="", history=()):
        judge = self.fault if direction == self.direction else super()
        return await judge.check(text, direction=direction, before=before, history=history)


def service_with(moderator, **options) -> OpenChatKitService:
    replies = ([f"This is {SECRET}. ", "And one more."],)
    return OpenChatKitService(
        ScriptedModel(*replies),
        moderator,
        MemoryStore(),
        options=ServiceOptions(check_timeout_s=0.05, **options),
    )


async def events_of(service, number=1, text=f"Tell me {SECRET}") -> list:
    request = ChatRequest(text, f"request-{number}", session_id=f"my-session-{number}")
    return [event async for event in service.stream(request)]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("gate", ["check_first", "final_only"])
async def test_an_answer_that_cannot_be_checked_never_leaves(fault, gate, caplog) -> None:
    service = service_with(OneSide(FAULTS[fault](), "output"), gate=gate)
    events = await events_of(service)
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert [event.label for event in events if isinstance(event, Replace)] == [None]
    reply = events[-1]
    assert (reply.finish_reason, reply.moderation_output.unavailable, reply.moderation_output.label) == (
        "content_filter", True, None,
    )  # fmt: skip
    assert SECRET not in reply.text + caplog.text
    assert "status=unavailable" in caplog.text
    assert service.checks.counts["output", "unavailable"] == 1
    assert service.checks.counts["output", "allow"] == 0
    (turn,) = (await service._store.load(ChatRequest("x", "request-1").owner, "my-session-1", limit=9)).turns
    assert (turn.status, turn.label, turn.assistant) == ("blocked", "unavailable", "")
    service.checks.moderator.fault = KeywordModerator()
    assert (await events_of(service, 2))[-1].finish_reason == "stop"  # and well again


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_message_that_cannot_be_checked_is_refused_or_let_in_and_marked(fault, caplog) -> None:
    closed = service_with(OneSide(FAULTS[fault](), "input"))
    reply = (await events_of(closed))[-1]
    assert (reply.finish_reason, reply.moderation_input.unavailable) == ("content_filter", True)
    assert closed.model.prompts == []
    assert closed.checks.counts["input", "unavailable"] == 1
    opened = service_with(OneSide(FAULTS[fault](), "input"), refuse_unchecked_input=False)
    reply = (await events_of(opened))[-1]
    assert (reply.finish_reason, reply.moderation_input.unavailable, reply.moderation_output.unavailable) == (
        "stop", True, False,
    )  # fmt: skip
    assert opened.checks.counts["input", "unavailable"] == 1
    assert opened.checks.counts["input", "allow"] == 0
    assert SECRET not in caplog.text


@pytest.mark.parametrize("side", ["input", "output"])
async def test_a_repeat_of_a_turn_that_was_not_checked_still_says_so(side) -> None:
    service = service_with(OneSide(Raises(), side))
    first, again = [await events_of(service) for _ in range(2)]
    assert again[-1].replayed
    for events in (first, again):
        verdict = getattr(events[-1], f"moderation_{side}")
        assert (verdict.unavailable, verdict.label, verdict.flagged) == (True, None, False)
        assert [event.label for event in events if isinstance(event, Replace)] == [None]
    flagging = service_with(OneSide(Answers(ModerationResult(True, "refuse", "needs intervention")), side))
    verdicts = [getattr((await events_of(flagging))[-1], f"moderation_{side}") for _ in range(2)]
    assert [(v.unavailable, v.flagged, v.label, v.done) for v in verdicts] == [
        (False, True, "needs intervention", "refuse"),
    ] * 2


@pytest.mark.parametrize("side", ["input", "output"])
async def test_a_text_that_is_flagged_is_refused_whatever_milder_action_is_named(side) -> None:
    service = service_with(OneSide(Answers(ModerationResult(True, "annotate", "needs caution")), side))
    verdict = getattr((await events_of(service))[-1], f"moderation_{side}")
    assert (verdict.flagged, verdict.action) == (True, "refuse")
    assert (service.checks.counts[side, "refuse"], service.checks.counts[side, "annotate"]) == (1, 0)


FAILURES = {
    "raises": "moderation of output failed with RuntimeError at .*test_moderator_faults.py:[0-9]+$",
    "hangs": "moderation of output took more than 0 s$",
    "says text": "moderation of output answered what is no verdict: a str$",
    "refuses and does not flag": "moderation of output contradicts itself: action refuse, not flagged$",
    "is cut off": "moderation of output failed with CancelledError at .*:[0-9]+$",
    "is unavailable": "moderation of output could not be told by its model -$",
    "scores NaN": "moderation of output could not be told by its model -$",
}


@pytest.mark.parametrize("fault", FAILURES)
async def test_the_log_says_of_which_direction_a_check_was_and_what_was_wrong(fault, caplog) -> None:
    await events_of(service_with(OneSide(FAULTS[fault](), "output")))
    said = [record.getMessage() for record in caplog.records if record.name == "chatkit.release"]
    (line,) = set(said)  # one a check
    assert re.search(FAILURES[fault], line)
    assert SECRET not in caplog.text


async def test_turns_that_wait_for_a_hanging_check_do_not_hold_up_the_others() -> None:
    class Sometimes(Hangs):
        async def check(self, text, *, direction, before="", history=()):
            if "slow" in text:
                return await super().check(text, direction=direction, before=before)
            return ModerationResult(False)

    service = service_with(Sometimes())
    slow = [asyncio.create_task(events_of(service, n, "slow one")) for n in range(10, 30)]
    assert (await asyncio.wait_for(events_of(service, 1, "quick one"), 1))[-1].finish_reason == "stop"
    assert {(await task)[-1].finish_reason for task in slow} == {"content_filter"}
