"""What an encoder's folder says about itself, read without loading the weights."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from chatkit.retrieval.traits import Told, Traits, broken, read_json, read_traits

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
# Folder beside the weights for what can be made again from them: converted form, compiled form, hash of the weights.
CACHE_FOLDER = "converted"

_BLOCK = 1 << 20
# Of a configuration: who wrote it and how, and what is of use in training or generating only.
_OF_NO_EFFECT = frozenset(
    {"architectures", "auto_map", "dtype", "gradient_checkpointing", "torch_dtype", "transformers_version", "use_cache"}
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An encoder's files.

    Attributes:
        folder: of the transformer itself.
        weights_sha256: hex digest of the weights file.
        fingerprint: names weights, configuration, tokenizer, pooling, normalisation and cut: equal ones give
            comparable vectors.
    """

    folder: Path
    cache: Path
    traits: Traits
    weights_sha256: str
    fingerprint: str


def read_checkpoint(folder: Path, cache: Path | None = None, told: Told | None = None) -> Checkpoint:
    """Read configuration and hashes of the encoder in `folder`.

    Args:
        cache: where the hash of the weights is noted; a folder beside them unless told.
        told: what settings say of pooling, metric and prefixes.

    Raises:
        BrokenModel: a file is missing or cannot be read, naming it.
        ModelError: the encoder has a part that is not supported.
    """
    traits = read_traits(folder, told)
    for name in (TOKENIZER, WEIGHTS):
        _require(traits.transformer / name)
    cache = cache if cache is not None else folder / CACHE_FOLDER
    weights = _weights_sha256(traits.transformer / WEIGHTS, cache)
    length = "l2" if traits.normalised else "raw"
    parts = [weights, sha256_of(traits.transformer / TOKENIZER), traits.pooling, length, str(traits.max_tokens)]
    parts.append(_computation(traits.transformer / "config.json"))
    if traits.lower:
        parts.append("lower case")
    for layer in traits.dense:
        _require(layer.folder / WEIGHTS)
        parts += [sha256_of(layer.folder / WEIGHTS), layer.activation]
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    fingerprint = f"{traits.pooling}-{length}-{traits.max_tokens}-{identity}"
    return Checkpoint(traits.transformer, cache, traits, weights, fingerprint)


def _require(file: Path) -> None:
    if file.is_file():
        return
    pickled = any(file.parent.glob("pytorch_model*.bin"))
    if file.name == WEIGHTS and pickled:
        raise broken(file, "is missing and pickled weights are not read; choose a revision that has it")
    raise broken(file, "is missing")


def sha256_of(file: Path) -> str:
    """Return the hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _computation(file: Path) -> str:
    """Return what a configuration says of how weights are used: equal weights under another one are another encoder."""
    config = {
        name: value for name, value in read_json(file).items() if not name.startswith("_") and name not in _OF_NO_EFFECT
    }
    return json.dumps(config, sort_keys=True)


def _weights_sha256(weights: Path, cache: Path) -> str:
    """Hash the weights, or take the digest that was noted when this very file was hashed and not written to since."""
    stat = weights.stat()
    note = cache / "weights.json"
    # Archives and copies bring the modification time along; the inode and the time of its last change are its own.
    key = {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if {name: known[name] for name in key} == key and len(known["sha256"]) == 64:
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
