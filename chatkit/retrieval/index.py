"""Searching an index directory: both legs, then what a request asks beyond them."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import NotFound
from chatkit.protocols import Encoder
from chatkit.retrieval import layout, versions, writing
from chatkit.retrieval.legs import Hit, Legs
from chatkit.retrieval.lexical import Lexical
from chatkit.retrieval.manifest import FILE, Manifest
from chatkit.retrieval.neighbours import ALIKE, merged, widen
from chatkit.retrieval.passages import Passages
from chatkit.retrieval.vectors import Vectors
from chatkit.types import Passage

# Searches that run beside each other; each is short and Faiss lets go of the interpreter.
_THREADS = 2
# Passages that a reranker reads for a query: on a CPU each costs it as much as the whole search.
RERANKED = 16


class Reranker(Protocol):
    """Reads query and passage together; `rerank.CrossEncoder` is one."""

    def scores(self, query: str, texts: list[str]) -> list[float]:
        """Return how well each text answers the query, 0 to 1."""
        ...


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How an index is searched where a request does not say otherwise.

    Attributes:
        min_score: passages with less are not relevant; -1 keeps all.
        dense_weight: of the dense leg, 0 to 1; None takes the index's own.
        reranker: reads the best passages again; None for no such pass.
        neighbours: passages on each side of a hit that are read with it.
        alike: cosine with the hit from which on a neighbour is.
    """

    min_score: float = 0.35
    dense_weight: float | None = None
    reranker: Reranker | None = None
    neighbours: int = 0
    alike: float = ALIKE


class VectorIndex:
    """One open version of an index; implements `protocols.Retriever`.

    Searches run in threads of its own, and go on in this version when a newer one is built.
    """

    def __init__(
        self,
        manifest: Manifest,
        vectors: Vectors,
        passages: Passages,
        encoder: Encoder,
        options: SearchOptions,
        lexical: Lexical | None = None,
    ) -> None:
        """Take the opened parts, which are closed with the index."""
        self.manifest = manifest
        self._vectors = vectors
        self._passages = passages
        self._encoder = encoder
        self._options = options
        self._legs = Legs(vectors, lexical, manifest.fusion, metric=manifest.metric)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="search")

    @classmethod
    def open(
        cls,
        folder: Path,
        encoder: Encoder,
        *,
        min_score: float | None = None,
        options: SearchOptions | None = None,
    ) -> "VectorIndex":
        """Open the live version of the index in `folder`, or the version that `folder` itself is.

        Args:
            folder: `<indexes>/<name>`, or a version in it.
            encoder: the one the index was built with.
            min_score: goes before that of `options`.
            options: how it is searched.

        Raises:
            BadIndex: there is no index.
            IndexMismatch: it was built with another encoder.
            BrokenIndex: a file is missing or was changed.
            MissingExtra: faiss is not installed.
        """
        options = options or SearchOptions()
        if min_score is not None:
            options = replace(options, min_score=min_score)
        is_version = layout.VERSION.fullmatch(folder.name) is not None and (folder / FILE).is_file()
        named = folder.parent if is_version else folder
        index = layout.IndexFolder(named.parent, named.name)
        with versions.advised(index, encoder.fingerprint):
            folder = folder if is_version else index.version_folder(index.current())
            manifest = versions.check(folder, encoder.fingerprint)
            vectors, passages = writing.read_both(folder, manifest)
            try:
                lexical = Lexical.open(folder, manifest) if manifest.lexical is not None else None
            except Exception:
                vectors.close()
                passages.close()
                raise
        return cls(manifest, vectors, passages, encoder, options, lexical)

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    async def search(
        self,
        query: str,
        *,
        k: int,
        index: str | None = None,
        where: Mapping[str, str] | None = None,
        rerank: bool | None = None,
        neighbours: int | None = None,
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages with a score of `min_score` or more, best first; none for a blank query.

        Args:
            query: what to look for.
            k: most passages wanted.
            index: this index's name or None.
            where: `source`, `title`, `document` → pattern; only passages of documents that match all are searched.
            rerank: let the reranker read the best ones, where there is one; it does unless told.
            neighbours: passages on each side of a hit that are read with it; as the options say unless told.

        Raises:
            NotFound: another index is named.
            InvalidRequest: `where` names something else.
        """
        if index not in (None, self.manifest.name):
            raise NotFound(f"there is no index {index!r} here, expected {self.manifest.name!r}")
        if not query.strip():
            return ()
        vector: NDArray[np.float32] | None = None
        if self._legs.weight(self._options.dense_weight) > 0:
            vector = await self._encoder.encode([self.manifest.encoder.query_prefix + query])
        window = self._options.neighbours if neighbours is None else neighbours
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._find, query, vector, k, where, rerank is not False, window
        )

    def close(self) -> None:
        """Let running searches end and stop the threads."""
        self._threads.shutdown()
        self._legs.close()
        self._passages.close()

    def _find(
        self,
        query: str,
        vector: NDArray[np.float32] | None,
        k: int,
        where: Mapping[str, str] | None,
        rerank: bool,
        window: int,
    ) -> tuple[Passage, ...]:
        rows = self._passages.filter(where) if where else None
        reranker = self._options.reranker if rerank else None
        most = max(k, RERANKED) if reranker is not None else k * (2 * window + 1)
        hits = self._legs.find(query, vector, most, rows=rows, weight=self._options.dense_weight)
        hits = [hit for hit in hits if hit.score >= self._options.min_score]
        if reranker is not None and hits:
            hits = self._reranked(reranker, query, hits)
        if window < 1:
            return self._passages_of(hits[:k])
        return self._widened(hits, k, window)

    def _reranked(self, reranker: Reranker, query: str, hits: list[Hit]) -> list[Hit]:
        """Return the hits in the reranker's order, with its scores."""
        texts = [f"{each.title}\n{each.text}".strip() for each in self._passages.rows([hit.row for hit in hits])]
        scored = [Hit(hit.row, score) for hit, score in zip(hits, reranker.scores(query, texts), strict=True)]
        return sorted(scored, key=lambda hit: -hit.score)

    def _passages_of(self, hits: list[Hit]) -> tuple[Passage, ...]:
        found = self._passages.rows([hit.row for hit in hits])
        return tuple(replace(passage, score=hit.score) for passage, hit in zip(found, hits, strict=True))

    def _widened(self, hits: list[Hit], k: int, window: int) -> tuple[Passage, ...]:
        spans = widen(hits, self._vectors, self._passages, window=window, alike=self._options.alike)
        found = []
        for span in spans[:k]:
            parts = self._passages.rows(range(span.first, span.last + 1))
            hit = replace(parts[span.hit.row - span.first], score=span.hit.score)
            found.append(merged(parts, hit))
        return tuple(found)
