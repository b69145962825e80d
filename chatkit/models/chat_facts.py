"""What the service's side needs to know of a model folder, read and checked without torch and without its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenModel, ModelError

# What a configuration calls the tokens that a model holds.
_WINDOWS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "seq_length")
_DEFAULT_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """Facts of a causal model's folder.

    Attributes:
        context_window: tokens of prompt and answer together.
        eos_ids: ids that end a reply.
        special_tokens: strings the tokenizer reads as control tokens.
        hidden_size: length of a hidden state.
        heads, key_value_heads: what tensor parallelism divides.
        needs_code: the configuration names Python files of the folder.
        weights: names and bytes of the weight files, and when they were written.
    """

    kind: str
    context_window: int
    eos_ids: tuple[int, ...]
    chat_template: str
    bos_token: str
    eos_token: str
    special_tokens: tuple[str, ...]
    vocabulary: int
    hidden_size: int
    heads: int
    key_value_heads: int
    needs_code: bool
    weights: tuple[tuple[str, int, int], ...]


def read_facts(folder: Path) -> ChatFacts:
    """Read the facts and check that the folder is whole.

    Raises:
        BrokenModel: a file is missing, cut short or damaged.
        ModelError: the weights are in a format that can run code.
    """
    config = _json(folder / "config.json")
    text = config.get("text_config", config)
    tokens = _json(folder / "tokenizer_config.json", needed=False)
    tokenizer = _json(folder / "tokenizer.json", needed=False)
    generation = _json(folder / "generation_config.json", needed=False)
    added = tokenizer.get("added_tokens", [])
    special = tuple(sorted(token["content"] for token in added if token.get("special")))
    bos, eos = (_token(tokens.get(name)) for name in ("bos_token", "eos_token"))
    ids = {token["content"]: token["id"] for token in added}
    named = [generation.get("eos_token_id"), text.get("eos_token_id"), ids.get(eos)]
    heads = _number(text, "num_attention_heads", "n_head", default=1)
    return ChatFacts(
        kind=str(config.get("model_type", "")),
        context_window=_number(text, *_WINDOWS, default=_DEFAULT_WINDOW),
        eos_ids=tuple(
            sorted({i for entry in named for i in (entry if isinstance(entry, list) else [entry]) if i is not None})
        ),
        chat_template=_template(folder, tokens),
        bos_token=bos,
        eos_token=eos,
        special_tokens=special,
        vocabulary=_number(text, "vocab_size", default=0),
        hidden_size=_number(text, "hidden_size", "n_embd", "d_model", default=0),
        heads=heads,
        key_value_heads=_number(text, "num_key_value_heads", default=heads),
        needs_code="auto_map" in config,
        weights=_weights(folder),
    )


def _json(file: Path, *, needed: bool = True) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not needed:
            return {}
        raise BrokenModel(
            f"{str(file.parent)!r} has no {file.name}; name a folder with a model in transformers' layout, or copy the "
            "whole of it"
        ) from None
    except OSError as error:
        raise BrokenModel(f"{str(file)!r} cannot be read ({error.strerror}); copy the model again") from error
    except ValueError as error:
        raise BrokenModel(f"{str(file)!r} is no JSON ({error}); it may be cut short: copy the model again") from error
    if not isinstance(table, dict):
        raise BrokenModel(f"{str(file)!r} holds no JSON object; copy the model again")
    return table


def _number(table: dict[str, Any], *names: str, default: int) -> int:
    return next((int(table[name]) for name in names if table.get(name)), default)


def _token(entry: Any) -> str:
    """Return a token as text; older folders write it as an object."""
    return str(entry.get("content", "")) if isinstance(entry, dict) else str(entry or "")


def _template(folder: Path, tokens: dict[str, Any]) -> str:
    """Return the chat template: its own file goes before the tokenizer's settings, which may hold several."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = tokens.get("chat_template") or ""
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template", "") for entry in found}
        found = named.get("default", "")
    return str(found)


def _weights(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Check that every weight file is there and as long as its own header says."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        if others:
            raise ModelError(
                f"{str(folder)!r} has its weights in {others[0]!r}, a pickle, which can run code and is not read; "
                "convert them to safetensors, or name a revision that has them"
            )
        raise BrokenModel(f"{str(folder)!r} holds no .safetensors file; copy the model again")
    return tuple(_checked(folder / name) for name in names)


def _checked(file: Path) -> tuple[str, int, int]:
    """Compare a file's size with its header: 8 bytes of length, JSON, then the tensors (the format's own README)."""
    try:
        stat = file.stat()
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < stat.st_size else None
    except FileNotFoundError:
        raise BrokenModel(f"{str(file)!r} is missing; the model was copied in part: copy it again") from None
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{str(file)!r} cannot be read ({error}); copy the model again") from error
    ends = [entry["data_offsets"][1] for name, entry in (header or {}).items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if header is None or stat.st_size != expected:
        raise BrokenModel(
            f"{str(file)!r} has {stat.st_size} bytes, expected {expected}: it was copied in part; copy it again"
        )
    return file.name, stat.st_size, stat.st_mtime_ns
