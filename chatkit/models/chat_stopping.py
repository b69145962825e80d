"""Stop words over token ids: the one rule that the engine's rows and `generate`'s batches both end by."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from chatkit.models.decoding import Decoder
from chatkit.stopping import StopWords


class RowStop:
    """Watches one row's new tokens for stop words, whatever tokens and characters these are spread over."""

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        self._words = StopWords(words)
        self._active = bool(words)
        self._decoder = Decoder(tokenizer)

    def hit(self, token: int) -> bool:
        """Take the row's next token; true from the one that completes a stop word on."""
        if self._active and not self._words.hit:
            self._words.feed(self._decoder.feed(token))
        return self._words.hit


class StopWordsCriteria(StoppingCriteria):  # type: ignore[misc]
    """Ends every row of a `generate` batch at its first stop word; the word stays in the row's ids, callers cut it.

    The prompt is never scanned. Text is put together over tokens, so a word may be spread over several, and a character
    over several too.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, or a fast tokenizer of transformers.
        words: what ends a row; with none, only `cancelled` does.
        prompt_tokens: length of the prompts with their padding, as `generate` got them.
        cancelled: read at every step; once it says true every row ends.
    """

    def __init__(
        self,
        tokenizer: Any,
        words: Sequence[str],
        *,
        prompt_tokens: int,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._words = tuple(words)
        self._read = prompt_tokens
        self._cancelled = cancelled or (lambda: False)
        self._rows: list[RowStop] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any = None, **_: Any) -> torch.Tensor:
        """Return (rows,) bool, true where a row is over; `input_ids` is (rows, tokens), prompts included."""
        if not self._rows:
            self._rows = [RowStop(self._tokenizer, self._words) for _ in range(len(input_ids))]
        over = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        new = input_ids[:, self._read :].tolist()
        self._read = input_ids.shape[1]
        for index, (row, tokens) in enumerate(zip(self._rows, new, strict=True)):
            over[index] = any([row.hit(token) for token in tokens])
        return over | self._cancelled()
