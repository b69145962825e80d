"""What runs an encoder's forward pass: OpenVINO on the CPU by default, torch as the reference and on GPUs."""

import contextlib
import logging
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import ConfigError, MissingExtra
from chatkit.retrieval.checkpoint import Checkpoint
from chatkit.retrieval.convert import Precision, converted
from chatkit.retrieval.reference import first_line, torch_module
from chatkit.retrieval.tokens import Batch

_log = logging.getLogger(__name__)

# Tokens that a single short text is filled up to: a sentence of 25 and the special ones around it.
_SHORT = 28
# Short texts after which a form of the graph for that length alone pays: a command that asks once does without.
_FEW = 16

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a backend is fed with.

    Attributes:
        slice: texts of one job in a round, before others get theirs.
        tokens: of one forward pass, padding included, past which a larger one is no faster.
        waste: padding that a batch may take on for a longer text to join it, in tokens.
        short: tokens to which a text that is a batch of its own is filled up where it has fewer; 0 for none.
    """

    slice: int
    tokens: int
    waste: int
    short: int = 0


class Backend(Protocol):
    """Runs padded batches; used by one thread at a time."""

    @property
    def sizes(self) -> Sizes:
        """What it is fed with."""
        ...

    def run(self, batches: Sequence[Batch]) -> list[Vectors]:
        """Return (rows, dim) pooled vectors for each batch of (rows, tokens) ids and mask, in order."""
        ...


class OpenVinoBackend:
    """The converted encoder, compiled for this CPU.

    Args:
        threads: of the CPU; 0 takes all cores.
        bulk: run passes side by side, a thread each, instead of one at a time on all threads.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int, precision: Precision, *, bulk: bool = False) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtra("openvino", "local") from error
        # The activations of a pass of 2,048 tokens stay in the caches. Passes side by side wait for one another at the
        # end of a round, so their rounds are long.
        short = 0 if bulk else min(_SHORT, checkpoint.traits.max_tokens)
        self.sizes = Sizes(slice=1024 if bulk else 64, tokens=2048, waste=64, short=short)
        self._tensor = openvino.Tensor
        graph = converted(checkpoint, precision)
        try:
            compiled = _compile(graph, threads, precision, bulk=bulk)
        except RuntimeError as error:
            _log.warning("converted encoder %s cannot be read (%s); converting again", graph, first_line(error))
            compiled = _compile(converted(checkpoint, precision, again=True), threads, precision, bulk=bulk)
        self._narrowed = partial(_narrowed, graph, threads, precision, short)
        self._single: Any = None
        self._weights: Any = None
        self._singles = 0
        streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        # Twice as many as run at a time, so that the next one is there when a thread is free.
        self._requests = [compiled.create_infer_request() for _ in range(2 * streams if bulk else 1)]

    def run(self, batches: Sequence[Batch]) -> list[Vectors]:
        """Return the vectors of each batch."""
        if len(self._requests) > 1:
            return self._side_by_side(batches)
        found = []
        for batch in batches:  # waiting here and not in `wait`: a thread less to wake, which a single text notices
            request = self._request_for(batch)
            self._give(request, batch)
            request.infer()
            found.append(_taken(request))
        return found

    def _request_for(self, batch: Batch) -> Any:
        """Return what runs a batch: single short texts have a form of the graph without dynamic shapes, made late.

        To take a shape other than the last one, and to ask each node for its shape, is a third of a short text's time.
        """
        if batch[0].shape != (1, self.sizes.short):
            return self._requests[0]
        self._singles += 1
        if self._singles == _FEW:
            try:
                self._single, self._weights = self._narrowed()
            except (RuntimeError, OSError) as error:
                _log.warning("no form of the encoder for short texts alone (%s); they take longer", first_line(error))
        return self._single or self._requests[0]

    def _side_by_side(self, batches: Sequence[Batch]) -> list[Vectors]:
        requests = self._requests
        found: list[Vectors] = []
        try:
            for place in range(len(batches) + len(requests)):
                request = requests[place % len(requests)]
                if place >= len(requests) and len(found) < len(batches):
                    request.wait()
                    found.append(_taken(request))
                if place < len(batches):
                    self._give(request, batches[place])
                    request.start_async()
        finally:
            if len(found) < len(batches):  # one failed: the others still read arrays that the caller is about to drop
                for request in requests:
                    with contextlib.suppress(RuntimeError):
                        request.cancel()
                        request.wait()
        return found

    def _give(self, request: Any, batch: Batch) -> None:
        for number, array in enumerate(batch):
            request.set_input_tensor(number, self._tensor(array, shared_memory=True))


def _taken(request: Any) -> Vectors:
    vectors: Vectors = request.get_output_tensor(0).data.copy()
    return vectors


class TorchBackend:
    """The reference: the checkpoint as transformers loads it.

    Args:
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        precision: on a GPU, native is float16.

    Raises:
        ConfigError: the device is not there, or cannot compute in that precision.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int, precision: Precision, device: str = "auto") -> None:
        if precision == "int8":
            raise ConfigError(
                "encoder_precision is 'int8', expected 'native' or 'exact' with the torch backend; "
                "set --encoder-backend openvino"
            )
        self._torch, module = torch_module(checkpoint)
        if threads:
            self._torch.set_num_threads(threads)
        self._device = _device(self._torch, device)
        on_gpu = self._device.type == "cuda"
        # Short passes leave a GPU idle between the starts of its kernels: it gets few and large ones.
        self.sizes = Sizes(slice=2048, tokens=131_072, waste=16_384) if on_gpu else Sizes(64, 2048, 64)
        if on_gpu and precision == "native":
            module.model.half()
        self._module = module.to(self._device)

    def run(self, batches: Sequence[Batch]) -> list[Vectors]:
        """Return the vectors of each batch."""
        torch, found = self._torch, []
        with torch.inference_mode():
            for ids, mask in batches:  # a GPU works on one while the next is sent
                arrays = (torch.from_numpy(array).to(self._device, non_blocking=True) for array in (ids, mask))
                found.append(self._module(*arrays))
            return [vectors.float().cpu().numpy() for vectors in found]


def _device(torch: Any, named: str) -> Any:
    """Return the torch device of that name.

    Raises:
        ConfigError: there is none.
    """
    there = torch.cuda.device_count()
    if named == "auto":
        return torch.device("cuda" if there else "cpu")
    try:
        device = torch.device(named)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= there):
        raise ConfigError(f"encoder_device is {named!r}, expected 'auto', 'cpu' or 'cuda:N', and {there} GPUs are here")
    return device


def _compile(graph: Path, threads: int, precision: Precision, *, bulk: bool) -> Any:
    import openvino

    core = openvino.Core()
    properties = _properties(core, threads, precision)
    if bulk:
        properties |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads or _cores()}
    if os.access(graph.parent, os.W_OK):
        properties["CACHE_DIR"] = str(graph.parent / "compiled")
    return core.compile_model(str(graph), "CPU", properties)


def _narrowed(graph: Path, threads: int, precision: Precision, tokens: int) -> tuple[Any, Any]:
    """Return a request for one text of that many tokens, padding included, and the array that has to outlive it.

    Raises:
        RuntimeError: the graph does not take that shape.
    """
    import openvino

    core = openvino.Core()
    with graph.with_suffix(".bin").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    weights = np.frombuffer(mapped, np.uint8)  # the graph's constants lie in it, and OpenVINO does not hold it
    model = core.read_model(graph.read_text(encoding="utf-8"), openvino.Tensor(weights, shared_memory=True))
    model.reshape({port: [1, tokens] for port in model.inputs})
    request = core.compile_model(model, "CPU", _properties(core, threads, precision)).create_infer_request()
    if hasattr(mmap, "MADV_DONTNEED"):  # the compiled form has copies of all but the rows of the vocabulary
        mapped.madvise(mmap.MADV_DONTNEED)
    return request, weights


def _properties(core: Any, threads: int, precision: Precision) -> dict[str, Any]:
    # Where the CPU multiplies bfloat16 natively a pass takes two fifths of the time; cosines to float32 stay above
    # 0.9999 (tests/retrieval/test_encoder.py holds that), and elsewhere it would only be slower.
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") and precision != "exact"
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if native else "f32",
        # The language model's threads want the same cores; pinned to one, a forward pass waits for it to be free.
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
