"""Citations at every door: the same ones, in the words of each."""

import json

import pytest

from chatkit.citations import Attributor
from chatkit.server.protocols.openai import annotations
from chatkit.types import Citation, Passage, Reply
from tests.word_encoder import WordEncoder

pytestmark = pytest.mark.anyio
REPLY = ["chatkit listens on port 8080. ", "Bananas are yellow when ripe."]
TEXT = "".join(REPLY)
QUESTION = "Which port does chatkit use here"


async def test_the_native_door_names_the_sources_of_each_sentence(open_site) -> None:
    async with open_site(REPLY, attributor=Attributor(WordEncoder())) as site:
        frames = await site.stream(QUESTION)
        plain = (await site.ask(QUESTION)).json()
    identity = plain["sources"][0]["id"]
    first, second = plain["citations"]
    assert (TEXT[first["start"] : first["end"]], first["sources"]) == ("chatkit listens on port 8080.", [identity])
    assert (TEXT[second["start"] : second["end"]], second["sources"]) == ("Bananas are yellow when ripe.", [])
    assert (first["supported"], second["supported"]) == (True, False)
    assert frames[-1]["citations"] == plain["citations"]
    stages = plain["timings"]
    assert stages["finish"] <= stages["citations"] <= stages["total"]


async def test_the_openai_door_has_them_beside_the_sources(open_site) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    async with open_site(REPLY, attributor=Attributor(WordEncoder())) as site:
        made = (await site.client.post("/v1/chat/completions", json=body)).json()
        streamed = (await site.client.post("/v1/chat/completions", json={**body, "stream": True})).text
    assert [one["supported"] for one in made["chatkit"]["citations"]] == [True, False]
    assert "annotations" not in made["choices"][0]["message"]
    chunks = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n") if line.startswith("data: {")]
    assert chunks[-1]["chatkit"]["citations"] == made["chatkit"]["citations"]


async def test_without_an_attributor_there_are_none_and_no_time_is_spent(open_site) -> None:
    async with open_site(REPLY) as site:
        plain = (await site.ask(QUESTION)).json()
    assert plain["citations"] == []
    assert plain["sources"]
    assert "citations" not in plain["timings"]


def test_openai_annotations_name_web_pages_alone() -> None:
    page = Passage("w", "text", "A page", "https://example.org/a")
    file = Passage("f", "text", "A file", "docs/a.md")
    cited = (Citation(0, 9, ("w", "f"), 0.9, True), Citation(10, 20, (), 0.1, False))
    reply = Reply("x" * 20, "s-1", "r-1", 1, "stop", passages=(page, file), citations=cited)
    place = {"start_index": 0, "end_index": 9, "title": "A page", "url": "https://example.org/a"}
    assert annotations(reply) == {"annotations": [{"type": "url_citation", "url_citation": place}]}
