"""Vectors from the chat model itself: each text's mean last hidden state, L2-normalised, from the weights in memory."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chatkit.errors import InvalidRequest

if TYPE_CHECKING:
    from chatkit.models.chat import ChatModel


class ChatEmbedder:
    """The chat model as an encoder under its own name; implements `protocols.Embedder`.

    Texts are read with the special tokens that the tokenizer puts around them. A longer one is read up to `max_tokens`.
    """

    def __init__(self, model: "ChatModel") -> None:
        self._model = model
        self.name = model.name
        self.dim = model.facts.hidden_size
        self.max_tokens = model.context_window

    @property
    def fingerprint(self) -> str:
        """Names weights by file, size and time, and what is made of them: equal ones give comparable vectors."""
        text = f"{self._model.facts.kind}|{self._model.facts.weights}|mean|l2|{self.max_tokens}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def count_tokens_of(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, special tokens included, however long it is."""
        return [len(row.ids) for row in self._model.tokenizer.encode_batch(list(texts))]

    async def encode(self, texts: Sequence[str]) -> Any:
        """Return (len(texts), dim) float32 vectors in the order of `texts`.

        Raises:
            InvalidRequest: a text has no tokens at all.
            Overloaded: too many texts wait, or these do not fit the engine's memory.
            EngineFailed: the engine has stopped.
        """
        import numpy as np

        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        rows = await asyncio.to_thread(self._rows, texts)
        if not all(rows):
            raise InvalidRequest(f"text {rows.index([])} of the input is empty; send some text")
        raw = await self._model.vectors(rows)
        return np.frombuffer(raw, dtype=np.float32).reshape(len(rows), self.dim)

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [row.ids[: self.max_tokens] for row in self._model.tokenizer.encode_batch(list(texts))]
