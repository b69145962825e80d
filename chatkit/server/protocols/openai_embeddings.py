"""The OpenAI door for vectors, `POST /v1/embeddings`: the encoder that retrieval uses, as floats or base64."""

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from chatkit.errors import InvalidRequest
from chatkit.protocols import Embedder
from chatkit.server.protocols import bodies
from chatkit.server.protocols.openai import check_model

EXAMPLE = '{"input": "Hello"}'
# What OpenAI takes in one request; POST /v1/embeddings, "input", in its API reference.
MAX_INPUTS = 2048


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: bodies.Whole | None = None
    truncate: bool = False


async def embeddings(raw: bytes, embedders: Sequence[Embedder]) -> bytes:
    """Return the JSON answer to one request: a list of L2-normalised vectors, in the order of its input.

    Raises:
        InvalidRequest: the body, or a text that is empty or longer than the encoder reads, naming it.
        NotFound: no embedder has the model's name.
    """
    body = bodies.read(raw, _Body, example=EXAMPLE, drop_null=True)
    name = check_model(body.model, *(embedder.name for embedder in embedders))
    encoder = next(embedder for embedder in embedders if embedder.name == name)
    texts = _texts(body)
    if body.dimensions not in (None, encoder.dim):
        raise InvalidRequest(f"'dimensions' is {body.dimensions}, {name} has {encoder.dim} and cannot be cut")
    lengths = await asyncio.to_thread(encoder.count_tokens_of, texts)
    longest = max(range(len(texts)), key=lengths.__getitem__)
    if lengths[longest] > encoder.max_tokens and not body.truncate:
        raise InvalidRequest(
            f"'input' {longest} has {lengths[longest]} tokens, {name} reads {encoder.max_tokens}; send shorter texts, "
            'or "truncate": true to leave the rest out'
        )
    vectors = await encoder.encode(texts)
    read = sum(min(length, encoder.max_tokens) for length in lengths)
    head = {"object": "list", "model": name, "usage": {"prompt_tokens": read, "total_tokens": read}}
    return await asyncio.to_thread(_answer, head, vectors, body.encoding_format)


def _answer(head: dict[str, Any], vectors: Any, form: str) -> bytes:
    """Write the answer, row by row: one large call to the JSON writer would keep every other thread waiting."""
    rows = (
        json.dumps({"object": "embedding", "index": at, "embedding": _written(row, form)})
        for at, row in enumerate(vectors)
    )
    return f'{json.dumps(head)[:-1]}, "data": [{", ".join(rows)}]}}'.encode()


def _texts(body: _Body) -> list[str]:
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not isinstance(texts, list):
        raise InvalidRequest(f"'input' is {bodies.short(texts)}, expected a text or a list of texts")
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise InvalidRequest(f"'input' has {len(texts)} entries, expected 1 to {MAX_INPUTS}")
    for at, text in enumerate(texts):
        if not isinstance(text, str):  # numbers of tokens are another model's
            raise InvalidRequest(f"'input' {at} is {bodies.short(text)}, expected text, not numbers of tokens")
        if not text:
            raise InvalidRequest(f"'input' {at} is empty, expected text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"'input' {at} has half a character at {error.start}, expected Unicode") from None
    return texts


def _written(row: Any, form: str) -> list[float] | str:
    """Return a vector as numbers, or as base64 of its little-endian 32-bit floats."""
    if form == "float":
        numbers: list[float] = row.tolist()
        return numbers
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
