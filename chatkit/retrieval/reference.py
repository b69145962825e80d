"""The encoder as torch runs it: the checkpoint as transformers loads it, its pooling and what follows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatkit.errors import MissingExtra, ModelError
from chatkit.retrieval.checkpoint import WEIGHTS, Checkpoint
from chatkit.retrieval.traits import Dense, broken, own_code, read_json


def torch_module(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Return torch and a module from (ids, mask), both (rows, tokens) int64, to (rows, dim) vectors.

    Rows are padded on the right. No model here needs token types: where there are two, a single text has the first.

    Raises:
        BrokenModel: the weights are damaged or do not fit the configuration.
        MissingExtra: torch or transformers is not installed.
    """
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "torch") from error
    _require_readable(checkpoint.folder / WEIGHTS)
    _require_known(transformers, checkpoint.folder)
    folder = str(checkpoint.folder)
    # Half-precision weights are computed in float32 too: the reference is exact, and CPUs are slower in float16.
    # Code that lies beside weights is never run, nor is anybody asked whether it may be.
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "dtype": torch.float32}
    if checkpoint.traits.windowed:
        # Padding far from any text sees nothing in its window, which the fused attention makes NaN of.
        how["attn_implementation"] = "eager"
    try:
        model = quietly(lambda: transformers.AutoModel.from_pretrained(folder, **how).eval())
    except (OSError, ValueError, RuntimeError) as error:
        raise broken(checkpoint.folder, f"cannot be loaded ({first_line(error)})") from error
    if not hasattr(model, "get_input_embeddings"):
        raise ModelError(f"{folder!r} holds no text model; choose another one with --encoder")
    model.config.use_cache = False  # of decoders, which would return it
    traits = checkpoint.traits
    pool = _POOLINGS[traits.pooling]
    layers = [_dense(torch, layer) for layer in traits.dense]

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.layers = torch.nn.Sequential(*layers)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
            vectors = self.layers(pool(torch, hidden, attention_mask))
            return torch.nn.functional.normalize(vectors, dim=1) if traits.normalised else vectors

    return torch, Encoder().eval()


def _mean(torch: Any, hidden: Any, mask: Any) -> Any:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _cls(torch: Any, hidden: Any, mask: Any) -> Any:
    return hidden[:, 0]


def _max(torch: Any, hidden: Any, mask: Any) -> Any:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(hidden.dtype).min).amax(1)


def _lasttoken(torch: Any, hidden: Any, mask: Any) -> Any:
    last = (mask.sum(1) - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, last).squeeze(1)


_POOLINGS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "mean": _mean,
    "cls": _cls,
    "max": _max,
    "lasttoken": _lasttoken,
}


def _dense(torch: Any, layer: Dense) -> Any:
    """Return the linear layer and its activation."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = layer.folder / WEIGHTS
    try:
        tensors = load_file(str(file))
        weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise broken(file, f"does not hold a linear layer ({first_line(error)})") from error
    if weight.shape[0] != layer.dim:
        raise broken(file, f"gives {weight.shape[0]} values, expected out_features {layer.dim}")
    return torch.nn.Sequential(linear, getattr(torch.nn, layer.activation)())


def quietly(load: Callable[[], Any]) -> Any:
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


def _require_known(transformers: Any, folder: Path) -> None:
    """Refuse a model that brings Python code in the place of an architecture that transformers has."""
    config = read_json(folder / "config.json")
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise own_code(folder)


def _require_readable(weights: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(weights), framework="numpy") as tensors:
            tensors.keys()
    except SafetensorError as error:
        raise broken(weights, f"is damaged ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, its kind where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
