"""Writes the vectors of a version: trained on a sample, added in slices, tuned for a recall."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import BadIndex, BrokenIndex
from chatkit.retrieval.kinds import EF_CONSTRUCTION, VectorKind, on_gpu
from chatkit.retrieval.manifest import VECTORS, VectorsEntry
from chatkit.retrieval.vectors import ROWS, Vectors, import_faiss, normalised

# Rows that are added at a time.
_SLICE = 16384
# Vectors that are searched for to tune a search, and how far they are moved from stored ones.
_TUNED_ON = 200
_MOVED = 0.4
_EFFORTS = {
    "ef": (24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024),
    "nprobe": (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048),
}
_K = 10


class VectorWriter:
    """Makes `vectors.faiss` in a folder.

    `train` comes first where `kind.train_rows` is not 0; then `add` in any number of slices; then `finish`. Flat and
    SQ8 vectors go to the disk as they come; a graph and lists are held in memory until they are written.
    """

    def __init__(self, folder: Path, dim: int, kind: VectorKind, metric: str = "cosine") -> None:
        """Make an empty index.

        Args:
            folder: where the file goes.
            dim: length of one vector.
            kind: from `kinds.choose`.
            metric: `cosine` normalises what is added, `ip` takes it as it is.

        Raises:
            MissingExtra: faiss is not installed.
        """
        self._faiss = import_faiss()
        self._folder = folder
        self._kind = kind
        self._metric = metric
        self._index = self._faiss.index_factory(dim, kind.factory, self._faiss.METRIC_INNER_PRODUCT)
        self._on_gpu = False
        self._gpu: Any = None
        self._trainer: Any = None
        self._stream: _Streamed | None = None
        self._tuning = np.empty((0, dim), np.float32)
        self._rng = np.random.default_rng(0)
        self._count = 0
        if kind.name == "hnsw_sq8":
            self._index.hnsw.efConstruction = EF_CONSTRUCTION

    def __len__(self) -> int:
        """Return the vectors so far."""
        return self._count

    def train(self, sample: NDArray[np.float32]) -> None:
        """Learn ranges and lists from a sample, (n, dim) float32; `kind.train_rows` of them are enough.

        On a GPU where Faiss has one.
        """
        sample = self._made(sample)
        if self._kind.name.startswith("ivf"):
            self._train_lists(sample)
        if not self._index.is_trained:
            self._index.train(sample)

    def _train_lists(self, sample: NDArray[np.float32]) -> None:
        faiss = self._faiss
        ivf = faiss.extract_index_ivf(self._index)
        ivf.cp.min_points_per_centroid = 1  # a small corpus may be given lists by name
        if not on_gpu(faiss):
            return
        self._gpu = faiss.StandardGpuResources()
        if self._kind.name == "ivf_sq8":
            options = faiss.GpuClonerOptions()
            options.allowCpuCoarseQuantizer = True
            self._index = faiss.index_cpu_to_gpu(self._gpu, 0, self._index, options)
            self._on_gpu = True
        else:
            self._trainer = faiss.index_cpu_to_gpu(self._gpu, 0, faiss.IndexFlatIP(ivf.d))
            ivf.clustering_index = self._trainer

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append (n, dim) float32 vectors.

        Raises:
            BadIndex: the index was not trained.
            OSError: the disk is full or cannot be written.
        """
        if not self._index.is_trained:
            raise BadIndex(f"vectors of the kind {self._kind.name} were added before train() was given a sample")
        for start in range(0, len(vectors), _SLICE):
            part = self._made(vectors[start : start + _SLICE])
            self._remember(part)
            if self._kind.name in ("flat", "sq8"):
                if self._stream is None:
                    self._stream = _Streamed(self._faiss, self._index, self._folder / VECTORS)
                self._stream.add(part)
            else:
                self._index.add(part)
            self._count += len(part)

    def finish(self, recall: float = 0.98) -> tuple[list[Path], VectorsEntry]:
        """Write the file, and what stands beside it, to the disk; return them and how they are to be searched.

        Args:
            recall: share of the ten true neighbours that a search has to find; decides `ef` and `nprobe`.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        entry = VectorsEntry(self._kind.name, self._kind.factory, dict(self._kind.search), recall)
        file = self._folder / VECTORS
        if self._kind.name in ("flat", "sq8"):
            stream = self._stream or _Streamed(self._faiss, self._index, file)
            stream.finish()
            return [file], entry
        if self._on_gpu:
            self._index = self._faiss.index_gpu_to_cpu(self._index)
        files = [file]
        if self._kind.name == "ivf_sq8":
            files.append(self._write_rows())
        entry = self._tuned(entry, recall)
        _write_index(self._faiss, self._index, file)
        return files, entry

    def close(self) -> None:
        """Let go of the files, finished or not; a build that broke off calls this."""
        if self._stream is not None:
            self._stream.close()

    def _made(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._metric == "cosine":
            return normalised(vectors)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _remember(self, part: NDArray[np.float32]) -> None:
        """Keep an even sample of all that is added, to tune the search on: every slice gives its share."""
        if self._kind.name in ("flat", "sq8"):
            return
        share = len(part) / (self._count + len(part))
        take = part[self._rng.permutation(len(part))[: max(1, round(_TUNED_ON * share))]]
        keep = self._rng.permutation(len(self._tuning))[: _TUNED_ON - len(take)]
        self._tuning = np.concatenate([self._tuning[keep], take])

    def _tuned(self, entry: VectorsEntry, recall: float) -> VectorsEntry:
        """Return the cheapest search that finds the neighbours; half of what may be missed is left for the bytes.

        Stored vectors are easy to find and so are their neighbours; questions lie further off. A stored vector that is
        moved by part of the difference of two others takes the same effort as questions do.
        """
        name = "ef" if self._kind.name == "hnsw_sq8" else "nprobe"
        wanted = 1 - (1 - recall) / 2
        stored = self._tuning
        asked = stored + _MOVED * (np.roll(stored, 1, axis=0) - np.roll(stored, 2, axis=0))
        truth = Vectors(self._index, entry, self._metric).exactly(asked, _K)
        for effort in _EFFORTS[name]:
            if name == "nprobe" and effort > self._faiss.extract_index_ivf(self._index).nlist:
                break
            entry = replace(entry, search={**entry.search, name: effort})
            _, found = Vectors(self._index, entry, self._metric).search(asked, _K)
            if recall_of(found, truth) >= wanted:
                break
        return entry

    def _write_rows(self) -> Path:
        """Write where each row is, so that its vector can be given back without a table in memory."""
        places = np.empty((self._count, 2), dtype="<i4")
        lists = self._index.invlists
        for number in range(self._index.nlist):
            size = lists.list_size(number)
            if size:
                ids = self._faiss.rev_swig_ptr(lists.get_ids(number), size)
                places[ids, 0] = number
                places[ids, 1] = np.arange(size)
        file = self._folder / ROWS
        with file.open("wb") as stream:
            stream.write(places.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        return file


def recall_of(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return the mean share of the rows of `truth`, (n, k), that are in the same row of `found`."""
    shares = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]
    return float(np.mean(shares))


class _Streamed:
    """A Faiss file whose codes go to the disk as they come: its head, then rows of bytes.

    Faiss has no such writer. What stands in the head is taken from what it writes of the empty index; only the two
    counts, of rows and of bytes or floats after the head, are set at the end.
    """

    _ROWS_AT = 8  # after the kind and the dimension

    def __init__(self, faiss: Any, index: Any, file: Path) -> None:
        self._index = index
        self._rows = 0
        empty = faiss.serialize_index(index).tobytes()
        if len(empty) < 24 or int.from_bytes(empty[self._ROWS_AT : 16], "little") or any(empty[-8:]):
            raise BrokenIndex(f"Faiss {faiss.__version__} lays {type(index).__name__} out in an unknown way")
        self._count_at = len(empty) - 8
        self._unit = 4 if isinstance(index, faiss.IndexFlat) else 1
        self._stream = file.open("wb")
        self._stream.write(empty)

    def add(self, vectors: NDArray[np.float32]) -> None:
        self._stream.write(self._index.sa_encode(vectors).tobytes())
        self._rows += len(vectors)

    def finish(self) -> None:
        codes = self._rows * self._index.sa_code_size() // self._unit
        for at, value in ((self._ROWS_AT, self._rows), (self._count_at, codes)):
            self._stream.seek(at)
            self._stream.write(value.to_bytes(8, "little"))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def close(self) -> None:
        self._stream.close()


def _write_index(faiss: Any, index: Any, file: Path) -> None:
    """Write an index; by hand, for Faiss reports a full disk only for some of its writes."""
    failed: list[OSError] = []
    with file.open("wb") as stream:

        def write(content: bytes) -> None:
            if not failed:
                try:
                    stream.write(content)
                except OSError as error:
                    failed.append(error)

        faiss.write_index(index, faiss.PyCallbackIOWriter(write, 2**20))
        if failed:
            raise failed[0]
        stream.flush()
        os.fsync(stream.fileno())
