"""Vectors of the chat model over HTTP: OpenAI's own client, under the chat model's name, in both encodings."""

import base64
from contextlib import AsyncExitStack

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModel

from chatkit.engines import open_model
from chatkit.settings import Settings
from tests.models import tiny

pytestmark = pytest.mark.anyio
TEXTS = ["the quick brown fox", "snow in spring and rain, 漢字", "owls"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny-owl"), "llama")


@pytest.fixture(scope="module")
async def model(folder):
    settings = Settings(chat_model=str(folder), engine="transformers", dtype="float32", threads=1)
    async with AsyncExitStack() as stack:
        yield await open_model(settings, stack)


@pytest.fixture(scope="module")
def expected(folder):
    """Each text's mean last hidden state, of length one, as transformers alone makes it."""
    plain, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32), tiny.tokenizer()
    with torch.no_grad():
        means = [plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for text in TEXTS]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


@pytest.mark.parametrize("given", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
async def test_the_official_client_reads_the_chat_models_vectors(open_site, model, expected, given) -> None:
    async with open_site(model=model, encoder=model.embedder) as site:
        address = f"http://{site.host}:{site.port}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=20) as client:
            made = await client.embeddings.create(model=model.name, input=TEXTS, **given)
    assert made.model == model.name
    assert [row.index for row in made.data] == [0, 1, 2]
    packed = given.get("encoding_format") == "base64"  # the client unpacks them only where it asked for them itself
    assert [isinstance(row.embedding, str) for row in made.data] == [packed] * 3
    rows = [np.frombuffer(base64.b64decode(r.embedding), "<f4") if packed else r.embedding for r in made.data]
    assert np.abs(np.array(rows) - expected).max() < 1e-4
    assert made.usage.prompt_tokens == sum(len(ids) for ids in tiny.tokenizer()(TEXTS)["input_ids"])
