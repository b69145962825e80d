"""The vectors that a Faiss index of any kind holds, by row number, without encoding anything again."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import BrokenIndex, MissingExtra
from chatkit.retrieval.sidecar import identity_of, write_array

Vectors = NDArray[np.float32]


class StoredVectors:
    """Vectors of an index that finds them by row: flat, quantised and graph indexes do so themselves."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def of(self, first: int, last: int) -> Vectors:
        """Return the vectors of the rows from `first` to `last`, both included, as (rows, dim) float32."""
        return np.stack([self._index.reconstruct(row) for row in range(first, last + 1)])


class ListedVectors:
    """Vectors of an inverted-file index, found through a map from row to its list and place there.

    Faiss can make such a map itself, in memory and at every start; this one is a file that is mapped. The index may
    stand behind transformations, which are undone.
    """

    def __init__(self, index: Any, places: NDArray[np.uint64]) -> None:
        import faiss

        self._ivf = faiss.extract_index_ivf(index)
        self._places = places
        outer = faiss.downcast_index(index)
        chain: Any = outer.chain if isinstance(outer, faiss.IndexPreTransform) else None
        self._undo = [faiss.downcast_VectorTransform(chain.at(at)) for at in range(chain.size())] if chain else []

    def of(self, first: int, last: int) -> Vectors:
        """Return the vectors of the rows from `first` to `last`, both included, as (rows, dim) float32."""
        import faiss

        vectors = np.empty((last - first + 1, self._ivf.d), np.float32)
        for vector, place in zip(vectors, self._places[first : last + 1].tolist(), strict=True):
            self._ivf.reconstruct_from_offset(place >> 32, place & 0xFFFFFFFF, faiss.swig_ptr(vector))
        for transform in reversed(self._undo):
            vectors = transform.reverse_transform(vectors)
        return vectors


def require_faiss() -> Any:
    """Return the library.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtra("faiss", "cpu") from error
    return faiss


def open_faiss(file: Path) -> Any:
    """Open a Faiss index with its vectors mapped, so that processes share them and none holds them all.

    Raises:
        BrokenIndex: Faiss cannot read it.
        MissingExtra: faiss is not installed.
    """
    faiss = require_faiss()
    try:
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise BrokenIndex(f"{str(file)!r} cannot be read by Faiss ({str(error).strip()[-200:]})") from error


def stored_vectors(index: Any, file: Path, sidecar: Path) -> StoredVectors | ListedVectors | None:
    """Return where the vectors of an index are, None for a kind that cannot give them back.

    Args:
        index: as `open_faiss` returned it.
        file: where it was read from.
        sidecar: folder for the map of an inverted file; made there once for this file.

    Raises:
        BrokenIndex: the index has lists that do not fit its number of vectors.
    """
    import faiss

    ivf = faiss.try_extract_index_ivf(index)
    refined = isinstance(index, faiss.IndexRefine)  # asks its second, finer index
    if ivf is not None and not refined and isinstance(faiss.downcast_index(ivf), faiss.IndexIVFFastScan):
        return None  # Faiss 1.15 ends the process when it is asked for one of their vectors
    try:
        index.reconstruct(0)
        return StoredVectors(index)
    except RuntimeError:
        pass
    if ivf is None or refined:
        return None
    try:
        made = _places(ivf, int(index.ntotal), file, sidecar)
        listed = ListedVectors(index, made)
        listed.of(0, 0)
    except RuntimeError:
        return None
    return listed


def coded(index: Any, vectors: Vectors) -> Vectors | None:
    """Return (n, dim) vectors as the index would hold them, None where it does not say how it rounds."""
    import faiss

    holder: Any = index
    over_others: Any = (faiss.IndexHNSW, faiss.IndexNSG, faiss.IndexRefine)
    while isinstance(holder, over_others):
        inner = holder.refine_index if isinstance(holder, faiss.IndexRefine) else holder.storage
        holder = faiss.downcast_index(inner)
    try:
        return np.asarray(holder.sa_decode(holder.sa_encode(np.ascontiguousarray(vectors))), np.float32)
    except RuntimeError:
        return None


def _places(ivf: Any, rows: int, file: Path, sidecar: Path) -> NDArray[np.uint64]:
    kept = sidecar / f"lists-{identity_of(file)}.npy"
    if not kept.is_file():
        places = _walked(ivf, rows, file)
        try:
            for old in sidecar.glob("lists-*.npy"):
                old.unlink()
            write_array(kept, places)
        except OSError:
            return places  # a folder that cannot be written costs memory and this walk at every start, nothing else
    found: NDArray[np.uint64] = np.load(kept, mmap_mode="r", allow_pickle=False)
    if len(found) != rows:
        os.unlink(kept)
        raise BrokenIndex(f"{str(kept)!r} does not fit the index and was removed; open the index again")
    return found


def _walked(ivf: Any, rows: int, file: Path) -> NDArray[np.uint64]:
    """Return list and place of every row, the list in the upper half."""
    import faiss

    places = np.full(rows, 0xFFFFFFFFFFFFFFFF, np.uint64)
    lists = ivf.invlists
    for number in range(ivf.nlist):
        size = lists.list_size(number)
        if size == 0:
            continue
        pointer = lists.get_ids(number)
        ids = faiss.rev_swig_ptr(pointer, size).copy()
        lists.release_ids(number, pointer)
        if ids.min() < 0 or ids.max() >= rows:
            raise BrokenIndex(f"{str(file)!r} has ids outside of its {rows} rows")
        places[ids] = np.uint64(number << 32) | np.arange(size, dtype=np.uint64)
    if (places == 0xFFFFFFFFFFFFFFFF).any():
        raise BrokenIndex(f"{str(file)!r} lacks some of its {rows} rows")
    return places
