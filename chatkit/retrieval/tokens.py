"""Texts to rows of token ids, and rows to the arrays of one forward pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.retrieval.checkpoint import TOKENIZER, Checkpoint
from chatkit.retrieval.traits import broken

# Ids and mask, (rows, tokens) each.
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


def load_tokenizer(file: Path, *, cut: int = 0, lower: bool = False) -> Any:
    """Return the tokenizer in `file`, without padding.

    Args:
        cut: tokens of a text that are kept, special ones included; 0 keeps all.
        lower: put texts in lower case first.

    Raises:
        BrokenModel: it cannot be read.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise broken(file, f"is no tokenizer ({error})") from error
    if lower:
        after = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *after])
    tokenizer.no_padding()
    if cut:
        tokenizer.enable_truncation(cut)
    else:
        tokenizer.no_truncation()
    return tokenizer


def pad_id(checkpoint: Checkpoint) -> int:
    """Return the padding token's id: models of the RoBERTa kind count positions by it, the others mask it away."""
    if checkpoint.traits.pad_id is not None:
        return checkpoint.traits.pad_id
    tokenizer = load_tokenizer(checkpoint.folder / TOKENIZER)
    found = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|endoftext|>"))
    return next((int(number) for number in found if number is not None), 0)


def pad(rows: Sequence[Sequence[int]], padding: int, least: int = 0) -> Batch:
    """Return rows of ids as one array, filled up on the right, and the mask of what is text.

    Args:
        least: tokens that a row has in any case.
    """
    longest = max(least, *map(len, rows))
    ids = np.full((len(rows), longest), padding, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def batches(lengths: Sequence[int], *, tokens: int, waste: int) -> list[list[int]]:
    """Group positions by length, so that little of each batch is padding.

    Args:
        tokens: of one batch, padding included; a single longer text is a batch of its own.
        waste: a longer text opens a batch of its own when joining would pad the others by more tokens than this in all.
    """
    found: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[position]
        current = found[-1] if found else []
        extra = (length - longest) * len(current)
        if not current or extra > waste or length * (len(current) + 1) > tokens:
            found.append([position])
        else:
            current.append(position)
        longest = length
    return found
