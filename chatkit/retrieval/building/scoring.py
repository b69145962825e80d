"""Between embedding and writing: the passages that have no scores yet are scored; the others keep theirs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.building import spool
from chatkit.retrieval.building.cache import VectorCache, file_of
from chatkit.retrieval.building.embedding import embedded_texts
from chatkit.retrieval.building.keys import text_keys
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.risks import PassageScorer

# What the name of a cache of scores begins with; no fingerprint of an encoder does.
SCORES = "scores "
# Passages that are scored between two writes to the cache.
BATCH = 64


def fingerprint_of(version: str) -> str:
    """Return what the cache of a scorer's scores goes by, beside those of encoders' vectors."""
    return SCORES + version


def scores_of(
    folder: Path, file: Path, total: int, scorer: PassageScorer, prefix: str, meter: Meter
) -> NDArray[np.float32]:
    """Return the (passages, categories) scores of the chunks of a spool in order, out of the cache where it has them.

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
    with VectorCache(file_of(folder, fingerprint), fingerprint, width) as cache:
        for chunks in spool.read(file, batch=BATCH):
            keys = text_keys(embedded_texts(chunks, prefix))
            _, first = np.unique(keys, axis=0, return_index=True)
            new = np.sort(first[cache.find(keys[first]) < 0])
            if len(new):
                cache.append(keys[new], scorer.score_now([chunks[row].chunk.text for row in new.tolist()]))
                scored += len(new)
            found[done : done + len(chunks)] = cache.vectors(cache.find(keys))
            done += len(chunks)
            meter.chunks(done, total, scored)
    return found
