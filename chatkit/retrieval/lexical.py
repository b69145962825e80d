"""The lexical leg: BM25 over words (tantivy), written once with a version and read where it lies."""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import ConfigError, MissingExtra
from chatkit.retrieval import words
from chatkit.retrieval.manifest import FILE, LexicalEntry, Manifest, broken

__all__ = ["ENGINE", "FOLDER", "Lexical", "LexicalWriter", "entry"]

ENGINE = "tantivy"
FOLDER = "lexical"

_TEXT, _ROW = "text", "row"
# Memory of the writer before it writes a segment, in bytes.
_HEAP = 64 * 2**20
# A query has at most so many different words, the rarest that the index has; others hardly change the order, and each
# costs time.
_MOST_WORDS = 96
# Characters of a query that are read: a pasted page is no query.
_MOST_CHARS = 8_000
# Selected rows are given to tantivy as ranges while these are few, else one by one.
_MOST_RANGES = 256
# Of scattered rows, a search of all passages first takes so many times what holds k of them by chance.
_SPARE = 4
# The share of BM25's score that a word can reach at most is (k1 + 1) × its weight, with tantivy's k1.
_K1 = 1.2
# Of the pairs that an unspaced query is cut into, about half straddle two words and stand in no passage that says it in
# another order: with this the best passages of xquad's questions say .64 of them in Chinese, and .61 in English.
_PAIR = 0.5


class Text(Protocol):
    """What is indexed of a chunk."""

    @property
    def embedded(self) -> str:
        """Where the chunk stands, then the chunk."""
        ...


def entry(analyser: str = words.DEFAULT) -> LexicalEntry:
    """Return what the manifest says of a lexical index."""
    return LexicalEntry(ENGINE, analyser)


def import_tantivy() -> Any:
    """Return the module.

    Raises:
        MissingExtra: tantivy is not installed.
    """
    try:
        import tantivy
    except ModuleNotFoundError as error:
        raise MissingExtra("tantivy", "cpu") from error
    return tantivy


class LexicalWriter:
    """Writes the lexical index of a version into `folder`/lexical, in bounded memory."""

    def __init__(self, folder: Path, analyser: str = words.DEFAULT) -> None:
        """Begin; `folder` is the version's.

        Raises:
            MissingExtra: tantivy is not installed.
            OSError: the folder cannot be made.
        """
        tantivy = import_tantivy()
        self._tantivy = tantivy
        self._folder = folder / FOLDER
        self._folder.mkdir()
        builder = tantivy.SchemaBuilder()
        builder.add_text_field(_TEXT, tokenizer_name=analyser, index_option="freq")
        builder.add_unsigned_field(_ROW, indexed=True, fast=True)
        index = tantivy.Index(builder.build(), path=str(self._folder))
        index.register_tokenizer(analyser, words.analyser(analyser))
        self._writer: Any = index.writer(heap_size=_HEAP, num_threads=1)

    def add(self, first_row: int, chunks: Sequence[Text]) -> None:
        """Append chunks that have the row numbers from `first_row` on.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        for row, chunk in enumerate(chunks, start=first_row):
            document = self._tantivy.Document()
            document.add_text(_TEXT, words.paired(chunk.embedded))
            document.add_unsigned(_ROW, row)
            try:
                self._writer.add_document(document)
            except ValueError as error:
                raise OSError(f"the lexical index cannot be written ({error})") from error

    def finish(self) -> list[Path]:
        """Write what is left, flush it to the disk and return the files.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        try:
            self._writer.commit()
            self._writer.wait_merging_threads()
        except ValueError as error:
            raise OSError(f"the lexical index cannot be written ({error})") from error
        self._writer = None
        for file in self._folder.glob(".*"):  # locks and the writer's own list of its files
            file.unlink()
        files = sorted(self._folder.iterdir())
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        return files

    def close(self) -> None:
        """Let go of the files, finished or not."""
        self._writer = None


class Lexical:
    """An open lexical index.

    Methods may be called from several threads. They raise BrokenIndex where a file turns out to be damaged.
    """

    def __init__(self, folder: Path, index: Any, links: Path | None, analyser: Any) -> None:
        """Take an open index; `links` is a folder to remove when closed."""
        self._folder = folder
        self._tantivy = import_tantivy()
        self._schema = index.schema
        self._searcher = index.searcher()
        self._analyser = analyser
        self._links = links

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> "Lexical":
        """Open the lexical index of a version; its files are mapped.

        Raises:
            BrokenIndex: it is damaged, or made by another engine or analyser than this release has.
            MissingExtra: tantivy is not installed.
        """
        import_tantivy()
        made = manifest.lexical
        if made is None or made.engine != ENGINE:
            raise broken(folder / FILE, f"has the lexical index {made!r:.80}, expected one of {ENGINE}")
        try:
            analyser = words.analyser(made.analyser)
        except ConfigError as error:
            raise broken(folder / FILE, str(error)) from error
        opened = cls(folder / FOLDER, *_opened(folder / FOLDER), analyser)
        count = len(opened)
        if count != manifest.passages:
            opened.close()
            raise broken(folder / FILE, f"counts {manifest.passages} passages, but the lexical index holds {count}")
        return opened

    @classmethod
    def alone(cls, folder: Path, analyser: str = words.DEFAULT) -> "Lexical":
        """Open a lexical index that belongs to no version.

        Raises:
            BrokenIndex: it is damaged.
        """
        return cls(folder / FOLDER, *_opened(folder / FOLDER), words.analyser(analyser))

    def __len__(self) -> int:
        """Return the number of passages."""
        return int(self._searcher.num_docs)

    def search(self, query: str, k: int, rows: NDArray[np.int64] | None = None) -> list[tuple[int, float]]:
        """Return at most `k` (row, BM25 score) that have a word of `query`, best first.

        Args:
            query: any text.
            k: how many.
            rows: search these rows only; None for all.
        """
        return self.search_words(self.words_of(query), k, rows)

    def search_words(
        self, weights: dict[str, float], k: int, rows: NDArray[np.int64] | None = None
    ) -> list[tuple[int, float]]:
        """Do what `search` does, with words of `words_of` and how often each counts."""
        if not weights or k < 1 or (rows is not None and not len(rows)):
            return []
        query = self._any_of(weights)
        if rows is None:
            return self._hits(query, k)
        runs = _runs(np.unique(rows))
        if len(runs) > _MOST_RANGES and (found := self._sifted(query, k, runs)) is not None:
            return found
        must = self._tantivy.Occur.Must
        return self._hits(self._tantivy.Query.boolean_query([(must, self._within(runs)), (must, query)]), k)

    def _hits(self, query: Any, k: int) -> list[tuple[int, float]]:
        with _reading(self._folder):
            hits = self._searcher.search(query, min(k, len(self)), count=False).hits
            found = self._searcher.fast_field_values(_ROW, [address for _, address in hits])
        return [(int(row), float(score)) for row, (score, _) in zip(found, hits, strict=True)]

    def _sifted(self, query: Any, k: int, runs: NDArray[np.int64]) -> list[tuple[int, float]] | None:
        """Return the best within many rows out of the best of all; None where listing the rows is less work.

        A filter that half of the passages match would otherwise be a query of millions of terms, made for each search.
        """
        count = int((runs[:, 1] - runs[:, 0]).sum()) + len(runs)
        depth = _SPARE * k * len(self) // count
        while depth < count:
            hits = self._hits(query, depth)
            rows = np.array([row for row, _ in hits], dtype=np.int64)
            last = runs[np.searchsorted(runs[:, 0], rows, side="right") - 1, 1]
            inside = (rows >= runs[0, 0]) & (rows <= last)
            found = [hit for hit, fits in zip(hits, inside.tolist(), strict=True) if fits]
            if len(found) >= k or len(hits) < depth:
                return found[:k]
            depth *= 4
        return None

    def words_of(self, query: str) -> dict[str, float]:
        """Return the words of `query` as the index holds them, with how often each stands there."""
        counted = Counter(self._analyser.analyze(words.paired(query[:_MOST_CHARS])))
        if len(counted) > _MOST_WORDS:
            rarest = sorted(counted, key=lambda word: self._frequency(word) or math.inf)[:_MOST_WORDS]
            counted = Counter({word: counted[word] for word in rarest})
        return {word: float(count) for word, count in counted.items()}

    def ceiling(self, weights: dict[str, float]) -> float:
        """Return the score of a passage that says all of it: full of every word, of every second pair of characters.

        No passage has more, unless it has nearly every pair of a query in a script without spaces.
        """
        total = len(self)
        ceiling = 0.0
        for word, weight in weights.items():
            frequency = self._frequency(word)
            counted = weight * _PAIR if words.is_pair(word) else weight
            ceiling += counted * math.log1p((total - frequency + 0.5) / (frequency + 0.5))
        return (_K1 + 1) * ceiling

    def close(self) -> None:
        """Let go of the files; no call may be under way."""
        self._searcher = None
        _remove(self._links)

    def _frequency(self, word: str) -> int:
        with _reading(self._folder):
            return int(self._searcher.doc_freq(_TEXT, word))

    def _any_of(self, weights: dict[str, float]) -> Any:
        queries = self._tantivy.Query
        terms = [(queries.term_query(self._schema, _TEXT, word, "freq"), weight) for word, weight in weights.items()]
        should = self._tantivy.Occur.Should
        return queries.boolean_query(
            [(should, term if weight == 1 else queries.boost_query(term, weight)) for term, weight in terms]
        )

    def _within(self, runs: NDArray[np.int64]) -> Any:
        """Return the query that holds the rows of these runs and adds nothing to a score."""
        queries, kind = self._tantivy.Query, self._tantivy.FieldType.Unsigned
        lengths = runs[:, 1] - runs[:, 0] + 1
        if len(runs) <= _MOST_RANGES and lengths.sum() > 2 * len(runs):
            ranges = [queries.range_query(self._schema, _ROW, kind, first, last) for first, last in runs.tolist()]
            selected = queries.boolean_query([(self._tantivy.Occur.Should, each) for each in ranges])
        else:
            rows = [row for first, last in runs.tolist() for row in range(first, last + 1)]
            selected = queries.term_set_query(self._schema, _ROW, rows)
        return queries.const_score_query(selected, 0.0)


def _runs(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return first and last of each run of rows that follow one another, (n, 2); `rows` ascend."""
    cuts = np.flatnonzero(np.diff(rows) > 1)
    return np.column_stack([rows[np.r_[0, cuts + 1]], rows[np.r_[cuts, len(rows) - 1]]])


def _opened(folder: Path) -> tuple[Any, Path | None]:
    """Open the files where they lie, or through links where the folder cannot be written.

    The library puts a lock beside the files it opens, which a read-only volume does not take.
    """
    tantivy = import_tantivy()
    links: Path | None = None
    try:
        if os.access(folder, os.W_OK):
            return tantivy.Index.open(str(folder)), None
        links = Path(tempfile.mkdtemp(prefix="chatkit-lexical-"))
        for file in folder.iterdir():
            (links / file.name).symlink_to(file.resolve())
        return tantivy.Index.open(str(links)), links
    except (ValueError, OSError) as error:
        _remove(links)
        raise broken(folder, f"cannot be read by tantivy ({str(error).strip()[:200]})") from error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Say of damaged files what they are: the library ends in a panic on them, which is no Exception of Python's."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
            raise
        raise broken(folder, f"cannot be searched by tantivy ({str(error).strip()[:200]})") from error


def _remove(links: Path | None) -> None:
    if links is not None:
        shutil.rmtree(links, ignore_errors=True)
