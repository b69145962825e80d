"""What the shell and `ask` say of sentences that no source supports."""

import asyncio

from click.testing import CliRunner

from chatkit import cli, wiring
from chatkit.citations import Attributor
from chatkit.cli._show import support_notes
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, ListRetriever, MemoryStore, ScriptedModel
from chatkit.types import Citation, Passage, Reply
from tests.word_encoder import WordEncoder

TEXT = "It listens on 8080.\nBananas\x1b[2J are yellow."
YES, NO = Citation(0, 19, ("p1",), 0.9, True), Citation(20, len(TEXT), (), 0.1, False)


def reply(*citations: Citation, text: str = TEXT) -> Reply:
    return Reply(text, "s-1", "r-1", 1, "stop", citations=citations)


def test_only_the_sentences_without_support_are_named_safe_for_a_terminal() -> None:
    assert support_notes(reply()) == []
    assert support_notes(reply(YES)) == []
    assert support_notes(reply(YES, NO)) == ["[no source says: Bananas␛[2J are yellow.]"]
    assert support_notes(reply(NO)) == ["[no source says this]"]


def test_a_long_sentence_is_cut_in_a_note() -> None:
    text = "word " * 40
    (note,) = support_notes(reply(Citation(0, 5, ("p1",), 1.0, True), Citation(5, 200, (), 0.0, False), text=text))
    assert note.endswith("…]")
    assert len(note) == len("[no source says: ]") + 72


def test_ask_prints_them_before_the_sources(monkeypatch) -> None:
    passages = [Passage("p1", "chatkit listens on port 8080", title="Serving", source="serving.md", score=0.876)]

    async def build(settings):
        return OpenChatKitService(
            ScriptedModel(["chatkit listens on port 8080. ", "Bananas are yellow."]),
            KeywordModerator(),
            MemoryStore(),
            retriever=ListRetriever(passages),
            attributor=Attributor(WordEncoder()),
        )

    monkeypatch.setattr(wiring, "build_service", build)
    result = CliRunner().invoke(cli.group, ["ask", "Which port does chatkit use here"])
    assert result.stdout == "chatkit listens on port 8080. Bananas are yellow.\n"
    assert result.stderr == "[no source says: Bananas are yellow.]\n[1] 0.88 serving.md Serving\n"


def test_the_setting_leaves_the_attributor_out(monkeypatch, tmp_path) -> None:
    from chatkit.settings import load_settings

    made = []

    class Service(OpenChatKitService):
        def __init__(self, *parts, **more) -> None:
            made.append(more["attributor"])
            super().__init__(*parts, **more)

    async def open_model(settings, stack):
        return ScriptedModel()

    monkeypatch.setattr(wiring, "OpenChatKitService", Service)
    monkeypatch.setattr(wiring, "open_model", open_model)

    async def build(value: str) -> None:
        service = await wiring.build_service(load_settings({"index": "", "store": "memory", "citations": value}))
        await service.close(0)

    asyncio.run(build("off"))
    asyncio.run(build("on"))
    assert made[0] is None
    assert isinstance(made[1], Attributor)
