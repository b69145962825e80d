"""The vectors of an open index: searched with and without a selection of rows, and given back by row."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import BrokenIndex, MissingExtra
from chatkit.retrieval.kinds import KINDS, VectorKind, choose
from chatkit.retrieval.manifest import FILE, VECTORS, Manifest, VectorsEntry, broken

__all__ = ["KINDS", "ROWS", "VectorKind", "Vectors", "choose", "import_faiss", "normalised"]

# Where each row of an `ivf_sq8` index is: list and place in it as two int32, row by row.
ROWS = "vectors.rows"

# From here on the file is mapped, so that workers share its pages; a smaller one is read into memory, where nobody can
# cut it short. Bytes.
MAPPED_FROM = 32 * 2**20
# Up to this share of the rows a selection is compared one by one, which is exact; a graph or lists that are mostly
# outside the selection find too little of it.
_SCANNED_SHARE = 0.1


def import_faiss() -> Any:
    """Return the module.

    Raises:
        MissingExtra: neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtra("faiss", "cpu") from error
    return faiss


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (n, dim) float32 rows of length one; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


class Vectors:
    """The open vectors of one version. Methods may be called from several threads."""

    def __init__(self, index: Any, entry: VectorsEntry, metric: str = "cosine", *, folder: Path | None = None) -> None:
        """Take an open Faiss index; `folder` is where its other files are."""
        self._faiss = import_faiss()
        self._index = index
        self._kind = entry.kind
        self._search = dict(entry.search)
        self._metric = metric
        self._folder = folder
        self._mapped: BinaryIO | None = None
        self._rows: BinaryIO | None = None
        self._size = 0
        self._name = ""
        self._exact = self._storage()

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> "Vectors":
        """Open the vectors in `folder`: a small file in memory, a large one mapped.

        A mapped file that is cut short while it is read ends the process, so its length is looked at before every
        search.

        Raises:
            BrokenIndex: Faiss cannot read the file, or it is not what the manifest says.
            MissingExtra: faiss is not installed.
        """
        faiss = import_faiss()
        file = folder / VECTORS
        mapped = file.exists() and file.stat().st_size > MAPPED_FROM
        flags = faiss.IO_FLAG_READ_ONLY | (faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        try:
            index = faiss.read_index(str(file), flags)
        except RuntimeError as error:
            raise broken(file, f"cannot be read by Faiss ({str(error).strip()[:200]})") from error
        if index.ntotal != manifest.passages or index.d != manifest.dim:
            raise broken(
                folder / FILE,
                f"counts {manifest.passages} passages and {manifest.dim} dimensions, but {VECTORS} holds "
                f"{index.ntotal} vectors of {index.d} dimensions",
            )
        try:
            opened = cls(index, manifest.vectors, manifest.metric, folder=folder)
        except (AttributeError, TypeError) as error:
            raise broken(file, f"is no index of the kind {manifest.vectors.kind}") from error
        opened._watch(folder, manifest, mapped)
        return opened

    def _watch(self, folder: Path, manifest: Manifest, mapped: bool) -> None:
        self._name = manifest.name
        try:
            self._size = (
                manifest.files[VECTORS].size if VECTORS in manifest.files else (folder / VECTORS).stat().st_size
            )
            if self._kind == "ivf_sq8":
                self._rows = (folder / ROWS).open("rb")
            if mapped:
                self._mapped = (folder / VECTORS).open("rb")
        except OSError as error:
            self.close()
            raise broken(folder / ROWS, f"cannot be read ({error.strerror})") from error

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Length of one vector."""
        return int(self._index.d)

    def search(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest rows, best first.

        Args:
            queries: (n, dim) float32.
            k: how many; more than there are is no error.
            rows: search these rows only; None for all.

        Returns:
            Scores (n, k') float32, cosine or inner product, and rows (n, k') int64, with k' = k or fewer where there
            are fewer; -1 stands for a row that was not found, and comes last.

        Raises:
            BrokenIndex: the mapped file was cut short.
        """
        self._check()
        if self._metric == "cosine":
            queries = normalised(queries)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        k = min(k, len(self) if rows is None else len(rows))
        if k < 1:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        scores, found = self._nearest(queries, k) if rows is None else self._selected(queries, k, rows)
        return scores, found

    def exactly(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return the nearest rows, (n, k) int64, as a comparison with every stored vector finds them."""
        queries = np.ascontiguousarray(normalised(queries) if self._metric == "cosine" else queries, dtype=np.float32)
        if self._exact is not None:
            _, found = self._exact.search(queries, k)
        else:
            _, found = self._index.search(queries, k, params=self._parameters(None, k, 0.0))
        return np.asarray(found)

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of `rows` as they are stored, (n, dim) float32; bytes give them to about two digits.

        Raises:
            IndexError: there is no such row.
            BrokenIndex: a file was cut short.
        """
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows are {rows.min()} to {rows.max()}, expected 0 to {len(self) - 1}")
        self._check()
        if not len(rows):
            return np.empty((0, self.dim), np.float32)
        if self._exact is not None:
            found = self._exact.reconstruct_batch(rows)
        else:
            found = np.empty((len(rows), self.dim), np.float32)
            for place, row in enumerate(rows.tolist()):
                self._index.reconstruct_from_offset(*self._place(row), self._faiss.swig_ptr(found[place]))
        return np.asarray(found, dtype=np.float32)

    def close(self) -> None:
        """Let go of the files; no call may be under way."""
        for file in (self._mapped, self._rows):
            if file is not None:
                file.close()
        self._mapped = self._rows = None

    def _storage(self) -> Any:
        """Return what compares a query with rows one by one, None for lists alone."""
        faiss = self._faiss
        if self._kind == "hnsw_sq8":
            return faiss.downcast_index(self._index.storage)
        if self._kind == "ivf_rabitq":
            return faiss.downcast_index(self._index.refine_index)
        return None if self._kind == "ivf_sq8" else self._index

    def _check(self) -> None:
        """Look whether a page of the mapped file is gone: to touch it would end the process."""
        if self._mapped is not None and os.fstat(self._mapped.fileno()).st_size < self._size:
            raise self._cut()

    def _cut(self) -> BrokenIndex:
        return BrokenIndex(
            f"the vectors of the index {self._name!r} were cut short while it was open; "
            f"build it again with: chatkit prepare-index SOURCE… --name {self._name}"
        )

    def _nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = self._index.search(
            queries, k, params=self._parameters(None, k, 1.0)
        )
        return found

    def _selected(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        mask = np.zeros(len(self), dtype=bool)
        mask[rows] = True
        bits = np.packbits(mask, bitorder="little")
        selector = self._faiss.IDSelectorBitmap(bits)
        share = len(rows) / len(self)
        found: tuple[NDArray[np.float32], NDArray[np.int64]]
        if self._exact is not None and (share <= _SCANNED_SHARE or self._exact is self._index):
            found = self._exact.search(queries, k, params=self._faiss.SearchParameters(sel=selector))
        else:
            share = 0.0 if share <= _SCANNED_SHARE else share
            found = self._index.search(queries, k, params=self._parameters(selector, k, share))
        return found

    def _parameters(self, selector: Any, k: int, share: float) -> Any:
        """Return how Faiss is to search where `share` of the rows are selected; 0 looks into every list."""
        faiss = self._faiss
        chosen = {} if selector is None else {"sel": selector}
        if self._kind == "hnsw_sq8":
            effort = max(self._search.get("ef", 64), 2 * k) / (share or 1.0)
            return faiss.SearchParametersHNSW(efSearch=round(effort), **chosen)
        if not self._kind.startswith("ivf"):
            return None
        ivf = self._index if self._kind == "ivf_sq8" else faiss.downcast_index(self._index.base_index)
        wanted = self._search.get("nprobe", 64)
        lists = ivf.nlist if not share else min(ivf.nlist, round(wanted / share))
        if self._kind == "ivf_sq8":
            return faiss.SearchParametersIVF(nprobe=lists, **chosen)
        base = faiss.IVFRaBitQSearchParameters()
        base.nprobe = lists
        if selector is not None:
            base.sel = selector
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=float(self._search.get("k_factor", 10)), base_index_params=base
        )
        parameters.base = base  # Faiss keeps a bare pointer to it
        return parameters

    def _place(self, row: int) -> tuple[int, int]:
        """Return the list of a row and its place in it."""
        if self._rows is None:
            raise broken((self._folder or Path()) / ROWS, "is not open")
        content = os.pread(self._rows.fileno(), 8, row * 8)
        if len(content) < 8:
            raise self._cut()
        listed, offset = np.frombuffer(content, dtype="<i4")
        return int(listed), int(offset)
