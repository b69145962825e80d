"""The `local` engine: a GGUF model on OpenVINO GenAI's continuous batching, on any x86 or Arm CPU.

The pipeline lives in a process of its own, `local_worker`; `engine` is this side of it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from chatkit.models.engine import EngineModel, load_tokenizer
from chatkit.models.gguf import ModelFacts, converted
from chatkit.prompt_formats import chosen


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How the engine runs: `threads` 0 takes all cores; 1 GiB of cache holds some 78,000 tokens of SmolLM2-135M."""

    device: str = "CPU"
    threads: int = 0
    kv_cache_gb: int = 1
    max_running: int = 64
    max_queue: int = 256
    prefix_cache: bool = True
    prompt_format: str = "auto"


class LocalModel(EngineModel):
    """A converted GGUF model in an engine process; see EngineModel."""

    def __init__(self, facts: ModelFacts, folder: Path, options: LocalOptions) -> None:
        worker = {"model": str(folder), **{n: getattr(options, n) for n in _WORKER_OPTIONS}}
        form = chosen(
            options.prompt_format,
            name=f"{facts.name} {facts.file}",
            chat_template=facts.chat_template,
            special_tokens=facts.special_tokens,
            bos_token=facts.bos_token,
            eos_token=facts.eos_token,
        )
        super().__init__(
            (sys.executable, "-m", "chatkit.models.local_worker", json.dumps(worker)),
            name=facts.name,
            context_window=facts.context_window,
            eos_ids=facts.eos_ids,
            form=form,
            tokenizer=load_tokenizer(folder),
            most_live=options.max_running + options.max_queue,
        )


_WORKER_OPTIONS = ("device", "threads", "kv_cache_gb", "max_running", "prefix_cache")


def open_local(file: Path, *, cache: Path, options: LocalOptions) -> LocalModel:
    """Return the engine for a GGUF file, not yet started; converts the file on first use.

    Raises:
        BrokenModel: the file cannot be used.
    """
    folder, facts = converted(file, cache=cache)
    return LocalModel(facts, folder, options)
