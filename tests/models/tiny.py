"""Tiny chat models with random weights: real architectures of transformers, made in a second, the same every time."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the quick brown fox jumps over the lazy dog while seven wise owls read old books about rain and snow in spring"
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{{ '<|assistant|>' }}"
)
MARKERS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 384
WINDOW = 512


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE: any text can be read, and a character outside ASCII is several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=MARKERS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([WORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")


def make(folder: Path, kind: str = "gpt_neox", *, seed: int = 0, **config: object) -> Path:
    """Write a model of `kind` into a folder; large random weights, so that its greedy text wanders."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": WINDOW,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **config,
    }
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**({"num_key_value_heads": 2} | shape)))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    with torch.no_grad():
        model.get_output_embeddings().weight[0] = 0  # the end marker is never likely: answers are as long as asked for
    made = tokenizer()
    made.chat_template = TEMPLATE
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
