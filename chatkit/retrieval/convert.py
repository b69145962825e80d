"""Makes the form of an encoder that OpenVINO runs, once, and keeps it beside the weights."""

import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import ModelError
from chatkit.retrieval.checkpoint import TOKENIZER, Checkpoint
from chatkit.retrieval.reference import first_line, quietly, torch_module
from chatkit.retrieval.tokens import Batch, load_tokenizer, pad, pad_id

Precision = Literal["native", "exact", "int8"]

_log = logging.getLogger(__name__)

# The converted graph must agree with torch this well on a probe, or it is not used. Cosine.
_LEAST_AGREEMENT = 0.9999
# The eight-bit form's mean over the texts that its ranges were found with. Cosine.
_LEAST_INT8_AGREEMENT = 0.97
_CALIBRATION_ROWS = 16


def converted(checkpoint: Checkpoint, precision: Precision, *, again: bool = False) -> Path:
    """Return the graph's file, made where it is not there; the eight-bit one is made of the plain one.

    Several processes may do this at once: each writes beside and the first rename wins.

    Args:
        again: what is there cannot be read and is made anew.

    Raises:
        MissingExtra: torch or transformers is not installed, which the first conversion needs.
        ModelError: the cache cannot be written, or the graph does not agree with torch.
    """
    import openvino

    name = f"{checkpoint.fingerprint.rpartition('-')[2][:16]}-openvino-{openvino.__version__.split('-')[0]}"
    plain, rounded = checkpoint.cache / name, checkpoint.cache / f"{name}-int8"
    wanted = rounded if precision == "int8" else plain
    if again:
        shutil.rmtree(wanted, ignore_errors=True)
    if not (plain / "model.xml").is_file():
        _log.info("converting the encoder %s once, into %s", checkpoint.folder, plain)
        _save(_convert(checkpoint), plain)
    if not (wanted / "model.xml").is_file():
        _log.info("rounding the encoder %s to eight bits once, into %s", checkpoint.folder, wanted)
        _save(_rounded(checkpoint, plain / "model.xml"), wanted)
    return wanted / "model.xml"


def _convert(checkpoint: Checkpoint) -> Any:
    """Return the graph, pooling and normalisation included."""
    torch, module = torch_module(checkpoint)
    import openvino

    inputs = [(name, [-1, -1], openvino.Type.i64) for name in ("input_ids", "attention_mask")]
    ids, mask = _probe(checkpoint, rows=2, longest=6)
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns of its own deprecation and of constants; the probe below checks what it made.
        warnings.simplefilter("ignore")
        example = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        try:
            graph = quietly(lambda: openvino.convert_model(module, example_input=example, input=inputs))
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # what tracing meets
            raise ModelError(
                f"the encoder {str(checkpoint.folder)!r} cannot be converted ({first_line(error)}); "
                "run it with --encoder-backend torch"
            ) from error
        # Another shape than the traced one, so that a size which tracing took for a constant shows.
        ids, mask = _probe(checkpoint, rows=3, longest=11)
        expected = module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    agreement = float(cosines(_vectors(graph, ids, mask), expected).min())
    if not agreement >= _LEAST_AGREEMENT:
        raise ModelError(
            f"the converted encoder {str(checkpoint.folder)!r} agrees with torch to a cosine of {agreement:.6f}, "
            f"expected {_LEAST_AGREEMENT}; run it with --encoder-backend torch"
        )
    return graph


def _rounded(checkpoint: Checkpoint, plain: Path) -> Any:
    """Return the eight-bit form of a graph."""
    import openvino

    from chatkit.retrieval.quantise import calibration_texts, quantise

    graph = openvino.Core().read_model(str(plain))
    batches = _calibration(checkpoint, calibration_texts())
    made = quantise(graph, batches)
    agreement = float(np.mean([cosines(_vectors(made, *each), _vectors(graph, *each)).mean() for each in batches[::3]]))
    if not agreement >= _LEAST_INT8_AGREEMENT:
        raise ModelError(
            f"in eight bits the encoder {str(checkpoint.folder)!r} agrees with itself to a mean cosine of "
            f"{agreement:.4f} on this CPU, expected {_LEAST_INT8_AGREEMENT}; run it with --encoder-precision native"
        )
    return made


def _vectors(graph: Any, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    import openvino

    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    vectors: NDArray[np.float32] = compiled([ids, mask])[0]
    return vectors


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each row of one array with the same row of the other."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: NDArray[np.float32] = (left * right).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return found


def _probe(checkpoint: Checkpoint, *, rows: int, longest: int) -> Batch:
    """Return ids of the vocabulary in rows of falling length."""
    traits = checkpoint.traits
    chosen = np.random.default_rng(0)
    padding = pad_id(checkpoint)
    most = max(traits.vocabulary, 8)
    ids = [
        [int(token) for token in chosen.integers(0, most, longest - 3 * row) if token != padding] or [0]
        for row in range(rows)
    ]
    return pad(ids, padding)


def _calibration(checkpoint: Checkpoint, texts: list[str]) -> list[Batch]:
    tokenizer = load_tokenizer(checkpoint.folder / TOKENIZER, cut=checkpoint.traits.max_tokens)
    ids = sorted((row.ids for row in tokenizer.encode_batch_fast(texts)), key=len)
    padding = pad_id(checkpoint)
    return [pad(ids[first : first + _CALIBRATION_ROWS], padding) for first in range(0, len(ids), _CALIBRATION_ROWS)]


def _save(graph: Any, folder: Path) -> None:
    import openvino

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as beside:
            made = Path(beside) / "graph"
            made.mkdir()
            openvino.save_model(graph, made / "model.xml", compress_to_fp16=False)
            if not (folder / "model.xml").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                made.rename(folder)
    except OSError as error:
        if not (folder / "model.xml").is_file():  # otherwise another process was first
            raise ModelError(
                f"the converted encoder cannot be written to {str(folder)!r} ({error.strerror}); make the model cache "
                f"writable for one start, or run with --encoder-backend torch"
            ) from error
