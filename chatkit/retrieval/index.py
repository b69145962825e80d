"""Searching an index directory: both legs, then what a request asks beyond them."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import InvalidRequest, NotFound, Unavailable
from chatkit.protocols import Encoder
from chatkit.retrieval import layout, versions, writing
from chatkit.retrieval.legs import Hit, Legs
from chatkit.retrieval.lexical import Lexical
from chatkit.retrieval.manifest import FILE, Manifest
from chatkit.retrieval.neighbours import ALIKE, merged, widen
from chatkit.retrieval.passages import Passages
from chatkit.retrieval.vectors import Vectors
from chatkit.types import Passage, QueryPart

_log = logging.getLogger(__name__)

# Searches that run beside each other; each is short and Faiss lets go of the interpreter.
_THREADS = 2
# Vectors of texts that were searched for, kept so that a follow-up encodes no more than a first question.
_KEPT_VECTORS = 512
# Passages that a reranker reads for a query that asks for no more: on a CPU each costs it as much as the whole search.
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
        scored_by: version of the scorer whose scores of passages are handed out; None for those of any.
    """

    min_score: float = 0.33
    dense_weight: float | None = None
    reranker: Reranker | None = None
    neighbours: int = 0
    alike: float = ALIKE
    scored_by: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One search, as its thread gets it."""

    parts: Sequence[QueryPart]
    vector: NDArray[np.float32] | None
    k: int
    where: Mapping[str, str] | None
    rerank: bool
    window: int


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
        self._recent: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
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
            if manifest.risks is not None and options.scored_by not in (None, manifest.risks.version):
                passages.forget_risks()
                _log.warning(
                    "index %s: its passages were scored by another head, or by another release; these scores are not "
                    "used, build it again with chatkit prepare-index",
                    manifest.name,
                )
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
        self, query: str, *, k: int, index: str | None = None, where: Mapping[str, str] | None = None
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages with a score of `min_score` or more, best first; none for a blank query.

        Args:
            query: what to look for.
            k: most passages wanted.
            index: this index's name or None.
            where: `source`, `title`, `document` → pattern; only passages of documents that match all are searched.

        Raises:
            NotFound: another index is named.
            InvalidRequest: `k` is less than one, the query is no whole text, or `where` names something else.
            Unavailable: the index was closed.
        """
        return await self.search_parts([QueryPart(query)], k=k, index=index, where=where)

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
        """Do what `search` does for several texts: their vectors are added up by weight, and so are their words.

        Args:
            parts: the first is what is asked now; where it is blank nothing is found.
            k: most passages wanted.
            index: this index's name or None.
            where: as in `search`.
            rerank: let the reranker read the best ones, where there is one; it does unless told.
            neighbours: passages on each side of a hit that are read with it; as the options say unless told.

        Raises:
            NotFound: another index is named.
            InvalidRequest: as `search` does.
            Unavailable: the index was closed.
        """
        if index not in (None, self.manifest.name):
            raise NotFound(f"there is no index {index!r} here, expected {self.manifest.name!r}")
        _check(parts, k)
        if not parts[0].text.strip():
            return ()
        vector = await self._vector(parts) if self._legs.weight(self._options.dense_weight) > 0 else None
        window = self._options.neighbours if neighbours is None else neighbours
        asked = _Asked(parts, vector, min(k, len(self)), where, rerank is not False, window)
        try:
            search = asyncio.get_running_loop().run_in_executor(self._threads, self._find, asked)
        except RuntimeError as error:  # what an executor that was shut down says
            raise Unavailable(f"the index {self.manifest.name!r} was closed while it was asked; ask again") from error
        return await search

    async def _vector(self, parts: Sequence[QueryPart]) -> NDArray[np.float32]:
        """Return the weighted sum of the texts' vectors, (1, dim), encoding only those not encoded lately."""
        known = {part.text: self._recent.pop(_key(part.text), None) for part in parts}
        new = [text for text, vector in known.items() if vector is None]
        if new:
            prefix = self.manifest.encoder.query_prefix
            encoded = await self._encoder.encode([prefix + text for text in new])
            known.update(zip(new, encoded, strict=True))
        for text, vector in known.items():
            if vector is not None:
                self._recent[_key(text)] = vector
        while len(self._recent) > _KEPT_VECTORS:
            self._recent.popitem(last=False)
        if len(parts) == 1:
            return np.asarray(known[parts[0].text], dtype=np.float32)[None]
        summed = sum(part.weight * np.asarray(known[part.text], dtype=np.float32) for part in parts)
        return np.asarray(summed, dtype=np.float32)[None]

    def close(self) -> None:
        """Let running searches end and stop the threads."""
        self._threads.shutdown()
        self._legs.close()
        self._passages.close()

    def _find(self, asked: "_Asked") -> tuple[Passage, ...]:
        rows = self._passages.filter(asked.where) if asked.where else None
        reranker = self._options.reranker if asked.rerank else None
        most = max(asked.k * (2 * asked.window + 1), RERANKED if reranker is not None else 0)
        hits = self._legs.find(asked.parts, asked.vector, most, rows=rows, weight=self._options.dense_weight)
        hits = [hit for hit in hits if hit.score >= self._options.min_score]
        if reranker is not None and hits:
            read = self._reranked(reranker, asked.parts[0].text, hits[: max(asked.k, RERANKED)])
            # Those that were not read stay behind; they take the places of hits that a neighbour has taken in.
            hits = read + [replace(hit, score=min(hit.score, read[-1].score)) for hit in hits[len(read) :]]
        return self._widened(hits, asked.k, asked.window) if asked.window else self._passages_of(hits[: asked.k])

    def _reranked(self, reranker: Reranker, query: str, hits: list[Hit]) -> list[Hit]:
        """Return the hits in the reranker's order, with its scores."""
        texts = [f"{each.title}\n{each.text}".strip() for each in self._passages.rows([hit.row for hit in hits])]
        scored = [Hit(hit.row, score) for hit, score in zip(hits, reranker.scores(query, texts), strict=True)]
        return sorted(scored, key=lambda hit: -hit.score)

    def _passages_of(self, hits: list[Hit]) -> tuple[Passage, ...]:
        found = self._passages.rows([hit.row for hit in hits])
        return tuple(replace(passage, score=hit.score) for passage, hit in zip(found, hits, strict=True))

    def _widened(self, hits: list[Hit], k: int, window: int) -> tuple[Passage, ...]:
        alike = self._options.alike
        found = []
        for span in widen(hits, self._vectors, self._passages, most=k, window=window, alike=alike):
            parts = self._passages.rows(range(span.first, span.last + 1))
            hit = replace(parts[span.hit.row - span.first], score=span.hit.score)
            found.append(merged(parts, hit))
        return tuple(found)


def _check(parts: Sequence[QueryPart], k: int) -> None:
    if k < 1:
        raise InvalidRequest(f"k is {k}, expected at least 1")
    for part in parts:
        try:
            part.text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the query has half a character at {error.start}, expected whole Unicode") from None


def _key(text: str) -> bytes:
    """Return what stands for a text where vectors are kept: a message may be far longer than its vector."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
