"""What a check with a model of GPT-JT-Moderation's shape costs, against letting it write its answer freely.

    python benchmarks/gpt_jt.py [--tiny]

Weights are random and need no download; they change no time. `--tiny` takes a small shape, on whatever is there.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from chatkit.models.likelihood import Likelihoods

# EleutherAI/gpt-j-6b, config.json.
FULL = {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400, "n_positions": 2048}
TINY = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16, "vocab_size": 512, "n_positions": 2048}
# In tokens of GPT-2's vocabulary: the label list with its examples, a text with the lines around it, the labels.
SHARED, TEXT = 136, 60
LABELS = (1, 2, 2, 3, 3)
# What OpenChatKit lets its moderation model write, and what its labels need.
FREE, SHORT = 512, 4


def build(shape: dict[str, int], device: torch.device) -> Any:
    """Return the model with random weights."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = GPTJForCausalLM(GPTJConfig(**shape))
    torch.set_default_dtype(torch.float32)
    return model.eval()


def milliseconds(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken[1:])


def report(tiny: bool) -> dict[str, Any]:
    """Return the figures."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(TINY if tiny else FULL, device)
    torch.manual_seed(0)
    ids = torch.randint(5, 400, (SHARED + TEXT,)).tolist()
    labels = [torch.randint(5, 400, (length,)).tolist() for length in LABELS]
    plain, kept = Likelihoods(model), Likelihoods(model)
    kept.keep(ids[: SHARED + 1], [*ids[:SHARED], 1, 1])
    repeats = 3 if tiny else 20
    before = kept.forwards

    def written(tokens: int) -> Callable[[], Any]:
        prompt = torch.tensor([ids], device=device)
        options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)

    figures = {
        "check_ms": milliseconds(lambda: kept.score([ids], labels), repeats, device),
        "check_without_prefix_ms": milliseconds(lambda: plain.score([ids], labels), repeats, device),
        "written_4_tokens_ms": milliseconds(written(SHORT), max(2, repeats // 4), device),
        "written_512_tokens_ms": milliseconds(written(32 if tiny else FREE), 2, device),
        "passes_per_check": (kept.forwards - before) / (repeats + 1),
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "tiny": tiny, "figures": figures}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report("--tiny" in sys.argv[1:]), indent=1) + "\n")
