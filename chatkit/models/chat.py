"""The `transformers` engine: GPT-NeoXT-Chat-Base-20B or any causal model, on GPUs or CPUs, sharded where it must be.

The model lives in a process of its own, `chat_worker`, or in one a rank; `engine` is this side of it.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatkit import child_python
from chatkit.errors import BrokenModel, ConfigError
from chatkit.models import parallel
from chatkit.models.admission import ROW_BLOCK, Admission
from chatkit.models.chat_convert import dequantized
from chatkit.models.chat_embedder import ChatEmbedder
from chatkit.models.chat_facts import ChatFacts, read_facts
from chatkit.models.decoding import load_tokenizer
from chatkit.models.engine import EngineModel
from chatkit.prompt_formats import chosen

if TYPE_CHECKING:
    from chatkit.models.chat_stopping import StopWordsCriteria

log = logging.getLogger(__name__)

__all__ = ["ChatModel", "ChatOptions", "StopWordsCriteria", "open_chat"]


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How the engine runs.

    Attributes:
        dtype: auto, float32, bfloat16 or float16.
        quantize: none, 8bit or 4bit.
        gpu_memory: GiB by GPU number, as in "0:20,1:30"; empty takes what is free.
        cpu_memory: GiB of the machine's memory for weights; the rest goes to `offload_dir`. 0 sets no limit.
        tensor_parallel: ranks that share every layer; the key-value cache is of that size on each.
        threads: CPU threads of one rank; 0 takes all cores, shared by the ranks.
        piece: tokens of a prompt read between two steps; 0 is 2048 on a GPU and 256 on a CPU.
        cuda_graphs: record the steps of many rows, on one GPU.
    """

    dtype: str = "auto"
    quantize: str = "none"
    gpu_memory: Mapping[int, float] = field(default_factory=dict)
    cpu_memory: float = 0.0
    offload_dir: str = ""
    tensor_parallel: int = 1
    threads: int = 0
    kv_cache_gb: int = 1
    max_running: int = 64
    max_queue: int = 256
    prefix_cache: bool = True
    piece: int = 0
    cuda_graphs: bool = False
    prompt_format: str = "auto"


class ChatModel(EngineModel):
    """A causal model of transformers in an engine process; see EngineModel.

    Args:
        gguf: name of the GGUF file that the folder was written out from; empty where it was not.

    Attributes:
        embedder: makes vectors of texts with the same weights; implements `protocols.Embedder`.

    Raises:
        BrokenModel: the folder is not whole, or its tokenizer has more tokens than the model.
        ConfigError: the ranks do not divide the heads, or two options exclude each other.
    """

    ends_service = True
    longest_silence = 6.0  # torch lets go of the interpreter's lock while it computes

    def __init__(self, folder: Path, facts: ChatFacts, options: ChatOptions, *, name: str, gguf: str = "") -> None:
        ranks = _ranks(facts, options)
        tokenizer = load_tokenizer(folder, derived=bool(gguf))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if facts.vocabulary and size > facts.vocabulary:
            raise BrokenModel(
                f"the tokenizer of {str(folder)!r} has ids up to {size - 1}, the model {facts.vocabulary} tokens: "
                "it belongs to another model; copy the right tokenizer.json"
            )
        worker = {**asdict(options), "model": str(folder), "tokenizer": str(folder), "window": facts.context_window}
        super().__init__(
            (
                *(sys.executable, *child_python.run_module("chatkit.models.chat_worker")),
                json.dumps(worker | {"tensor_parallel": ranks}),
            ),
            name=name,
            context_window=facts.context_window,
            eos_ids=facts.eos_ids,
            form=chosen(
                options.prompt_format,
                name=f"{name} {gguf or folder.name}",
                chat_template=facts.chat_template,
                special_tokens=facts.special_tokens,
                bos_token=facts.bos_token,
                eos_token=facts.eos_token,
            ),
            tokenizer=tokenizer,
            admission=Admission(options.max_running, options.max_queue, block=ROW_BLOCK, alike=True),
        )
        self.facts = facts
        self.embedder = ChatEmbedder(self)

    def _opened(self, reported: dict[str, Any]) -> None:
        """Hold no more than the worker's cache does."""
        fits = reported["cache_tokens"]
        if fits < self.context_window:
            log.warning(
                "the key-value cache holds %d tokens, fewer than the %d of the model; raise CHATKIT_KV_CACHE_GB",
                fits,
                self.context_window,
            )
            self.context_window = fits
        self._admission.tokens = fits

    async def start(self) -> None:
        """Start the engine's processes and wait until they have loaded; see EngineModel."""
        await super().start()
        log.info("parameter bytes by rank: %s", self.reported["parameter_bytes"])


def open_chat(path: Path, *, cache: Path, options: ChatOptions, name: str) -> ChatModel:
    """Return the engine for a model folder or a GGUF file, not yet started; writes a GGUF file out on first use.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: the options do not fit it.
    """
    gguf = path.name if path.is_file() else ""
    folder = dequantized(path, cache=cache) if gguf else path
    return ChatModel(folder, read_facts(folder), options, name=name, gguf=gguf)


def parse_memory(text: str) -> dict[int, float]:
    """Read "0:20,1:30", GiB by GPU number, as the ancestor's `-g` had it.

    Raises:
        ConfigError: it has another form.
    """
    try:
        pairs = [part.split(":") for part in text.replace(",", " ").split()]
        limits = {int(device): float(gib) for device, gib in pairs}
    except ValueError:
        limits = {-1: 0.0}
    if any(device < 0 or not 0 < gib < 1e6 for device, gib in limits.items()):
        raise ConfigError(
            f"gpu_memory is {text!r}, expected GiB by GPU number such as '0:20,1:30'; set CHATKIT_GPU_MEMORY"
        )
    return limits


def _ranks(facts: ChatFacts, options: ChatOptions) -> int:
    """Return how many ranks share the model: the option, or what a launcher has started."""
    place = parallel.place_of(os.environ)
    ranks = place.ranks if place else options.tensor_parallel
    if place and options.tensor_parallel not in (1, ranks):
        raise ConfigError(
            f"tensor_parallel is {options.tensor_parallel}, but {ranks} ranks were launched; leave it out"
        )
    if ranks > 1:
        parallel.check_ranks(ranks, facts.heads, facts.key_value_heads)
        if options.gpu_memory or options.cpu_memory or options.quantize != "none":
            raise ConfigError(
                "tensor_parallel shares out the layers itself; it does not go with gpu_memory, cpu_memory or quantize: "
                "leave these out"
            )
    return ranks


def __getattr__(name: str) -> Any:
    """Import StopWordsCriteria, which needs transformers, when it is asked for."""
    if name == "StopWordsCriteria":
        from chatkit.models.chat_stopping import StopWordsCriteria

        return StopWordsCriteria
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
