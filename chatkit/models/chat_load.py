"""Reading a causal model of transformers from a folder: precision, placement, quantisation, shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatkit.errors import ChatkitError, ConfigError, MissingExtra, ModelError


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is read.

    Attributes:
        dtype: `auto` is bfloat16 on a GPU that computes it, float16 on older ones, float32 on a CPU.
        quantize: `none`, `8bit` or `4bit`.
        gpu_memory: GiB by device number; those not named are not used. Empty leaves the choice to accelerate.
        cpu_memory: GiB of the machine's memory; what is over goes to `offload_dir`. 0 sets no limit.
        tensor_parallel: ranks that share the model.
        device: `cpu`, or one GPU as torch names it, for the whole model; `auto` takes the GPUs there are.
    """

    dtype: str = "auto"
    quantize: str = "none"
    gpu_memory: dict[int, float] | None = None
    cpu_memory: float = 0.0
    offload_dir: str = ""
    tensor_parallel: int = 1
    device: str = "auto"


def load_model(folder: Path, options: LoadOptions) -> Any:
    """Return the model in evaluation mode.

    Raises:
        ModelError: the architecture is unknown, needs code of its own, or does not divide over the ranks.
        MissingExtra: accelerate or bitsandbytes is not installed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise _unreadable(folder, error) from error
    known = type(config) in AutoModelForCausalLM._model_mapping
    if not known:
        raise ModelError(
            f"{str(folder)!r} holds a model of type {config.model_type!r}, which transformers has no causal language "
            "model for; name a chat model"
        )
    settings: dict[str, Any] = {"config": config, "use_safetensors": True, "trust_remote_code": False}
    settings["dtype"] = chosen_dtype(options.dtype, options.device)
    if options.tensor_parallel > 1:
        from transformers.distributed import DistributedConfig

        settings["distributed_config"] = DistributedConfig(tp_size=options.tensor_parallel, tp_plan="auto")
    else:
        settings |= placement(options)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    except ImportError as error:
        wanted = "quantize" if options.quantize != "none" else "torch"
        raise MissingExtra(error.name or ("bitsandbytes" if wanted == "quantize" else "accelerate"), wanted) from error
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{str(folder)!r} does not fit this machine's GPUs; set CHATKIT_QUANTIZE, CHATKIT_GPU_MEMORY with "
            "CHATKIT_CPU_MEMORY, or CHATKIT_TENSOR_PARALLEL"
        ) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise _unreadable(folder, error) from error
    _check_whole(folder, report)
    return model.eval()


def _check_whole(folder: Path, report: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers has made up weights, since it found none or ones of another shape."""
    odd = sorted(str(key) for key in report.get("mismatched_keys", ()))
    lost = [*sorted(report.get("missing_keys", ())), *odd, *map(str, report.get("error_msgs", ()))]
    if lost:
        first = lost[0].splitlines()[0][:200]
        raise ModelError(f"{str(folder)!r}: {len(lost)} weights are missing (first: {first}); copy the model again")


def chosen_dtype(name: str, device: str = "auto") -> torch.dtype:
    """Return the dtype that a setting stands for on this machine's GPUs, or its CPU."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device == "cpu" or not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def placement(options: LoadOptions) -> dict[str, Any]:
    """Return where the layers go and how their weights are kept, as `from_pretrained` takes it.

    Raises:
        ConfigError: a device is named that is not there.
    """
    chosen: dict[str, Any] = {}
    gpus = torch.cuda.device_count()
    limits: dict[int | str, int] = {}
    for device, gib in (options.gpu_memory or {}).items():
        if device >= gpus:
            raise ConfigError(f"gpu_memory names GPU {device}, this machine has {gpus}; change CHATKIT_GPU_MEMORY")
        limits[device] = int(gib * 2**30)
    if options.cpu_memory:
        limits["cpu"] = int(options.cpu_memory * 2**30)
    if limits:
        if not options.gpu_memory:
            limits |= {device: torch.cuda.mem_get_info(device)[0] for device in range(gpus)}
        chosen |= {"device_map": "auto", "max_memory": limits, "offload_folder": options.offload_dir or None}
    elif options.device != "auto":
        chosen["device_map"] = {"": _one_device(options.device, gpus)}
    elif gpus:
        chosen["device_map"] = "auto" if gpus > 1 else {"": 0}
    if options.quantize != "none":
        from transformers import BitsAndBytesConfig

        kind: dict[str, dict[str, Any]] = {
            "8bit": {"load_in_8bit": True},
            "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        }
        dtype = chosen_dtype(options.dtype, options.device)
        extra: dict[str, Any] = {"bnb_4bit_compute_dtype": dtype} if options.quantize == "4bit" else {}
        chosen["quantization_config"] = BitsAndBytesConfig(**kind[options.quantize], **extra)
        chosen.setdefault("device_map", {"": "cpu"})
    return chosen


def _one_device(name: str, gpus: int) -> str | int:
    """Return a device as a map takes it.

    Raises:
        ConfigError: it is not there.
    """
    if name == "cpu":
        return name
    number = int(name.partition(":")[2] or 0)
    if number >= gpus:
        raise ConfigError(f"the device is {name!r}, this machine has {gpus} GPUs; change CHATKIT_MODERATION_DEVICE")
    return number


def _unreadable(folder: Path, error: Exception) -> ChatkitError:
    """Return an error in one line for what transformers says in many."""
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return ModelError(
            f"{str(folder)!r} needs code of its own (trust_remote_code), which is never run here; name a model of an "
            "architecture that transformers itself has"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ModelError(f"{str(folder)!r} cannot be loaded: {(lines or [type(error).__name__])[0][:300]}")
