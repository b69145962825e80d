"""The seam of encoders: texts in, vectors out; `chatkit.protocols` has its names too. Knows no library."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol


class Encoder(Protocol):
    """Turns texts into vectors."""

    @property
    def dim(self) -> int:
        """Length of one vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names weights, pooling and normalisation: equal fingerprints give comparable vectors."""
        ...

    async def encode(self, texts: Sequence[str]) -> Any:
        """Return a (len(texts), dim) float32 numpy array of vectors, in the order of `texts`.

        They are of length one, except from a `PassageEncoder` that says it is not `normalised`.
        """
        ...


class Embedder(Encoder, Protocol):
    """An encoder that others may ask for vectors."""

    @property
    def name(self) -> str:
        """What callers call it."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read, special tokens included."""
        ...

    def count_tokens_of(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, special tokens included, however long it is."""
        ...


class PassageEncoder(Embedder, Protocol):
    """An encoder that indexes are built with and searched by.

    `encode` adds no prefix: a build encodes `passage_prefix` + text, a search the query prefix of the index + query.
    """

    @property
    def pooling(self) -> str:
        """How one vector is made of the tokens': "mean", "cls", "max" or "lasttoken"."""
        ...

    @property
    def normalised(self) -> bool:
        """Whether every vector has length one; where not, a cosine has to be divided by both lengths."""
        ...

    @property
    def metric(self) -> Literal["cosine", "ip"]:
        """What two vectors are compared by: "ip" (inner product) where the model was trained for that."""
        ...

    @property
    def query_prefix(self) -> str:
        """What the model expects before a query; "" for nothing."""
        ...

    @property
    def passage_prefix(self) -> str:
        """What the model expects before a passage; "" for nothing."""
        ...
