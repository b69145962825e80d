"""Speed of the `transformers` engine on a GPU, as fractions of what the card can do, beside plain `generate`.

    python benchmarks/gpu.py            GPT-NeoX-20B's shape with random bfloat16 weights: about 41 GB of GPU memory
    python benchmarks/gpu.py --tiny     a tiny shape, on whatever is there: checks the script, its figures mean nothing

A step reads every weight once and the cache of every row, so tokens a second are bounded by rows x bandwidth / bytes
read. A prompt costs 2 operations a weight and token, so its speed is bounded by operations a second / (2 x weights).
Bandwidth and operations are measured on the card first: a copy of 2 GiB, and a product of large square matrices.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import chatkit
from chatkit.models.chat_graphs import Graphs
from chatkit.models.chat_runner import Runner

# EleutherAI/gpt-neox-20b, config.json.
NEOX_20B = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def build(shape: dict[str, Any], device: torch.device) -> Any:
    """Return the model with random weights, made where they are used."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, tie_word_embeddings=False))
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def seconds(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the median time of one call, after one that does not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    taken = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def card_limits(device: torch.device, tiny: bool) -> tuple[float, float]:
    """Return (bytes a second, bfloat16 operations a second) that the card itself reaches."""
    size = 1 << (20 if tiny else 31)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * size / seconds(lambda: target.copy_(source), 10, device)
    side = 256 if tiny else 8192
    left = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    operations = 2 * side**3 / seconds(lambda: left @ left, 10, device)
    return bandwidth, operations


def measure(model: Any, *, rows: int, prompt: int, new: int, graphs: bool) -> dict[str, float]:
    """Return seconds of one prompt's prefill and of one step of `rows` rows, by the engine's own passes."""
    runner = Runner(model)
    runner.check()
    runner.resize(rows, -(-(prompt + new + 1) // 64) * 64)
    if graphs:
        runner.replay = Graphs(runner.decode, runner.cache).step
    ids = torch.randint(3, model.config.vocab_size, (prompt,)).tolist()

    def fill() -> None:
        runner.begin(None, 0)
        runner.fill(ids)
        runner.end(len(runner.lengths) - 1, 0, None, False)

    figures = {"prefill_s": seconds(fill, 3, runner.device)}
    for _ in range(rows):
        runner.begin(None, 0)
        runner.fill(ids)
    figures["step_s"] = seconds(lambda: runner.step([5] * rows).argmax(-1).tolist(), new - 1, runner.device)
    return figures | {"cache_bytes": float(runner.cache.bytes_per_token * rows * (prompt + new // 2))}


def plain(model: Any, *, rows: int, prompt: int, new: int, device: torch.device) -> float:
    """Return the seconds of one step of `generate`, prefill taken off."""
    ids = torch.randint(3, model.config.vocab_size, (rows, prompt), device=device)
    mask = torch.ones_like(ids)
    settings = {"attention_mask": mask, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run(tokens: int) -> Callable[[], Any]:
        return lambda: model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **settings)

    whole, first = seconds(run(new), 2, device), seconds(run(1), 2, device)
    return max(whole - first, 1e-9) / (new - 1)


def report(tiny: bool) -> dict[str, Any]:
    """Measure and return the object that is printed."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = build(TINY if tiny else NEOX_20B, device)
    weights = sum(parameter.numel() for parameter in model.parameters())
    bandwidth, operations = card_limits(device, tiny)
    prompt, new = (32, 8) if tiny else (1024, 64)
    figures: dict[str, float] = {"bandwidth_gb_s": bandwidth / 1e9, "bf16_tflop_s": operations / 1e12}
    for rows in (1, 16):
        for graphs in [False, True] if device.type == "cuda" else [False]:
            made = measure(model, rows=rows, prompt=prompt, new=new, graphs=graphs)
            name = f"{'graphs.' if graphs else ''}decode_tokens_per_s@{rows}"
            figures[name] = rows / made["step_s"]
            bound = bandwidth / (2 * weights + made["cache_bytes"])
            figures[f"{name}.of_bandwidth"] = (1 / made["step_s"]) / bound
        figures[f"generate_tokens_per_s@{rows}"] = rows / plain(model, rows=rows, prompt=prompt, new=new, device=device)
    figures["prefill_tokens_per_s"] = prompt / made["prefill_s"]
    figures["prefill.of_flops"] = figures["prefill_tokens_per_s"] * 2 * weights / operations
    machine = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    settings = {"shape": "tiny" if tiny else "gpt-neox-20b", "prompt_tokens": prompt, "new_tokens": new}
    return {
        "command": "benchmarks/gpu.py",
        "version": chatkit.__version__,
        "machine": machine,
        "settings": settings,
        "figures": figures,
        "rows": [],
    }


def main() -> int:
    """Print one object; 1 where the real shape has no GPU to run on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, on a GPU or a CPU")
    tiny = parser.parse_args().tiny
    if not tiny and not torch.cuda.is_available():
        print("error: there is no NVIDIA GPU here; --tiny runs anywhere", file=sys.stderr)
        return 1
    print(json.dumps(report(tiny), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
