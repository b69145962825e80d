"""What runs an encoder's forward pass: OpenVINO on the CPU by default, torch as the reference."""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import MissingExtra, ModelError
from chatkit.retrieval.checkpoint import WEIGHTS, Checkpoint, broken

_log = logging.getLogger(__name__)

# The converted graph must agree with torch this well on a probe, or it is not used. Cosine.
_LEAST_AGREEMENT = 0.9999


class Backend(Protocol):
    """Runs one padded batch; used by one thread at a time."""

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (rows, dim) pooled, L2-normalised vectors for (rows, tokens) ids and mask."""
        ...


class OpenVinoBackend:
    """The converted encoder, compiled for this CPU in float32."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtra("openvino", "local") from error
        self._tensor = openvino.Tensor
        folder = checkpoint.cache / f"{checkpoint.weights_sha256[:16]}-openvino-{openvino.__version__.split('-')[0]}"
        graph = folder / "model.xml"
        if not graph.is_file():
            graph = _convert(checkpoint, folder)
        try:
            compiled = _compile(graph, threads)
        except RuntimeError as error:
            _log.warning("converted encoder %s cannot be read (%s); converting again", graph, _first_line(error))
            shutil.rmtree(folder, ignore_errors=True)
            compiled = _compile(_convert(checkpoint, folder), threads)
        self._request = compiled.create_infer_request()

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of one padded batch."""
        request = self._request
        request.set_input_tensor(0, self._tensor(ids, shared_memory=True))
        request.set_input_tensor(1, self._tensor(mask, shared_memory=True))
        request.infer()
        vectors: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
        return vectors


class TorchBackend:
    """The reference: the checkpoint as transformers loads it."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        torch, self._module = _torch_module(checkpoint)
        if threads:
            torch.set_num_threads(threads)
        self._torch = torch

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of one padded batch."""
        torch = self._torch
        with torch.inference_mode():
            vectors: NDArray[np.float32] = self._module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return vectors


def _compile(graph: Path, threads: int) -> Any:
    import openvino

    core = openvino.Core()
    # Where the CPU multiplies bfloat16 natively a pass takes three fifths of the time; cosines to float32 stay above
    # 0.99995 (tests/retrieval/test_encoder.py holds that), and elsewhere it would only be slower.
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if native else "f32",
        # The language model's threads want the same cores; pinned to one, a forward pass waits for it to be free.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": str(graph.parent / "compiled"),
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    if not os.access(graph.parent, os.W_OK):
        del properties["CACHE_DIR"]
    return core.compile_model(str(graph), "CPU", properties)


def _convert(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write the graph, pooling and normalisation included, into `folder` and return its file.

    Several processes may do this at once: each writes beside and the first rename wins.

    Raises:
        MissingExtra: torch or transformers is not installed.
        ModelError: the cache cannot be written, or the graph does not agree with torch.
    """
    torch, module = _torch_module(checkpoint)
    import openvino

    _log.info("converting the encoder %s once, into %s", checkpoint.folder, folder)
    probe = torch.tensor([[101, 2023, 2003, 1037, 7279, 102], [101, 2023, 102, 0, 0, 0]])
    mask = (probe != 0).long()
    shape = [-1, -1]
    inputs = [("input_ids", shape, openvino.Type.i64), ("attention_mask", shape, openvino.Type.i64)]
    with warnings.catch_warnings(), torch.inference_mode():
        # Tracing warns of its own deprecation and of constants; the probe below checks what it made.
        warnings.simplefilter("ignore")
        example = {"input_ids": probe, "attention_mask": mask}
        graph = _quietly(lambda: openvino.convert_model(module, example_input=example, input=inputs))
        expected = module(probe[:, :4], mask[:, :4]).numpy()
    got = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    agreement = float((got([probe[:, :4].numpy(), mask[:, :4].numpy()])[0] * expected).sum(axis=1).min())
    if not agreement >= _LEAST_AGREEMENT:
        raise ModelError(
            f"the converted encoder {str(checkpoint.folder)!r} agrees with torch to a cosine of {agreement:.6f}, "
            f"expected {_LEAST_AGREEMENT}; run it with --encoder-backend torch"
        )
    return _save(graph, folder)


def _save(graph: Any, folder: Path) -> Path:
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
    return folder / "model.xml"


def _torch_module(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Return torch and a module from (ids, mask) to pooled, normalised vectors."""
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "torch") from error
    _require_readable(checkpoint.folder / WEIGHTS)
    folder = str(checkpoint.folder)
    try:
        model = _quietly(lambda: transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval())
    except (OSError, ValueError, RuntimeError) as error:
        raise broken(checkpoint.folder, f"cannot be loaded ({_first_line(error)})") from error

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)
            return torch.nn.functional.normalize(mean, dim=1)

    return torch, Pooled().eval()


def _quietly(load: Callable[[], Any]) -> Any:
    """Load without transformers' progress bars and notices: this is a step of a start, not a download."""
    from transformers.utils import logging as notices

    bars, level = notices.is_progress_bar_enabled(), notices.get_verbosity()
    notices.disable_progress_bar()
    notices.set_verbosity_error()
    try:
        return load()
    finally:
        notices.set_verbosity(level)
        if bars:
            notices.enable_progress_bar()


def _require_readable(weights: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(weights), framework="numpy") as tensors:
            tensors.keys()
    except SafetensorError as error:
        raise broken(weights, f"is damaged ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
