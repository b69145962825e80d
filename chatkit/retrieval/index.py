"""Searching an index directory."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import BrokenIndex, NotFound
from chatkit.protocols import Encoder
from chatkit.retrieval import layout, versions, writing
from chatkit.retrieval.manifest import FILE, VECTORS, Manifest
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
        vectors: Any,
        passages: Any,
        encoder: Encoder,
        min_score: float,
        mapped: BinaryIO | None = None,
    ) -> None:
        """Take the opened parts; `mapped` is the file of vectors that are not in memory, closed with the index."""
        self.manifest = manifest
        self._mapped = mapped
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
            mapped = writing.mapped_file(folder)
        return cls(manifest, vectors, passages, encoder, min_score, mapped)

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
        if self._mapped is not None:
            self._mapped.close()

    def _nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[Passage, ...]:
        if self._mapped is not None and self._is_cut(self._mapped):
            raise BrokenIndex(
                f"the vectors of the index {self.manifest.name!r} were cut short while it was open; "
                f"build it again with: chatkit prepare-index SOURCE… --name {self.manifest.name}"
            )
        scores, rows = self._vectors.search(vectors, min(k, self.manifest.passages))
        hits = zip(scores[0].tolist(), rows[0].tolist(), strict=True)
        return tuple(self._passage(row, score) for score, row in hits if row >= 0 and score >= self._min_score)

    def _is_cut(self, mapped: BinaryIO) -> bool:
        """Whether a page of the mapped file is gone: to touch it would end the process."""
        return os.fstat(mapped.fileno()).st_size < self.manifest.files[VECTORS].size

    def _passage(self, row: int, score: float) -> Passage:
        columns: dict[str, Any] = self._passages.slice(row, 1).to_pylist()[0]
        return Passage(**columns, score=score)
