"""What an encoder's folder says about itself, read without loading the weights."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenModel, ModelError

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
POOLING = "mean"
NORMALISATION = "l2"
# Folder beside the weights for what can be made again from them: converted form, compiled form, hash of the weights.
CACHE_FOLDER = "converted"

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An encoder's files.

    Attributes:
        dim: length of one vector.
        max_tokens: texts are cut here, special tokens included.
        weights_sha256: hex digest of the weights file.
        fingerprint: names weights, tokenizer, pooling, normalisation and cut: equal ones give comparable vectors.
    """

    folder: Path
    cache: Path
    dim: int
    max_tokens: int
    weights_sha256: str
    fingerprint: str


def read_checkpoint(folder: Path, cache: Path | None = None) -> Checkpoint:
    """Read configuration and hashes of the encoder in `folder`.

    Raises:
        BrokenModel: a file is missing or cannot be read, naming it.
        ModelError: the encoder pools in another way than by the mean.
    """
    for name in ("config.json", TOKENIZER, WEIGHTS):
        if not (folder / name).is_file():
            raise broken(folder / name, "is missing")
    config = _read_json(folder / "config.json")
    dim = config.get("hidden_size")
    if not isinstance(dim, int):
        raise broken(folder / "config.json", f"has hidden_size {dim!r}, expected a whole number")
    _require_mean_pooling(folder)
    max_tokens = _max_tokens(folder, config)
    cache = cache if cache is not None else folder / CACHE_FOLDER
    weights = _weights_sha256(folder / WEIGHTS, cache)
    tokenizer = hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    identity = f"{weights}\n{tokenizer}\n{POOLING}\n{NORMALISATION}\n{max_tokens}"
    fingerprint = f"{POOLING}-{NORMALISATION}-{max_tokens}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"
    return Checkpoint(folder, cache, dim, max_tokens, weights, fingerprint)


def broken(file: Path, problem: str) -> BrokenModel:
    """Return the error for one file of an encoder, with the next step."""
    return BrokenModel(f"encoder file {str(file)!r} {problem}; fetch it again with: chatkit models pull")


def sha256_of(file: Path) -> str:
    """Return the hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise broken(file, f"is not valid JSON ({error})") from error
    if not isinstance(table, dict):
        raise broken(file, "does not hold a JSON object")
    return table


def _require_mean_pooling(folder: Path) -> None:
    """Refuse a checkpoint that names another pooling; one that names none (Contriever) is pooled by the mean."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return
    modes = [name for name, on in _read_json(file).items() if name.startswith("pooling_mode_") and on is True]
    if modes != ["pooling_mode_mean_tokens"]:
        raise ModelError(
            f"{str(file)!r} asks for {modes!r}, expected mean pooling; choose another model with --encoder"
        )


def _max_tokens(folder: Path, config: dict[str, Any]) -> int:
    """Return the length the model was tuned for, at most what its positions allow."""
    positions = config.get("max_position_embeddings")
    limit = positions if isinstance(positions, int) else 512
    file = folder / "sentence_bert_config.json"
    tuned = _read_json(file).get("max_seq_length") if file.is_file() else None
    return min(tuned, limit) if isinstance(tuned, int) else limit


def _weights_sha256(weights: Path, cache: Path) -> str:
    """Hash the weights, or take the digest noted when a file of this size and modification time was hashed before."""
    stat = weights.stat()
    note = cache / "weights.json"
    key = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if {"size": known["size"], "mtime_ns": known["mtime_ns"]} == key and len(known["sha256"]) == 64:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note yet, or not one of ours: hash
    digest = sha256_of(weights)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        fresh = note.with_name(f"weights.json.{os.getpid()}")
        fresh.write_text(json.dumps({**key, "sha256": digest}), encoding="utf-8")
        fresh.replace(note)
    except OSError:
        pass  # a read-only model cache costs a hash at every start, nothing else
    return digest
