"""Small folders in the layout of OpenChatKit's published index, and an encoder whose vectors are easy to foresee."""

import asyncio
import zlib

import faiss
import numpy as np
import pyarrow as pa
from pyarrow import parquet

DIM = 64


class WordEncoder:
    """Vectors of word counts, hashed into 64 places: texts that share words are near.

    Attributes:
        texts: everything that was encoded.
    """

    dim = DIM
    fingerprint = "words"

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def encode(self, texts):
        await asyncio.sleep(0)
        self.texts += texts
        return vectors_of(texts)


def vectors_of(texts) -> np.ndarray:
    vectors = np.zeros((len(texts), DIM), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for word in text.lower().replace(".", " ").split():
            vector[zlib.crc32(word.encode()) % DIM] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class RelatedEncoder(WordEncoder):
    """Vectors at a cosine to those of `WordEncoder`, in a direction that depends on the text."""

    def __init__(self, cosine) -> None:
        super().__init__()
        self.cosine = cosine

    async def encode(self, texts):
        own = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM) for text in texts]
        apart = np.sqrt(1 - self.cosine**2) * np.stack([row / np.linalg.norm(row) for row in own])
        return (self.cosine * vectors_of(texts) + apart).astype(np.float32)


# Articles in rows: within a run the rows share words, so that they are near each other.
ARTICLES = {
    "Lighthouses": [
        "The lamp of a lighthouse burns oil.",
        "A lighthouse lamp burns all night.",
        "The lighthouse lamp of the cape burns gas.",
        "Keepers eat bread.",
    ],
    "Bees": ["Honey bees dance.", "Honey bees dance towards flowers.", "Wasps sting."],
    "Lamps": ["The lamp of a lighthouse burns oil, gas and wood.", "Candles drip."],
}


def rows_of(articles=None):
    return [(text, place, title) for title, texts in (articles or ARTICLES).items() for place, text in enumerate(texts)]


def write_layout(folder, rows=None, *, kind="Flat", columns=("text_snippet", "position_in_source_text", "title")):
    """Write both files and return the folder; `kind` is a Faiss factory string."""
    rows = rows if rows is not None else rows_of()
    folder.mkdir(parents=True, exist_ok=True)
    named = dict(zip(("text_snippet", "position_in_source_text", "title"), zip(*rows, strict=True), strict=True))
    table = pa.table({name: list(named[name]) for name in columns})
    parquet.write_table(table, folder / "wikipedia-en-sentences.parquet")
    vectors = vectors_of([row[0] for row in rows])
    index = faiss.index_factory(DIM, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(folder / "knn.index"))
    return folder
