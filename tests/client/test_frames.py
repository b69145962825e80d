"""Frames of the native door read back: what the server writes is what the client reads, and nothing else is taken."""

import json

import pytest

from chatkit import errors
from chatkit.client.frames import BadFrame, error_of, event_of, reply_of
from chatkit.server.protocols.native import answer, event_fields
from chatkit.types import (
    Citation,
    Error,
    ModerationResult,
    Passage,
    Replace,
    Reply,
    Retrieved,
    TextDelta,
    TurnStarted,
    Usage,
    Withheld,
)

PASSAGE = Passage(
    "p1", "chatkit listens on 8080", "Serving", "serving.md", "Ports", 3, 26, 0.8765, page=4, document="serving.md#2"
)
REPLY = Reply(
    text="It listens\u2028on 8080.",
    session_id="s-abc_DEF-123",
    request_id="r-0123456789",
    seq=7,
    finish_reason="length",
    passages=(PASSAGE,),
    citations=(Citation(0, 10, ("p1",), 0.8125, True), Citation(11, 19, (), 0.25, False)),
    usage=Usage(120, 8),
    timings={"accept": 0.01, "total": 1.5},
    moderation_input=ModerationResult(
        False, "annotate", "needs caution", "violence", {"violence": 0.25}, {"casual": 0.5}, False, "head", "1f"
    ),
    moderation_output=ModerationResult(True, "refuse", None, None, {}, unavailable=True, model="head"),
    dropped_turns=2,
    dropped_passages=1,
    withheld=(Withheld("p3", "dropped", "injection", "needs intervention"), Withheld("p4", "quoted", unavailable=True)),
    feedback="eyJ0.abc",
    replayed=True,
)
EVENTS = [
    TurnStarted("s-abc_DEF-123", "r-0123456789"),
    Retrieved((PASSAGE, Passage("p2", ""))),
    TextDelta("It listens\u2028on \x85 8080."),
    Replace("I cannot help with that.", "needs intervention"),
    Replace("I cannot help with that.", None),
    REPLY,
]
DONE = {"event": "done", **answer(REPLY)}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was_sent(event) -> None:
    assert event_of(json.loads(json.dumps(event_fields(event)))) == event


def test_an_answer_is_the_same_after_the_way_there_and_back() -> None:
    assert answer(reply_of(answer(REPLY))) == answer(REPLY)


def test_an_answer_of_a_service_without_citations_is_read_as_one_with_none() -> None:
    assert reply_of({name: value for name, value in answer(REPLY).items() if name != "citations"}).citations == ()


def test_an_error_frame_is_the_error_of_the_tree_with_that_code() -> None:
    event = event_of({"event": "error", "error": {"code": "not_saved", "message": "the answer was not stored"}})
    assert isinstance(event, Error)
    assert (type(event.error), str(event.error)) == (errors.NotSaved, "the answer was not stored")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not_found", errors.NotFound),
        ("too_large", errors.TooLarge),
        ("unavailable", errors.Unavailable),
        ("internal", errors.ChatkitError),
        ("missing_extra", errors.ChatkitError),
    ],
)
def test_every_code_has_its_error_and_an_unknown_one_the_root(code, kind) -> None:
    assert type(error_of({"error": {"code": code, "message": "so it is"}})) is kind


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        ([], "expected an object"),
        ({"event": "bonus"}, "bonus"),
        ({"event": "delta", "text": 5}, "text 5"),
        ({"event": "start", "session_id": "s; rm -rf ~", "request_id": "r-1"}, "session_id"),
        ({"event": "sources", "sources": None}, "sources None"),
        ({"event": "sources", "sources": [{"id": "p", "score": "high"}]}, "score 'high'"),
        ({"event": "replace", "text": "No.", "label": 3}, "label 3"),
        ({"event": "error", "error": "broken"}, "expected an object"),
        (DONE | {"finish_reason": "bored"}, "bored"),
        (DONE | {"usage": {"prompt_tokens": "many"}}, "prompt_tokens 'many'"),
        (DONE | {"moderation": {"input": {"action": "shrug"}}}, "shrug"),
        ({"event": "sources", "sources": [{"id": "p", "score": float("nan")}]}, "score nan, expected a finite number"),
        ({"event": "sources", "sources": [{"id": "p", "score": 10**400}]}, "score 1000000"),
        ({"event": "sources", "sources": [{"id": "p", "score": True}]}, "score True"),
        ({"event": "sources", "sources": [{"id": "p", "start": False}]}, "start False, expected a whole number"),
        (DONE | {"citations": {}}, "citations {}, expected a list"),
        (DONE | {"citations": ["p1"]}, "'p1', expected an object"),
        (DONE | {"citations": [{"start": 0, "end": 5, "sources": [1]}]}, "sources 1, expected text"),
        (DONE | {"timings": {"total": float("inf")}}, "total inf"),
        (DONE | {"timings": {"total": "long"}}, "total 'long'"),
        (DONE | {"moderation": {"input": {"action": "allow", "scores": {"violence": True}}}}, "violence True"),
        (DONE | {"dropped_turns": True}, "dropped_turns True"),
    ],
)
def test_a_frame_of_another_shape_is_refused_by_name(frame, named) -> None:
    with pytest.raises(BadFrame, match=named):
        event_of(frame)
