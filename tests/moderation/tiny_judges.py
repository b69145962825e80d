"""Tiny judging models with random weights: GPT-J, Llama, Qwen3 and Gemma 2, with a tokenizer made here."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTJConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from tests.models import tiny

WINDOW = 512
torch.set_num_threads(1)  # the models are too small for more
SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CONFIGS = {
    "gptj": lambda: GPTJConfig(
        vocab_size=tiny.VOCABULARY, n_positions=WINDOW, n_embd=32, n_layer=2, n_head=4, rotary_dim=8,
        bos_token_id=0, eos_token_id=0,
    ),
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma2": lambda: Gemma2Config(**SIZES, sliding_window=WINDOW, query_pre_attn_scalar=8),
}  # fmt: skip


def make(folder: Path, kind: str, *, template: str = "", window: int = WINDOW) -> Path:
    """Write a model of `kind` with a byte-level tokenizer into a folder."""
    torch.manual_seed(1)
    config = CONFIGS[kind]()
    config.max_position_embeddings = window
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    made: PreTrainedTokenizerFast = tiny.tokenizer()
    if template:
        made.chat_template = template
    made.save_pretrained(folder)
    return folder


def chances(model, prompt: list[int], answer: list[int]) -> float:
    """Return the log-probability of an answer by one plain pass over prompt and answer."""
    ids = [*prompt, *answer]
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(rows[at - 1, ids[at]]) for at in range(len(prompt), len(ids)))
