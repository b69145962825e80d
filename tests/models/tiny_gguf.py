"""Tiny GGUF files with random weights, in the tensor layouts of the architectures that OpenVINO reads."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, WINDOW = 128, 2, 4, 2, 256, 512
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Words for which there is a token, so that the merges are not empty.
MERGES = ("h e", "l l", "he ll", "hell o", "t h", "th e")


def write(
    file: Path,
    architecture: str,
    *,
    head_size: int = HIDDEN // HEADS,
    layers: int = LAYERS,
    kv_heads: int = KV_HEADS,
    window: int = WINDOW,
    template: str = TEMPLATE,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    ends: dict[str, str] | None = None,
) -> Path:
    """Write a model of `architecture` that says nothing sensible, the same at every call.

    Args:
        ends: the tokens that end a text, a turn and a message to a tool, under `eos`, `eot` and `eom`.
    """
    writer = GGUFWriter(str(file), architecture)
    file_types = {
        GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
        GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
        GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    }
    tokens = [*_bytes(), *(merge.replace(" ", "") for merge in MERGES), *SPECIAL]
    writer.add_name(f"Tiny {architecture}")
    writer.add_file_type(file_types[kind])
    writer.add_context_length(window)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    _write_tokenizer(writer, tokens, template, {"eos": "<|im_end|>"} if ends is None else ends)
    for name, shape in _tensors(architecture, head_size, layers, kv_heads, len(tokens)):
        _write_tensor(writer, name, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: GGUFWriter, tokens: list[str], template: str, ends: dict[str, str]) -> None:
    special = {token: len(tokens) - len(SPECIAL) + at for at, token in enumerate(SPECIAL)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(special["<|im_start|>"])
    for end, token in ends.items():
        getattr(writer, f"add_{end}_token_id")(special[token])
    writer.add_pad_token_id(special["<|endoftext|>"])
    if template:
        writer.add_chat_template(template)


def _tensors(
    architecture: str, head_size: int, layers: int, kv_heads: int, vocabulary: int
) -> list[tuple[str, tuple[int, ...]]]:
    query, kv = HEADS * head_size, kv_heads * head_size
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (vocabulary, HIDDEN)),
        ("output_norm.weight", (HIDDEN,)),
    ]
    for layer in range(layers):
        block = [
            ("attn_norm.weight", (HIDDEN,)),
            ("attn_q.weight", (query, HIDDEN)),
            ("attn_k.weight", (kv, HIDDEN)),
            ("attn_v.weight", (kv, HIDDEN)),
            ("attn_output.weight", (HIDDEN, query)),
            ("ffn_norm.weight", (HIDDEN,)),
            ("ffn_gate.weight", (FEED_FORWARD, HIDDEN)),
            ("ffn_up.weight", (FEED_FORWARD, HIDDEN)),
            ("ffn_down.weight", (HIDDEN, FEED_FORWARD)),
        ]
        if architecture == "qwen2":
            block += [("attn_q.bias", (query,)), ("attn_k.bias", (kv,)), ("attn_v.bias", (kv,))]
        if architecture == "qwen3":
            block += [("attn_q_norm.weight", (head_size,)), ("attn_k_norm.weight", (head_size,))]
        tensors += [(f"blk.{layer}.{name}", shape) for name, shape in block]
    return tensors


def _write_tensor(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
    random = np.random.default_rng(len(name) + sum(map(ord, name)))
    if len(shape) == 1:
        norm = name.endswith("norm.weight")
        writer.add_tensor(name, (np.ones(shape) if norm else random.normal(0, 0.1, shape)).astype(np.float32))
        return
    values = random.normal(0, 0.4, shape).astype(np.float32)
    if kind == GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def _bytes() -> list[str]:
    """Return the 256 byte characters of GPT-2's vocabulary, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
