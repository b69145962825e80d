"""The seam of retrieval: what finds passages."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from chatkit.types import Passage, QueryPart


class Retriever(Protocol):
    """Finds passages."""

    async def search(
        self, query: str, *, k: int, index: str | None = None, where: Mapping[str, str] | None = None
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages above the retriever's cut-off, best first; none when nothing is relevant.

        Args:
            query: what to look for.
            k: most passages wanted.
            index: name of another index than the retriever's own.
            where: `source`, `title`, `document` → pattern; see `RetrievalOptions`.

        Raises:
            NotFound: there is no index of that name that a request may use.
            BadIndex: it is there but cannot be used.
            InvalidRequest: the retriever cannot filter so.
        """
        ...


@runtime_checkable
class PartsRetriever(Protocol):
    """A retriever that also searches by several texts at once, as a question in a conversation needs."""

    async def search_parts(
        self,
        parts: Sequence[QueryPart],
        *,
        k: int,
        index: str | None = None,
        where: Mapping[str, str] | None = None,
        rerank: bool | None = None,
        neighbours: int | None = None,
    ) -> tuple[Passage, ...]:
        """Do what `Retriever.search` does, for the message first and what was said before it after.

        Args:
            parts: at least one text; the first is what is asked now.
            k: most passages wanted.
            index: name of another index than the retriever's own.
            where: see `RetrievalOptions`, as the two that follow.
            rerank: let the reranker, where there is one, read what was found.
            neighbours: passages on each side of a hit that are read with it.
        """
        ...
