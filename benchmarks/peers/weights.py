"""Make a bfloat16 checkpoint of a GGUF file, with tokenizer and chat template; runs in the peers' environment.

python weights.py GGUF FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(gguf: Path, folder: Path) -> None:
    """Read, dequantise, save."""
    named = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **named)
    # Without `dequantize` the blocks stay as they are, and such a model cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, **named, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
