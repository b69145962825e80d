"""What moderation made of each passage when the index was built: a table of scores beside the passages.

Retrieval knows what the categories are called, not what they mean; whoever builds the index brings the scorer.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.manifest import RISKS, Manifest, broken

# A score is stored as one of so many steps, in two bytes.
_STEPS = 65535
Table = NDArray[np.uint16]
Pairs = tuple[tuple[str, float], ...]


class PassageScorer(Protocol):
    """Scores the texts of passages."""

    @property
    def version(self) -> str:
        """Names everything that decides the scores."""
        ...

    @property
    def categories(self) -> tuple[str, ...]:
        """What is scored, in the order of the columns."""
        ...

    def score_now(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), categories) scores, each 0 to 1."""
        ...


def write(folder: Path, scores: NDArray[np.float32]) -> Path:
    """Write (passages, categories) scores in the order of the rows, durably, and return the file.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    with (folder / RISKS).open("wb") as stream:
        np.save(stream, np.round(np.clip(scores, 0, 1) * _STEPS).astype(np.uint16))
        stream.flush()
        os.fsync(stream.fileno())
    return folder / RISKS


class Risks:
    """The scores of the passages of an open version; rows are read from the file as they are asked for."""

    def __init__(self, categories: tuple[str, ...], table: Table) -> None:
        self._categories = categories
        self._table = table

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> "Risks | None":
        """Return the scores in `folder`, None where its passages were not scored.

        Raises:
            BrokenIndex: the file is no such table.
        """
        if manifest.risks is None:
            return None
        try:
            table: Any = np.load(folder / RISKS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise broken(folder / RISKS, f"cannot be read ({error})") from error
        shape = (manifest.passages, len(manifest.risks.categories))
        if table.dtype != np.uint16 or table.shape != shape:
            raise broken(folder / RISKS, f"has shape {table.shape!r} of {table.dtype}, expected {shape!r} of uint16")
        return cls(manifest.risks.categories, table)

    def of(self, row: int) -> Pairs:
        """Return category → score pairs of one passage."""
        scores = self._table[row].astype(np.float64) / _STEPS
        return tuple(zip(self._categories, np.round(scores, 5).tolist(), strict=True))
