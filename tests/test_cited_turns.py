"""Which turns are cited: complete answers from sources, and no other."""

from dataclasses import replace

import pytest

from chatkit.citations import Attributor
from chatkit.planning import ServiceOptions, near_best
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, ListRetriever, MemoryStore, ScriptedModel
from chatkit.types import ChatRequest, Passage, RetrievalOptions
from tests.word_encoder import WordEncoder

pytestmark = pytest.mark.anyio
PASSAGES = [Passage(f"p{n}", f"chatkit listens on port 808{n}.", title="Serving") for n in range(9)]
QUESTION = "Which port does chatkit use?"


def service_with(*pieces, store=None, delay=0.0, passages=PASSAGES[:2]):
    return OpenChatKitService(
        ScriptedModel(pieces, delay=delay),
        KeywordModerator(["canary"]),
        store or MemoryStore(),
        retriever=ListRetriever(passages),
        attributor=Attributor(WordEncoder()),
    )


def ask(text=QUESTION, **more):
    return ChatRequest(text, "request-1", session_id="my-session", **more)


async def test_an_answer_is_cited_after_it_was_stored() -> None:
    reply = await service_with("chatkit listens on port 8081.").reply(ask())
    assert [(one.passage_ids, one.supported) for one in reply.citations] == [(("p1",), True)]
    assert list(reply.timings)[-3:] == ["finish", "citations", "total"]


async def test_a_passage_that_did_not_fit_the_prompt_is_not_cited() -> None:
    long = [Passage("long", "port " * 3000 + "chatkit listens on port 8081.")]
    reply = await service_with("chatkit listens on port 8081.", passages=[PASSAGES[0], *long]).reply(ask())
    assert [passage.id for passage in reply.passages] == ["p0"]
    assert reply.dropped_passages == 1
    assert [one.passage_ids for one in reply.citations] == [()]


@pytest.mark.parametrize(
    ("ratio", "scores", "used"),
    [
        (0.9, (0.8, 0.73, 0.7), 2),
        (0.0, (0.8, 0.1, 0.0), 3),
        (1.0, (0.8, 0.8, 0.7), 2),
        (0.9, (0.0, 0.0, 0.0), 3),
        (0.9, (-0.1, -0.2, -0.3), 3),
        (0.9, (), 0),
    ],
)
def test_passages_far_worse_than_the_best_are_left_out(ratio, scores, used) -> None:
    passages = tuple(Passage(f"p{n}", "text", score=score) for n, score in enumerate(scores))
    assert near_best(passages, ratio) == passages[:used]


async def test_the_operators_words_stand_before_the_passages() -> None:
    service = OpenChatKitService(
        ScriptedModel(["Yes."]),
        KeywordModerator(),
        MemoryStore(),
        retriever=ListRetriever([replace(PASSAGES[0], score=0.9), replace(PASSAGES[1], score=0.5)]),
        options=ServiceOptions(source_prompt="Answer from these.", min_ratio=0.9),
    )
    reply = await service.reply(ask())
    assert [passage.id for passage in reply.passages] == ["p0"]
    (prompt,) = service.model.prompts
    assert prompt.index("Answer from these.") < prompt.index("chatkit listens on port 8080.")
    assert "8081" not in prompt


@pytest.mark.parametrize(("sentences", "said"), [(1, 1), (2, 2), (0, 3)])
async def test_a_prompt_may_hold_the_nearest_sentences_of_a_passage_which_is_listed_whole(sentences, said) -> None:
    text = "It is small. It listens on port 8080. Ports below 1024 need rights."
    service = OpenChatKitService(
        ScriptedModel(["On 8080."]),
        KeywordModerator(),
        MemoryStore(),
        retriever=ListRetriever([Passage("p", text, title="Serving")]),
        options=ServiceOptions(source_sentences=sentences),
    )
    reply = await service.reply(ask("On which port does chatkit listen?"))
    (prompt,) = service.model.prompts
    assert "It listens on port 8080." in prompt
    assert sum(part in prompt for part in ("is small", "port 8080", "below 1024")) == said
    assert ("[1] Serving" in prompt) is (sentences == 0)
    assert [passage.text for passage in reply.passages] == [text]


async def test_a_follow_up_without_a_telling_word_is_answered_from_the_sentence_for_what_was_asked_before() -> None:
    service = OpenChatKitService(
        ScriptedModel(["Yes."]),
        KeywordModerator(),
        MemoryStore(),
        retriever=ListRetriever([Passage("p", "It is small. It uses port 8080.")]),
        options=ServiceOptions(source_sentences=1),
    )
    await service.reply(ask())
    await service.reply(replace(ask("And is it that one now?"), request_id="request-2"))
    assert [prompt.count("port 8080") for prompt in service.model.prompts] == [1, 1]
    assert not any("small" in prompt for prompt in service.model.prompts)


@pytest.mark.parametrize(
    ("message", "options", "reply"),
    [
        ("a canary port", {}, "chatkit listens on port 8081."),
        (QUESTION, {}, "chatkit listens on port 8081. The canary sings."),
        (QUESTION, {"retrieval": RetrievalOptions(enabled=False)}, "chatkit listens on port 8081."),
        ("Something else entirely", {}, "chatkit listens on port 8081."),
        (QUESTION, {}, " "),
    ],
)
async def test_refused_blocked_ungrounded_and_empty_answers_have_none(message, options, reply) -> None:
    assert (await service_with(reply).reply(ask(message, **options))).citations == ()


async def test_an_aborted_answer_has_none() -> None:
    service = service_with(*["chatkit listens on port 8081. "] * 200, delay=0.01)
    live = service.start(ask())
    async for event in live.events():
        if type(event).__name__ == "TextDelta":
            live.cancel()
    reply = await live.result()
    assert (reply.finish_reason, reply.citations) == ("aborted", ())


async def test_a_replayed_answer_has_its_sources_without_text_and_no_citations() -> None:
    store = MemoryStore()
    service = service_with("chatkit listens on port 8081.", store=store)
    await service.reply(ask())
    again = await service.reply(ask())
    assert again.replayed
    assert [passage.id for passage in again.passages] == ["p0", "p1"]
    assert again.citations == ()
