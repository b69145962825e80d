"""Eight-bit arithmetic for a converted encoder: its linear layers' weights and what goes into them, by fixed scales.

Weights get one scale for each output channel, symmetric; inputs one range for the whole tensor, found by running
neutral texts. Attention, normalisation and pooling stay as they are. OpenVINO lowers the annotated layers to its int8
kernels when the graph is compiled.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]

# Weights use -127…127, so that the range is symmetric; inputs all of 0…255.
_WEIGHT_LEVELS = 255
_INPUT_LEVELS = 256
# A range is never narrower than this, where calibration saw nothing but zeros.
_NARROWEST = 1e-6


@dataclass(frozen=True, slots=True)
class Range:
    """The least and greatest value that calibration saw in one tensor; zero lies between them."""

    low: float
    high: float

    def aligned(self) -> tuple[float, float]:
        """Return it widened so that zero is one of the 256 steps: padding and ReLU zeros stay zero."""
        step = max(self.high - self.low, _NARROWEST) / (_INPUT_LEVELS - 1)
        zero = round(-self.low / step)
        return -zero * step, (_INPUT_LEVELS - 1 - zero) * step


def calibration_texts() -> list[str]:
    """Return the texts that ranges are found with, from a few words to longer than most encoders read."""
    content = Path(__file__).with_name("calibration.txt").read_text(encoding="utf-8")
    paragraphs = [" ".join(part.split()) for part in content.split("\n\n") if part.strip()]
    long = [" ".join(paragraphs[first : first + 8]) for first in range(0, len(paragraphs), 8)]
    return [*(text.partition(". ")[0] for text in paragraphs), *paragraphs, *long]


def quantise(graph: Any, batches: Iterable[Batch]) -> Any:
    """Return a copy of `graph`, an OpenVINO model of ids and mask, with its linear layers in eight bits."""
    from openvino import opset13 as ops

    ranges = _input_ranges(graph, batches)
    made = graph.clone()
    inputs: dict[tuple[str, int], Any] = {}
    for layer in _linear_layers(made):
        source = _source(layer)
        if source not in inputs:  # query, key and value layers read one tensor: it is rounded once
            low, high = ranges[source].aligned()
            inputs[source] = ops.fake_quantize(layer.input_value(0), *_bounds(low, high), _INPUT_LEVELS)
        weights = layer.input_value(1).get_node().get_data().astype(np.float32)
        across = 1 if layer.get_attributes()["transpose_b"] else 0
        limit = np.maximum(np.abs(weights).max(axis=across, keepdims=True), _NARROWEST)
        rounded = ops.fake_quantize(ops.constant(weights), *_bounds(-limit, limit), _WEIGHT_LEVELS)
        attributes = layer.get_attributes()
        fresh = ops.matmul(inputs[source], rounded, attributes["transpose_a"], attributes["transpose_b"])
        fresh.set_friendly_name(layer.get_friendly_name())
        layer.output(0).replace(fresh.output(0))
    made.validate_nodes_and_infer_types()
    return made


def _bounds(low: Any, high: Any) -> list[Any]:
    """Return input and output bounds of one rounding: values keep their scale."""
    from openvino import opset13 as ops

    return [ops.constant(np.asarray(bound, np.float32)) for bound in (low, high, low, high)]


def _linear_layers(graph: Any) -> list[Any]:
    """Return the products with constant matrices, in order."""
    products = [node for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [
        node
        for node in products
        if node.input_value(1).get_node().get_type_name() == "Constant" and len(node.input_value(1).get_shape()) == 2
    ]


def _source(layer: Any) -> tuple[str, int]:
    """Name the tensor that goes into a layer."""
    value = layer.input_value(0)
    return value.get_node().get_friendly_name(), value.get_index()


def _input_ranges(graph: Any, batches: Iterable[Batch]) -> Mapping[tuple[str, int], Range]:
    """Run the batches in float32 and return what range each layer's input had, padding left out."""
    import openvino

    sources = list(dict.fromkeys(_source(layer) for layer in _linear_layers(graph)))
    watched = graph.clone()
    nodes = {node.get_friendly_name(): node for node in watched.get_ops()}
    watched.add_outputs([nodes[name].output(index) for name, index in sources])
    compiled = openvino.Core().compile_model(watched, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    low, high = np.zeros(len(sources)), np.zeros(len(sources))
    for ids, mask in batches:
        results = compiled([ids, mask])
        for place in range(len(sources)):
            values = results[place + 1]
            if values.shape[:2] == mask.shape:
                values = values[mask > 0]
            low[place] = min(low[place], values.min())
            high[place] = max(high[place], values.max())
    return {source: Range(float(low[place]), float(high[place])) for place, source in enumerate(sources)}
