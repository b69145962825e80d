"""The legs of an index over the corpus of a labelled set, made with the product's own writers; a document is a passage.

The vectors are kept in a folder between runs: encoding a corpus takes minutes, all else seconds.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chatkit.evaluation.beir import BeirSet, Document
from chatkit.retrieval import vectors
from chatkit.retrieval.legs import Legs
from chatkit.retrieval.lexical import Lexical, LexicalWriter
from chatkit.retrieval.manifest import EncoderEntry, FusionEntry, Manifest, VectorsEntry
from chatkit.retrieval.tuning import choose_fusion
from chatkit.retrieval.vector_writer import VectorWriter

if TYPE_CHECKING:
    from chatkit.retrieval.encoder import SentenceEncoder

Vectors = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

# Documents encoded between two reports, and written at a time.
_SLICE = 256
# Documents whose sentences choose the weight of the dense leg.
_SAMPLE = 1024


@dataclass(frozen=True, slots=True)
class _Text:
    embedded: str


def text_of(document: Document) -> str:
    """Return what is indexed of a document: its title and its text."""
    return f"{document.title} {document.text}".strip()


@dataclass(frozen=True, slots=True)
class Built:
    """Open legs over a corpus; row = place of the document.

    Attributes:
        vectors: of every document, (documents, dim) float32, as the encoder gave them.
        kind: how they are stored.
        fusion: how the legs are weighed.
    """

    legs: Legs
    vectors: Vectors
    kind: str
    fusion: FusionEntry


def build(
    collection: BeirSet, encoder: "SentenceEncoder", cache: Path | None, stack: ExitStack, progress: Progress
) -> Built:
    """Encode and write the corpus; everything is closed and removed with `stack`.

    Args:
        collection: the set.
        encoder: of the dense leg; its prefixes, metric and normalisation are used.
        cache: folder in which vectors are kept; None keeps none.
        stack: what is opened is closed with it.
        progress: called with what is done, how far, and of how many.
    """
    documents = list(collection.corpus.values())
    texts = [text_of(one) for one in documents]
    stored = encoded(texts, encoder, cache, progress)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chatkit-eval-")))
    entry, opened = write_vectors(folder, stored, encoder.metric)
    stack.callback(opened.close)
    lexical = _lexical(folder, texts, progress)
    stack.callback(lexical.close)
    every = max(1, len(texts) // _SAMPLE)
    fusion = choose_fusion([one.text for one in documents[::every]], encoder)
    return Built(Legs(opened, lexical, fusion, metric=encoder.metric), stored, entry.kind, fusion)


def write_vectors(
    folder: Path, stored: Vectors, metric: str, kind: vectors.VectorKind | None = None
) -> tuple[VectorsEntry, vectors.Vectors]:
    """Write vectors as an index of so many would have them, or as `kind` has them, and open them."""
    kind = kind or vectors.choose(len(stored), stored.shape[1])
    writer = VectorWriter(folder, stored.shape[1], kind, metric)
    try:
        if kind.train_rows:
            chance = np.random.default_rng(len(stored))
            writer.train(stored[np.sort(chance.permutation(len(stored))[: kind.train_rows])])
        for start in range(0, len(stored), 65_536):
            writer.add(np.ascontiguousarray(stored[start : start + 65_536]))
        _, entry = writer.finish()
    finally:
        writer.close()
    return entry, vectors.Vectors.open(folder, _manifest(stored, entry, metric))


def _manifest(stored: Vectors, entry: VectorsEntry, metric: str) -> Manifest:
    """Return as much of a manifest as opening vectors asks for."""
    count, dim = stored.shape
    return Manifest(
        name="eval",
        encoder=EncoderEntry("", "", dim, metric=metric),
        vectors=entry,
        lexical=None,
        fusion=FusionEntry(),
        chunker="",
        chunking={},
        documents=count,
        passages=count,
        duplicates=0,
        near_duplicates=0,
        skipped=0,
        sources_sha256="",
        built_at="",
        built_by="",
        files={},
    )


def encoded(texts: Sequence[str], encoder: "SentenceEncoder", cache: Path | None, progress: Progress) -> Vectors:
    """Return the vectors of `texts` as passages, from the cache where it has them."""
    file = cache / f"{_key(texts, encoder)}.npy" if cache is not None else None
    if file is not None and file.is_file():
        kept: Vectors = np.load(file, mmap_mode="r")
        if kept.shape == (len(texts), encoder.dim):
            return kept
    made = np.empty((len(texts), encoder.dim), dtype=np.float32)
    for start in range(0, len(texts), _SLICE):
        part = [encoder.passage_prefix + text for text in texts[start : start + _SLICE]]
        made[start : start + len(part)] = encoder.encode_now(part)
        progress("encoded", start + len(part), len(texts))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part.npy")
        np.save(unfinished, made)
        unfinished.replace(file)
    return made


def _key(texts: Sequence[str], encoder: "SentenceEncoder") -> str:
    digest = hashlib.sha256(f"{encoder.fingerprint}\0{encoder.passage_prefix}\0".encode())
    for text in texts:
        digest.update(f"{len(text)}\0".encode())
        digest.update(text.encode("utf-8", "replace"))
    return digest.hexdigest()[:32]


def _lexical(folder: Path, texts: Sequence[str], progress: Progress) -> Lexical:
    writer = LexicalWriter(folder)
    try:
        for start, part in _slices(texts, 4096):
            writer.add(start, [_Text(text) for text in part])
            progress("indexed", start + len(part), len(texts))
        writer.finish()
    finally:
        writer.close()
    return Lexical.alone(folder)


def _slices(texts: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    for start in range(0, len(texts), size):
        yield start, texts[start : start + size]
