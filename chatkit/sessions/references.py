"""What a turn keeps of the passages of its prompt and of its tokens, in types that are read again. Pure."""

import hashlib
import math
from typing import Any

from chatkit.session_lines import MOST_SCORE
from chatkit.types import Passage


def row_of(passage: Passage) -> list[Any]:
    """Return what is stored of a passage: where it is, and the hash of its text in place of the text."""
    place = [passage.id, passage.title, passage.source, passage.section, passage.start, passage.end]
    row = [*place, _score(passage.score), text_hash(passage)]
    return [*row, passage.page, passage.document] if passage.page or passage.document else row


def count_of(tokens: Any) -> int:
    """Return a count of tokens as it is stored and read: somebody's own model may count in other types."""
    return int(tokens) if isinstance(tokens, int | float) and math.isfinite(tokens) else 0


def _score(value: float) -> float:
    """Return a score as it is stored and read; one that is no number counts as 0."""
    return 0.0 if math.isnan(value) else round(max(-MOST_SCORE, min(MOST_SCORE, float(value))), 4)


def text_hash(passage: Passage) -> str:
    """Return the hash that stands for the text of a passage; "" of one of an older version, which has neither."""
    if passage.text_hash or not passage.text:
        return passage.text_hash
    return hashlib.sha256(passage.text.encode()).hexdigest()[:16]


# Of hash, page and document, for the rows of older versions.
_NOTHING: list[Any] = ["", 0, ""]


def passage_of(row: list[Any]) -> Passage:
    """Return the passage that a row stands for, without its text."""
    identity, title, source, section, start, end, score, *rest = row  # rows of older versions end sooner
    text_hash, page, document = rest + _NOTHING[len(rest) :]
    return Passage(identity, "", title, source, section, start, end, float(score), text_hash, int(page), document)
