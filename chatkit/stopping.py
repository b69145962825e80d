"""Stop words in a stream: hold back what may become one, cut at the first, flush at the end. Knows no model."""

from collections.abc import AsyncIterator, Sequence

from chatkit.protocols import Generation
from chatkit.types import Chunk


class StopWords:
    """Finds the first of several strings in text that arrives in pieces of any size."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(w for w in words if w)
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """Take more text and return what is sure not to be part of a stop word; after a hit, nothing."""
        if self.hit:
            return ""
        self._held += text
        found = [(at + len(word), at) for word in self._words if (at := self._held.find(word)) >= 0]
        if found:
            self.hit = True
            _, start = min(found)  # of overlapping words the one that ends first, however the text was split
            safe, self._held = self._held[:start], ""
            return safe
        keep = self._possible_start()
        safe, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return safe

    def flush(self) -> str:
        """Return the text that looked like the start of a stop word and, the text having ended, was none."""
        rest, self._held = self._held, ""
        return rest

    def _possible_start(self) -> int:
        """Return the length of the longest ending of the held text that begins a stop word."""
        longest = 0
        for word in self._words:
            for size in range(min(len(word) - 1, len(self._held)), longest, -1):
                if self._held.endswith(word[:size]):
                    longest = size
                    break
        return longest


async def hold_back(generation: Generation, words: Sequence[str]) -> AsyncIterator[Chunk]:
    """Yield the generation's chunks up to the first stop word, which cancels it.

    The last chunk has `finish_reason="stop"` after a hit and the model's own otherwise; every token made is counted.
    """
    stop = StopWords(words)
    chunks = aiter(generation)
    async for chunk in chunks:
        text = stop.feed(chunk.text)
        if stop.hit:
            if chunk.finish_reason is None:
                generation.cancel()
            chunk = await _last(chunks, chunk)
            yield Chunk(text, chunk.tokens, "stop", chunk.prompt_tokens)
            return
        if chunk.finish_reason is not None:
            text += stop.flush()
        if text or chunk.tokens or chunk.finish_reason:
            yield Chunk(text, chunk.tokens, chunk.finish_reason, chunk.prompt_tokens)


async def _last(chunks: AsyncIterator[Chunk], chunk: Chunk) -> Chunk:
    """Drain a generation that is over and return its end, with the tokens counted from `chunk` on."""
    tokens = chunk.tokens
    async for chunk in chunks:
        tokens += chunk.tokens
    return Chunk("", tokens, chunk.finish_reason, chunk.prompt_tokens)
