"""What the service's side needs to know of a model folder, read and checked without torch and without its weights."""

import functools
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenModel, ModelError

# What a configuration calls the tokens that a model holds.
_WINDOWS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "seq_length")
_DEFAULT_WINDOW = 2048
# Rope types, beside the dynamic ones, that transformers chooses the frequencies of by the batch's largest position.
_BY_LENGTH = ("longrope",)
# A part of weights that are in several files.
_PART = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """Facts of a causal model's folder.

    Attributes:
        context_window: tokens of prompt and answer together.
        eos_ids: ids that end a reply.
        special_tokens: strings the tokenizer reads as control tokens.
        hidden_size: length of a hidden state.
        heads, key_value_heads: what tensor parallelism divides.
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
    weights: tuple[tuple[str, int, int], ...]


def read_facts(folder: Path) -> ChatFacts:
    """Read the facts and check that the folder is whole.

    Raises:
        BrokenModel: a file is missing, cut short or damaged.
        ModelError: the weights are in a format that can run code.
    """
    config = _json(folder / "config.json")
    text = _table(config.get("text_config", config), folder / "config.json", "text_config")
    tokens = _json(folder / "tokenizer_config.json", needed=False)
    tokenizer = _json(folder / "tokenizer.json", needed=False)
    generation = _json(folder / "generation_config.json", needed=False)
    try:
        added = tokenizer.get("added_tokens") or []
        special = tuple(sorted(token["content"] for token in added if token.get("special")))
        ids = {token["content"]: token["id"] for token in added}
    except (AttributeError, KeyError, TypeError):
        raise BrokenModel(
            f"{str(folder / 'tokenizer.json')!r} has odd added_tokens; copy tokenizer.json of the model again"
        ) from None
    bos, eos = (_token(tokens.get(name)) for name in ("bos_token", "eos_token"))
    named = [generation.get("eos_token_id"), text.get("eos_token_id"), ids.get(eos)]
    number = functools.partial(_number, folder / "config.json", text)
    heads = number("num_attention_heads", "n_head", default=1)
    return ChatFacts(
        kind=str(config.get("model_type", "")),
        context_window=_window(folder, text),
        eos_ids=tuple(
            sorted({i for entry in named for i in (entry if isinstance(entry, list) else [entry]) if i is not None})
        ),
        chat_template=_template(folder, tokens),
        bos_token=bos,
        eos_token=eos,
        special_tokens=special,
        vocabulary=number("vocab_size", default=0),
        hidden_size=number("hidden_size", "n_embd", "d_model", default=0),
        heads=heads,
        key_value_heads=number("num_key_value_heads", default=heads),
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


def _table(value: Any, file: Path, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BrokenModel(f"{name} in {str(file)!r} is {value!r}, expected an object; copy the model again")
    return value


def _number(file: Path, table: dict[str, Any], *names: str, default: int) -> int:
    name = next((name for name in names if table.get(name)), "")
    value = table.get(name, default)
    if not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise BrokenModel(f"{name} in {str(file)!r} is {value!r}, expected a number; copy the model again")
    return int(value)


def _window(folder: Path, text: dict[str, Any]) -> int:
    """Return the tokens of prompt and answer.

    Rope kinds that go by the longest row of a batch would let callers change each other's answers: such a model is
    used only up to the length where they begin to.
    """
    file = folder / "config.json"
    whole = _number(file, text, *_WINDOWS, default=_DEFAULT_WINDOW)
    ropes = _table(text.get("rope_parameters") or text.get("rope_scaling") or {}, file, "rope_parameters")
    window = whole
    for rope in (ropes, *(entry for entry in ropes.values() if isinstance(entry, dict))):
        kind = str(rope.get("rope_type", rope.get("type", "")))
        if kind in _BY_LENGTH or "dynamic" in kind:
            name = "original_max_position_embeddings"
            own = rope if rope.get(name) else text
            if kind in _BY_LENGTH and not own.get(name):
                raise BrokenModel(f"{str(file)!r} has the rope type {kind!r} without {name}; copy the model again")
            window = min(window, _number(file, own, name, default=whole))
    if window < whole:
        log.warning(
            "%s reads more than %d tokens in another way, which would depend on what else runs: the context is %d, "
            "not %d",
            folder.name,
            window,
            window,
            whole,
        )
    return window


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
        names = sorted(set(map(str, _table(_json(index).get("weight_map", {}), index, "weight_map").values())))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
        part = next((name for name in names if (found := _PART.search(name)) and int(found[2]) > 1), None)
        if part and "model.safetensors" not in names:
            raise BrokenModel(f"{str(folder / part)!r} is a part, and {index.name!r} is missing; copy the model again")
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
    try:
        entries = {} if header is None else header
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        raise BrokenModel(f"{str(file)!r} has no header of safetensors; copy the model again") from None
    expected = 8 + length + max(ends, default=0)
    if header is None or stat.st_size != expected:
        raise BrokenModel(
            f"{str(file)!r} has {stat.st_size} bytes, expected {expected}: it was copied in part; copy it again"
        )
    return file.name, stat.st_size, stat.st_mtime_ns
