"""The retrievers of docs/retrievers.md: its own code answers, and the setting opens what it names."""

import asyncio
import re
import sys
import tomllib
from dataclasses import replace

import pytest

from chatkit import ChatRequest, OpenChatKitService, Settings, wiring
from chatkit.errors import ConfigError
from chatkit.retrieval.http import HttpRetriever, HttpSearch
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedModel
from tests.serving import ROOT

PAGE = (ROOT / "docs" / "retrievers.md").read_text(encoding="utf-8")


@pytest.fixture
def faq(tmp_path, monkeypatch):
    """The example of the page, as the module it says it is."""
    (code,) = re.findall(r'^```python\n("""faq\.py.*?)^```', PAGE, re.M | re.S)
    (tmp_path / "faq.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield code
    sys.modules.pop("faq", None)


def test_your_own_retriever_takes_20_lines_and_answers_a_turn(faq, tmp_path) -> None:
    assert len([line for line in faq.splitlines() if line.strip()]) <= 20
    settings = Settings(home=tmp_path, retriever="python:faq:FaqRetriever")
    retriever = wiring.open_retriever(settings, None)
    service = OpenChatKitService(
        ScriptedModel(["Port 8080."]), KeywordModerator([]), MemoryStore(), retriever=retriever
    )

    async def ask(text):
        return await service.reply(ChatRequest(text, request_id="request-" + str(len(text))))

    reply = asyncio.run(ask("Which port does the service listen on?"))
    assert [(passage.id, passage.source) for passage in reply.passages] == [("faq-1", "faq.py")]
    assert asyncio.run(ask("Tell me a story about whales, please.")).passages == ()
    retriever.close()


@pytest.mark.parametrize("named", ["python:nowhere:Name", "python:faq:Nothing"])
def test_a_retriever_that_cannot_be_imported_is_named(faq, tmp_path, named) -> None:
    with pytest.raises(ConfigError, match=f"retriever is '{named}', which cannot be imported"):
        wiring.open_retriever(Settings(home=tmp_path, retriever=named), None)


@pytest.mark.parametrize("named", ["faq.py", "python:faq", "python:a b:C", "http:"])
def test_another_form_is_refused(tmp_path, named) -> None:
    with pytest.raises(ConfigError, match=r"expected http:FILE\.toml, python:MODULE:NAME, or nothing"):
        Settings(home=tmp_path, retriever=named)


def test_the_search_api_of_the_page_is_one_that_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "k")
    (text,) = re.findall(r"^```toml\n(# intranet\.toml\n.*?)^```", PAGE, re.M | re.S)
    assert (
        HttpSearch(**tomllib.loads(text)).filled("a b", 3)[0] == "https://search.example.com/v1/search?q=a%20b&size=3"
    )
    (tmp_path / "intranet.toml").write_text(text)
    settings = Settings(home=tmp_path, retriever=f"http:{tmp_path / 'intranet.toml'}")
    assert isinstance(wiring.open_retriever(settings, None), HttpRetriever)
    assert wiring.open_retriever(settings.without_index(), None) is None
    assert wiring.open_retriever(replace(settings, retriever="", index=""), None) is None
