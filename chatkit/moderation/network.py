"""The head itself: a small network from vectors and words to logits, in numpy, and the file that holds it."""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatkit.errors import BrokenModel, ModelError
from chatkit.moderation.features import BUCKETS, hashed_terms
from chatkit.types import LABELS

Floats = npt.NDArray[np.float32]

# Raised whenever tensors, features or clean-up change, so that no code reads weights fitted for other code.
FORMAT = 2
# What the head scores. "harm" is the overall judgement, which the most texts teach; the others say which kind it is.
# "injection" sets a model's instructions aside; "orders" are any to a model, which in a passage are one as well.
SCORED = (
    "harm",
    "hate",
    "harassment",
    "violence",
    "self_harm",
    "sexual",
    "illicit",
    "injection",
    "profanity",
    "orders",
)
OUTPUTS = len(SCORED) + len(LABELS)
# All metadata is one key: with several, their order in the file would differ from run to run.
_KEY = "chatkit"
# Tensors that are kept as float32; the others lose nothing that matters as float16.
_EXACT = ("kernel", "base", "scale", "shift")
# Of the network in the five labels, beside the kernel regression: it knows better what everyday text is.
NETWORK_SHARE = 0.4
RETRAIN = "fit it again with: chatkit moderation train --data DIR"


@dataclass(frozen=True, slots=True)
class Network:
    """Weights; H hidden units (all members of the ensemble side by side), D the length of a vector.

    Attributes:
        hidden: (D, H); hidden_bias: (H,).
        output: (H, 15), already divided by the number of members; output_bias: (15,).
        words: (BUCKETS, 15).
        direct: (D, 15), straight from vectors to logits.
        centres: (M, D) vectors of texts with votes; kernel: (M, 5) what each says of the labels; base: (5,) their mean.
        scale, shift: (10,), calibration: score = sigmoid(scale · logit + shift).
    """

    hidden: Floats
    hidden_bias: Floats
    output: Floats
    output_bias: Floats
    words: Floats
    direct: Floats
    centres: Floats
    kernel: Floats
    base: Floats
    scale: Floats
    shift: Floats

    def from_vectors(self, vectors: Floats) -> Floats:
        """Return (n, 15) logits of (n, D) unit vectors: the categories, then the five labels."""
        active = np.maximum(vectors @ self.hidden + self.hidden_bias, 0.0)
        logits: Floats = active @ self.output + self.output_bias + vectors @ self.direct
        voted = np.maximum(self.base + kernel(vectors, self.centres) @ self.kernel, 1e-3)
        voted /= voted.sum(axis=1, keepdims=True)
        mixed = NETWORK_SHARE * self.levels(logits) + (1 - NETWORK_SHARE) * voted
        logits[:, len(SCORED) :] = np.log(np.maximum(mixed, 1e-6))
        return logits

    def from_words(self, text: str) -> Floats:
        """Return (15,) logits that the words of a normalised text add; long texts count no more than short ones."""
        buckets, shares = hashed_terms(text)
        logits: Floats = shares @ self.words[buckets]
        logits[len(SCORED) :] = 0  # the five labels go by the vectors alone
        return logits

    def scores(self, logits: Floats) -> Floats:
        """Return (n, 10) calibrated category scores of (n, 15) logits."""
        raw = self.scale * logits[:, : len(SCORED)] + self.shift
        scores: Floats = 1.0 / (1.0 + np.exp(-np.clip(raw, -30.0, 30.0)))
        return scores

    def levels(self, logits: Floats) -> Floats:
        """Return (n, 5) probabilities of the five labels."""
        raw = logits[:, len(SCORED) :]
        weights = np.exp(raw - raw.max(axis=1, keepdims=True))
        levels: Floats = weights / weights.sum(axis=1, keepdims=True)
        return levels


def kernel(vectors: Floats, centres: Floats) -> Floats:
    """Return (n, M): how near each unit vector is to each centre, 1 where they are the same."""
    near: Floats = np.exp(2 * (vectors @ centres.T) - 2)
    return near


def save_network(path: Path, network: Network, described: dict[str, Any]) -> None:
    """Write the weights as float16 and `described` as their metadata, atomically; equal input gives equal bytes."""
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[Any]] = {
        spec.name: np.asarray(getattr(network, spec.name), np.float32 if spec.name in _EXACT else np.float16)
        for spec in fields(Network)
    }
    meta = {
        "format": FORMAT,
        "categories": list(SCORED),
        "labels": list(LABELS),
        "digest": _digest(tensors),
        **described,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(save(tensors, {_KEY: json.dumps(meta, sort_keys=True)}))
    os.replace(beside, path)


def load_network(path: Path) -> tuple[Network, dict[str, Any]]:
    """Return the weights in `path` and their metadata: format, categories, labels, digest, encoder, dim, seed.

    Raises:
        ModelError: the file cannot be read.
        BrokenModel: it is damaged, was edited, or was written for other code.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            meta = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        raise ModelError(f"the moderation weights {str(path)!r} cannot be read: {error}; {RETRAIN}") from error
    except (SafetensorError, ValueError) as error:
        raise BrokenModel(f"the moderation weights {str(path)!r} are damaged: {error}; {RETRAIN}") from error
    if (wrong := _fault(meta, tensors)) is not None:
        raise BrokenModel(f"the moderation weights {str(path)!r} cannot be used: {wrong}; {RETRAIN}")
    return Network(**{name: tensor.astype(np.float32) for name, tensor in tensors.items()}), meta


def _fault(meta: Any, tensors: dict[str, npt.NDArray[Any]]) -> str | None:
    """Return what is wrong with the content of a weights file, None where nothing is."""
    if not isinstance(meta, dict) or not {"format", "digest", "encoder", "dim"} <= meta.keys():
        return "their metadata is missing"
    if meta["format"] != FORMAT:
        return f"their format is {meta['format']!r}, expected {FORMAT}"
    if (meta.get("categories"), meta.get("labels")) != (list(SCORED), list(LABELS)):
        return f"they score {meta.get('categories')!r}, expected {list(SCORED)!r}"
    if tensors.keys() != {spec.name for spec in fields(Network)}:
        return f"they hold {sorted(tensors)!r}, expected {sorted(spec.name for spec in fields(Network))!r}"
    if meta["digest"] != _digest(tensors):
        return "a tensor was changed after they were written"
    units = tensors["hidden_bias"].size
    expected = {
        "hidden": (meta["dim"], units),
        "hidden_bias": (units,),
        "output": (units, OUTPUTS),
        "output_bias": (OUTPUTS,),
        "words": (BUCKETS, OUTPUTS),
        "direct": (meta["dim"], OUTPUTS),
        "centres": (len(tensors["kernel"]), meta["dim"]),
        "kernel": (len(tensors["kernel"]), len(LABELS)),
        "base": (len(LABELS),),
        "scale": (len(SCORED),),
        "shift": (len(SCORED),),
    }
    for name, shape in expected.items():
        if tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
            return f"{name} has shape {tensors[name].shape!r}, expected {shape!r} of finite numbers"
    return None


def _digest(tensors: dict[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
