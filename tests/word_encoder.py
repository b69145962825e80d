"""An encoder for tests that need no model: texts are near when they have words in common."""

import re
import zlib

import numpy as np


class WordEncoder:
    """Counts words into 512 places and scales to unit length; implements `protocols.Encoder`.

    Attributes:
        texts: everything it encoded.
    """

    name, dim, max_tokens, fingerprint = "words", 512, 256, "words"

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def encode(self, texts):
        self.texts += texts
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[zlib.crc32(word.encode()) % self.dim] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
