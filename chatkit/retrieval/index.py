"""Searching an index directory."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import NotFound
from chatkit.protocols import Encoder
from chatkit.retrieval import layout, versions, writing
from chatkit.retrieval.manifest import FILE, Manifest
from chatkit.retrieval.passages import Passages
from chatkit.retrieval.vectors import Vectors
from chatkit.types import Passage

# Searches that run beside each other; each is short and Faiss lets go of the interpreter.
_THREADS = 2


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
        min_score: float,
    ) -> None:
        """Take the opened parts, which are closed with the index."""
        self.manifest = manifest
        self._vectors = vectors
        self._passages = passages
        self._encoder = encoder
        self._min_score = min_score
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="search")

    @classmethod
    def open(cls, folder: Path, encoder: Encoder, *, min_score: float) -> "VectorIndex":
        """Open the live version of the index in `folder`, or the version that `folder` itself is.

        Args:
            folder: `<indexes>/<name>`, or a version in it.
            encoder: the one the index was built with.
            min_score: cosine under which a passage is not relevant.

        Raises:
            BadIndex: there is no index.
            IndexMismatch: it was built with another encoder.
            BrokenIndex: a file is missing or was changed.
            MissingExtra: faiss is not installed.
        """
        is_version = layout.VERSION.fullmatch(folder.name) is not None and (folder / FILE).is_file()
        named = folder.parent if is_version else folder
        index = layout.IndexFolder(named.parent, named.name)
        with versions.advised(index, encoder.fingerprint):
            folder = folder if is_version else index.version_folder(index.current())
            manifest = versions.check(folder, encoder.fingerprint)
            vectors, passages = writing.read_both(folder, manifest)
        return cls(manifest, vectors, passages, encoder, min_score)

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    async def search(self, query: str, *, k: int, index: str | None = None) -> tuple[Passage, ...]:
        """Return at most `k` passages with a cosine of `min_score` or more, best first; none for a blank query."""
        if index not in (None, self.manifest.name):
            raise NotFound(f"there is no index {index!r} here, expected {self.manifest.name!r}")
        if not query.strip():
            return ()
        vectors: NDArray[np.float32] = await self._encoder.encode([query])
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._nearest, vectors, k)

    def close(self) -> None:
        """Let running searches end and stop the threads."""
        self._threads.shutdown()
        self._vectors.close()
        self._passages.close()

    def _nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[Passage, ...]:
        scores, rows = self._vectors.search(vectors, k)
        hits = [
            (row, score)
            for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            if row >= 0 and score >= self._min_score
        ]
        found = self._passages.rows([row for row, _ in hits])
        return tuple(replace(passage, score=score) for passage, (_, score) in zip(found, hits, strict=True))
