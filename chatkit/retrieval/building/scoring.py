"""Between embedding and writing: the passages that have no scores yet are scored; the others keep theirs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.building import spool
from chatkit.retrieval.building.cache import VectorCache, file_of
from chatkit.retrieval.building.embedding import embedded_texts
from chatkit.retrieval.building.keys import text_keys
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.chunking import Chunk
from chatkit.retrieval.risks import PassageScorer
from chatkit.types import heading_of

# What the name of a cache of scores begins with; no fingerprint of an encoder does.
SCORES = "scores "
# Passages that are scored between two writes to the cache.
BATCH = 64
# Headings that are remembered of documents before.
_REMEMBERED = 4096


def fingerprint_of(version: str) -> str:
    """Return what the cache of a scorer's scores goes by, beside those of encoders' vectors."""
    return SCORES + version


def scores_of(
    folder: Path, file: Path, total: int, scorer: PassageScorer, prefix: str, meter: Meter
) -> NDArray[np.float32]:
    """Return the (passages, categories) scores of the chunks of a spool in order, out of the cache where it has them.

    Scored is what a prompt shows: the text below its heading.

    Args:
        folder: of the index; the cache is in it.
        file: the spool.
        total: chunks in it.
        scorer: scores what is new.
        prefix: of the encoder's passages: scores go by the keys that vectors go by.
        meter: told of the chunks that have scores.

    Raises:
        OSError: the cache cannot be written; what was scored before is kept.
    """
    fingerprint, width = fingerprint_of(scorer.version), len(scorer.categories)
    found = np.empty((total, width), dtype=np.float32)
    done = scored = 0
    headings = _Headings(scorer)
    with VectorCache(file_of(folder, fingerprint), fingerprint, width) as cache:
        for chunks in spool.read(file, batch=BATCH):
            keys = text_keys(embedded_texts(chunks, prefix))
            _, first = np.unique(keys, axis=0, return_index=True)
            new = np.sort(first[cache.find(keys[first]) < 0])
            if len(new):
                cache.append(keys[new], scorer.score_now([_shown(chunks[row].chunk) for row in new.tolist()]))
                scored += len(new)
            rows = cache.vectors(cache.find(keys))
            found[done : done + len(chunks)] = headings.raised(rows, [entry.chunk for entry in chunks])
            done += len(chunks)
            meter.chunks(done, total, scored)
    return found


class _Headings:
    """Scores the headings that the keys of the cache do not hold whole: one key has one row."""

    def __init__(self, scorer: PassageScorer) -> None:
        self._scorer = scorer
        self._known: dict[str, NDArray[np.float32]] = {}

    def raised(self, rows: NDArray[np.float32], chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Return the (n, categories) `rows`, raised to the scores of such headings of `chunks`, each scored once."""
        headings = [_beyond_key(chunk) for chunk in chunks]
        if not any(headings):
            return rows
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        new = [heading for heading in dict.fromkeys(headings) if heading and heading not in self._known]
        if new:
            self._known.update(zip(new, self._scorer.score_now(new), strict=True))
        raised = rows.copy()
        for place, heading in enumerate(headings):
            if heading:
                raised[place] = np.maximum(raised[place], self._known[heading])
        return raised


def _shown(chunk: Chunk) -> str:
    """Return what is scored of a chunk, no more than goes into its key: `_beyond_key` is the rest."""
    heading = "" if _beyond_key(chunk) else heading_of(chunk.title, chunk.section, chunk.source)
    return f"{heading}\n\n{chunk.text}" if heading else chunk.text


def _beyond_key(chunk: Chunk) -> str:
    """Return the heading of a chunk where what is embedded, which makes its key, does not hold the whole of it."""
    whole = " > ".join(part for part in (chunk.title, chunk.section) if part)
    if whole and chunk.embedded.startswith(whole + "\n"):
        return ""
    return heading_of(chunk.title, chunk.section, chunk.source)
