"""The `local` engine: a GGUF model on OpenVINO GenAI's continuous batching, on any x86 or Arm CPU.

The pipeline lives in a process of its own, `local_worker`; `engine` is this side of it.
"""

import json
import logging
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from chatkit import child_python
from chatkit.models import kv_cache
from chatkit.models.admission import Admission
from chatkit.models.decoding import load_tokenizer
from chatkit.models.engine import EngineModel
from chatkit.models.gguf import ModelFacts, converted
from chatkit.models.kv_cache import Precision
from chatkit.prompt_formats import chosen

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How the engine runs: `threads` 0 takes all cores; 1 GiB of cache holds some 78,000 tokens of SmolLM2-135M.

    Attributes:
        device: as OpenVINO names it; the worker refuses one that is not there.
        precision: `fast` or `exact`, see docs/engines.md.
    """

    device: str = "CPU"
    precision: Precision = "fast"
    threads: int = 0
    kv_cache_gb: float = 1
    max_running: int = 64
    max_queue: int = 256
    prefix_cache: bool = True
    prompt_format: str = "auto"


class LocalModel(EngineModel):
    """A converted GGUF model in an engine process; see EngineModel.

    Args:
        name: what callers call it; the file's own name for it unless told.

    Attributes:
        cache_tokens: what the key-value cache holds; the context window is no longer than that.
    """

    def __init__(self, facts: ModelFacts, folder: Path, options: LocalOptions, *, name: str = "") -> None:
        blocks, self.cache_tokens = _cache(facts, options)
        if self.cache_tokens < facts.context_window:
            log.warning(
                "the key-value cache holds %d tokens, fewer than the %d of the model; raise CHATKIT_KV_CACHE_GB",
                self.cache_tokens,
                facts.context_window,
            )
        worker = {"model": str(folder), "kv_blocks": blocks, **{n: getattr(options, n) for n in _WORKER_OPTIONS}}
        form = chosen(
            options.prompt_format,
            name=f"{name} {facts.name} {facts.file}".strip(),
            chat_template=facts.chat_template,
            special_tokens=facts.special_tokens,
            bos_token=facts.bos_token,
            eos_token=facts.eos_token,
        )
        super().__init__(
            (sys.executable, *child_python.run_module("chatkit.models.local_worker"), json.dumps(worker)),
            name=name or facts.name,
            context_window=min(facts.context_window, self.cache_tokens),
            eos_ids=facts.eos_ids,
            form=form,
            tokenizer=load_tokenizer(folder, derived=True),
            admission=Admission(options.max_running, options.max_queue, self.cache_tokens, kv_cache.BLOCK),
        )


_WORKER_OPTIONS = ("device", "precision", "threads", "kv_cache_gb", "max_running", "prefix_cache")


def _cache(facts: ModelFacts, options: LocalOptions) -> tuple[int, int]:
    """Return the blocks and the tokens of the key-value cache; no blocks where OpenVINO is to reckon them itself.

    How a block looks is known of the CPU plugin on x86. Elsewhere it is told the size in GiB, and the tokens are those
    that would fit if each value took two bytes (`fast`) or four, the most it may take.
    """
    size = {"layers": facts.layers, "kv_heads": facts.kv_heads, "head_size": facts.head_size}
    room = int(options.kv_cache_gb * 2**30)
    if options.device == "CPU" and platform.machine() in ("x86_64", "AMD64"):
        blocks = room // kv_cache.block_bytes(**size, precision=options.precision)
        return blocks, blocks * kv_cache.BLOCK
    widest = kv_cache.block_bytes(**size, precision="exact") // (1 if options.precision == "exact" else 2)
    return 0, room // widest * kv_cache.BLOCK


def open_local(file: Path, *, cache: Path, options: LocalOptions, name: str = "") -> LocalModel:
    """Return the engine for a GGUF file, not yet started; converts the file on first use.

    Raises:
        BrokenModel: the file cannot be used.
    """
    folder, facts = converted(file, cache=cache)
    return LocalModel(facts, folder, options, name=name)
