"""`WikipediaIndex`: OpenChatKit's published layout, `knn.index` beside `wikipedia-en-sentences.parquet`.

Row number in the one is the id in the other, and neighbouring rows are neighbouring pieces of an article. A hit is
merged with its neighbours as the ancestor did: to the left and then to the right, as long as the cosine to the hit
itself stays above a threshold. Other than there it stays inside one article and the file, puts a space where two pieces
would run together, and compares vectors that the index holds instead of encoding eleven texts a hit again.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import BadIndex, BrokenIndex, IndexMismatch, InvalidRequest, NotFound
from chatkit.protocols import Encoder
from chatkit.retrieval.reconstruction import coded, open_faiss, stored_vectors
from chatkit.retrieval.sidecar import Row, open_sidecar
from chatkit.types import Passage

_log = logging.getLogger(__name__)

INDEX, PARQUET = "knn.index", "wikipedia-en-sentences.parquet"
K, W, W_TH = 1, 5, 0.5
_MOST_NEIGHBOURS = 100
# Rows that are encoded at opening and compared with what the index holds for them.
_PROBES = 16
# Rows that are looked at for one with words in it, in the place of a probe without.
_BLANKS = 64
# Mean cosine to the encoder's own vectors from which on stored ones stand for them.
_FAITHFUL = 0.95
# The same of an index made with this encoder, as a share of what its own rounding leaves of the encoder's vectors:
# the rest is for other arithmetic and other cuts.
_MATCHING = 0.98
# Share of the probes that have to find their own row, among the nearest, where an index gives no vectors back.
_FINDING, _NEAREST = 0.5, 10
_THREADS = 2

Vectors = NDArray[np.float32]


class WikipediaIndex:
    """One open folder of that layout.

    Attributes:
        neighbours: `stored` where the index gives its vectors back, faithfully enough; otherwise `encoder`, and the
            rows around each hit are encoded at every search, which is slower by the time that takes.
    """

    neighbours: Literal["stored", "encoder"]

    def __init__(self, folder: Path, encoder: Encoder, *, timeout: float = 3600.0) -> None:
        """Open `folder`; the first time its texts are laid out beside it, which takes minutes for a whole Wikipedia.

        Args:
            folder: holds `knn.index` and `wikipedia-en-sentences.parquet`.
            encoder: the one the index was built with: contriever-msmarco for the published one.
            timeout: seconds to wait for another process that lays the texts out.

        Raises:
            BadIndex: a file is missing, or the folder cannot be written.
            IndexMismatch: it was built with another encoder.
            BrokenIndex: the files do not fit each other.
            MissingExtra: faiss is not installed.
        """
        for name in (INDEX, PARQUET):
            if not (folder / name).is_file():
                raise BadIndex(f"there is no {name!r} in {str(folder)!r}; get both files with the recipe `openchatkit`")
        self._encoder = encoder
        self._index = open_faiss(folder / INDEX)
        self._size = (folder / INDEX).stat().st_size
        self._texts = open_sidecar(folder / PARQUET, timeout=timeout)
        self._file = os.open(folder / INDEX, os.O_RDONLY)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="search-wikipedia")
        try:
            self._check(folder)
            self._stored = stored_vectors(self._index, folder / INDEX, self._texts.folder)
            self.neighbours = self._compared()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._texts)

    def search(self, query: str, k: int = K, w: int = W, w_th: float = W_TH) -> list[str]:
        """Return the texts of the `k` nearest rows, each merged with its neighbours; none for a blank query.

        Blocks while it searches; `WikipediaRetriever` is the asynchronous face.

        Args:
            query: what to look for.
            k: hits wanted.
            w: most neighbours that are merged on each side.
            w_th: cosine to the hit that a neighbour has to be above.

        Raises:
            InvalidRequest: a number is out of range.
            BrokenIndex: the files were changed while they were open.
            Unavailable: the encoder is closed.
        """
        _require("k", k, 1 <= k <= len(self), f"1 to {len(self)}")
        _require("w", w, 0 <= w <= _MOST_NEIGHBOURS, f"0 to {_MOST_NEIGHBOURS}")
        _require("w_th", w_th, -1 <= w_th <= 1, "-1 to 1")
        if not query.strip():
            return []
        return [joined(self._texts.read(*self._merged(row, w, w_th))) for row in self._nearest(self._asked(query), k)]

    def passages(self, vectors: Vectors, k: int, *, min_score: float, w: int = W, w_th: float = W_TH) -> list[Passage]:
        """Return at most `k` passages for a (1, dim) query vector, best first, no row in two of them.

        The score is the cosine of the query to the hit itself.
        """
        found: list[Passage] = []
        taken: set[int] = set()
        for row in self._nearest(vectors, min(2 * k, len(self))):
            if row in taken or len(found) == k:
                continue
            score = float(_cosines(self._vectors(row, row), vectors[0])[0])
            if score < min_score:
                continue
            first, last = self._merged(row, w, w_th)
            if taken.isdisjoint(range(first, last + 1)):
                found.append(self._passage(first, last, score))
                taken.update(range(first, last + 1))
        return sorted(found, key=lambda passage: -passage.score)

    def close(self) -> None:
        """Stop the threads and let go of the files."""
        self._threads.shutdown()
        self._texts.close()
        os.close(self._file)

    def _asked(self, query: str) -> Vectors:
        return self._encoded([getattr(self._encoder, "query_prefix", "") + query])

    def _encoded(self, texts: Sequence[str]) -> Vectors:
        """Encode, blocking; in a thread of its own where the encoder has no blocking call."""
        now = getattr(self._encoder, "encode_now", None)
        if now is None:
            with ThreadPoolExecutor(1) as thread:
                return np.asarray(thread.submit(lambda: asyncio.run(self._encode(texts))).result(), np.float32)
        return np.asarray(now(texts), np.float32)

    async def _encode(self, texts: Sequence[str]) -> Any:
        return await self._encoder.encode(texts)

    def _nearest(self, vectors: Vectors, k: int) -> list[int]:
        if os.fstat(self._file).st_size < self._size:
            # A page of the mapped file is gone, and to touch it would end the process.
            raise BrokenIndex(f"{INDEX!r} was cut short while it was open; get it again with the recipe `openchatkit`")
        _, rows = self._index.search(np.ascontiguousarray(vectors, np.float32), k)
        return [row for row in rows[0].tolist() if 0 <= row < len(self)]

    def _merged(self, row: int, w: int, w_th: float) -> tuple[int, int]:
        """Return the first and last row of what a hit is merged to."""
        low, high = self._texts.article(row, w)
        if low == high:
            return row, row
        vectors = self._vectors(low, high)
        near = _cosines(vectors, vectors[row - low]) > w_th
        first, last = row, row
        while first > low and near[first - 1 - low]:
            first -= 1
        while last < high and near[last + 1 - low]:
            last += 1
        return first, last

    def _vectors(self, first: int, last: int) -> Vectors:
        if self._stored is not None:
            return self._stored.of(first, last)
        prefix = getattr(self._encoder, "passage_prefix", "")
        return self._encoded([prefix + row.text for row in self._texts.read(first, last)])

    def _passage(self, first: int, last: int, score: float) -> Passage:
        rows = self._texts.read(first, last)
        text = joined(rows)
        source = rows[0].url or f"{PARQUET}#{first}-{last}"
        key = hashlib.sha256(f"{source}\0{text}".encode()).hexdigest()[:20]
        return Passage(id=key, text=text, title=rows[0].title, source=source, end=len(text), score=score)

    def _check(self, folder: Path) -> None:
        _require_rows(folder, self._index, len(self))
        if self._index.d != self._encoder.dim:
            raise IndexMismatch(
                f"{INDEX!r} in {str(folder)!r} has vectors of length {self._index.d}, but the encoder makes "
                f"{self._encoder.dim}; open it with the encoder it was built with"
            )

    def _compared(self) -> Literal["stored", "encoder"]:
        """Encode a few rows, compare them with what is stored, and return what neighbours are compared by."""
        rows = self._probes()
        prefix = getattr(self._encoder, "passage_prefix", "")
        made = self._encoded([prefix + self._texts.read(row, row)[0].text for row in rows])
        if self._stored is None:
            self._require_found(rows, made)
            return "encoder"
        if not rows:
            _log.warning("%s was not compared with the encoder: the rows that were looked at are blank", INDEX)
            return "stored"
        held = np.concatenate([self._stored.of(row, row) for row in rows])
        agreement = _agreement(held, made)
        rounded = coded(self._index, made)
        expected = _MATCHING * (1.0 if rounded is None else min(1.0, _agreement(rounded, made)))
        if agreement < expected:
            raise IndexMismatch(
                f"{INDEX!r} was built with another encoder: its vectors have a mean cosine of {agreement:.2f} to those "
                f"that this one makes of the same texts, expected {expected:.2f} or more"
            )
        if agreement >= _FAITHFUL:
            return "stored"
        _log.warning(
            "%s holds its vectors too coarsely (mean cosine %.2f): neighbours are encoded at every search",
            INDEX,
            agreement,
        )
        self._stored = None
        return "encoder"

    def _probes(self) -> list[int]:
        """Return rows from all over the file that have words."""
        starts = sorted({len(self) * at // _PROBES for at in range(_PROBES)})
        found = set()
        for start in starts:
            texts = self._texts.read(start, min(start + _BLANKS, len(self)) - 1)
            found.update([start + at for at, row in enumerate(texts) if row.text.strip()][:1])
        return sorted(found)

    def _require_found(self, rows: list[int], made: Vectors) -> None:
        """Check by searching that the encoder fits an index that gives no vectors back."""
        k = max(1, min(_NEAREST, len(self) // 20))
        found = [row in self._nearest(vector[None], k) for row, vector in zip(rows, made, strict=True)]
        if rows and sum(found) < _FINDING * len(found):
            raise IndexMismatch(
                f"{INDEX!r} was built with another encoder: of {len(found)} texts that this one encoded only "
                f"{sum(found)} found their own row among the nearest {k}, expected half of them or more"
            )
        _log.warning(
            "%s does not give its vectors back: neighbours are encoded at every search, and that it was built with "
            "this encoder was checked by searching alone (%d of %d texts found their own row)",
            INDEX,
            sum(found),
            len(found),
        )


class WikipediaRetriever:
    """The layout as a service's index; implements `protocols.Retriever`.

    Args:
        index: closed with the retriever.
        min_score: cosine of a hit under which it is not relevant.
        on_close: called last when the retriever is closed, for what was opened with it.
    """

    def __init__(
        self,
        index: WikipediaIndex,
        *,
        name: str = "wikipedia",
        min_score: float = 0.33,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.index = index
        self.name = name
        self._min_score = min_score
        self._on_close = on_close

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)

    async def search(
        self, query: str, *, k: int, index: str | None = None, where: Mapping[str, str] | None = None
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages with a cosine of `min_score` or more, best first; none for a blank query.

        Raises:
            NotFound: another index is named.
            InvalidRequest: a filter is given; this layout has no columns to filter by.
            BrokenIndex: the files were changed while they were open.
        """
        if index not in (None, self.name):
            raise NotFound(f"there is no index {index!r} here, expected {self.name!r}")
        if where:
            raise InvalidRequest(f"the index {self.name!r} takes no filters; ask without {sorted(where)[0]!r}")
        if not query.strip():
            return ()
        vectors = await self.index._encode([getattr(self.index._encoder, "query_prefix", "") + query])
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self.index._threads, lambda: self.index.passages(vectors, k, min_score=self._min_score)
        )
        return tuple(found)

    def close(self) -> None:
        """Let running searches end and close the files."""
        self.index.close()
        self._on_close()


def lay_out(folder: Path, tell: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Make everything that opening `folder` needs beside its two files, check that they fit, and return their rows.

    Raises:
        BrokenIndex: they do not belong together.
        BadIndex: the folder cannot be written.
        MissingExtra: faiss is not installed.
    """
    index = open_faiss(folder / INDEX)
    texts = open_sidecar(folder / PARQUET, tell=tell)
    try:
        _require_rows(folder, index, len(texts))
        stored_vectors(index, folder / INDEX, texts.folder)
        return len(texts)
    finally:
        texts.close()


def joined(rows: Sequence[Row]) -> str:
    """Return the texts of neighbouring rows as one, with a space where there is none between two."""
    text = ""
    for row in rows:
        apart = not text or not row.text or text[-1].isspace() or row.text[0].isspace()
        text += row.text if apart else f" {row.text}"
    return text


def _cosines(vectors: Vectors, centre: Vectors) -> Vectors:
    """Return the cosine of each of (n, dim) vectors to one; 0 for a vector of zeros."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(centre)
    return np.asarray(vectors @ centre / np.where(norms > 0, norms, 1), np.float32)


def _agreement(held: Vectors, made: Vectors) -> float:
    """Return the mean cosine of vectors to those of the same rows."""
    return float(np.mean([_cosines(a[None], b)[0] for a, b in zip(held, made, strict=True)]))


def _require_rows(folder: Path, index: Any, rows: int) -> None:
    if index.ntotal != rows:
        raise BrokenIndex(
            f"{INDEX!r} in {str(folder)!r} has {index.ntotal} vectors and {PARQUET!r} {rows} rows; "
            "they belong together, get both again with the recipe `openchatkit`"
        )


def _require(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise InvalidRequest(f"{name} is {value!r:.40}, expected a number from {expected}")
