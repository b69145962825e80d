"""A GGUF file made ready for the `local` engine, once: OpenVINO weights, tokenizers and the facts a prompt needs.

The converted form loads about twice as fast as the GGUF, whose tensors and tokenizer are read anew at every start.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from chatkit.errors import BrokenModel, MissingExtra, ModelError

log = logging.getLogger(__name__)

FACTS = "chatkit.json"
# Raised whenever what stands in a converted folder changes.
LAYOUT = 4
_MAGIC = b"GGUF"
# What OpenVINO's reader takes (create_from_gguf in openvino.genai's gguf_modeling.cpp). Mistral, SmolLM2 and others are
# "llama" to GGUF.
ARCHITECTURES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the engine needs to know of a converted model besides its weights.

    Attributes:
        context_window: tokens of prompt and answer together.
        eos_ids: ids that end a reply.
        layers, kv_heads, head_size: of the attention, which decide what a token takes in the key-value cache.
        chat_template: empty where the file carries none.
        special_tokens: strings the tokenizer reads as control tokens.
        file: name of the GGUF file this was made from.
    """

    name: str
    file: str
    architecture: str
    context_window: int
    layers: int
    kv_heads: int
    head_size: int
    chat_template: str
    bos_token: str
    eos_token: str
    eos_ids: tuple[int, ...]
    special_tokens: tuple[str, ...]


def converted(file: Path, *, cache: Path) -> tuple[Path, ModelFacts]:
    """Return the converted form of a GGUF file, making it first where there is none.

    Raises:
        BrokenModel: the file is truncated, damaged or of an architecture that OpenVINO does not read.
        ModelError: there is no room for the converted form.
    """
    folder = cache / f"openvino-{_key(file)}"
    found = _read_facts(folder)
    if found:
        return folder, found
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".convert.lock"):
        found = _read_facts(folder)  # another process may have been faster
        if not found:
            _clear(cache)
            found = _convert(file, folder)
    return folder, found


def _key(file: Path) -> str:
    """Name the converted form by the file's identity and by what reads it; hashing 98 MB at every start would cost."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        reader = version("openvino-genai")
    except PackageNotFoundError:
        raise MissingExtra("openvino_genai", "local") from None
    try:
        stat = file.stat()
    except OSError as error:
        raise BrokenModel(f"{str(file)!r} cannot be read ({error.strerror}); run: chatkit models pull") from error
    text = f"{LAYOUT}|{reader}|{file.name}|{stat.st_size}|{stat.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_facts(folder: Path) -> ModelFacts | None:
    try:
        table: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        sizes = table.pop("files")
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    for name in ("eos_ids", "special_tokens"):
        table[name] = tuple(table[name])
    return ModelFacts(**table)


def _clear(cache: Path) -> None:
    """Remove what a killed conversion left; the lock is held."""
    for left in cache.glob(".converting-*"):
        shutil.rmtree(left, ignore_errors=True)


def _convert(file: Path, folder: Path) -> ModelFacts:
    reader = _reader(file)
    free = shutil.disk_usage(folder.parent).free
    needed = int(file.stat().st_size * 2.2)
    if free < needed:
        raise ModelError(
            f"converting {str(file)!r} needs {needed >> 20} MiB in {str(folder.parent)!r}, {free >> 20} MiB are free; "
            "free some, or move the model cache with CHATKIT_MODELS_DIR"
        )
    log.info("converting %s for this machine, once", file.name)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        facts = _write_tokenizers(file, reader, work)
        _write_weights(file, work)
        sizes = {p.name: p.stat().st_size for p in sorted(work.iterdir())}
        (work / FACTS).write_text(json.dumps({**asdict(facts), "files": sizes}, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return facts


def _reader(file: Path) -> Any:
    """Return the file's metadata, its architecture one that can be read."""
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != _MAGIC:
        raise BrokenModel(
            f"{str(file)!r} begins with {magic!r}, expected {_MAGIC!r}: it is no GGUF file; run: chatkit models pull"
        )
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtra("gguf", "local") from error
    try:
        reader = GGUFReader(str(file))
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, OSError, KeyError, IndexError, OverflowError) as error:
        raise _unreadable(file, error) from error
    if architecture not in ARCHITECTURES:
        raise BrokenModel(
            f"{str(file)!r} is of the architecture {architecture!r}, the local engine reads {', '.join(ARCHITECTURES)}"
            "; name another GGUF file, or choose another engine (CHATKIT_ENGINE)"
        )
    return reader


def _unreadable(file: Path, error: Exception) -> BrokenModel:
    return BrokenModel(
        f"{str(file)!r} cannot be read as GGUF ({_last_line(error)}); it may be truncated; "
        "run: chatkit models pull --force"
    )


def _write_weights(file: Path, work: Path) -> None:
    """Let OpenVINO read the GGUF and save its own form; it writes beside the file it was given, so that is a link."""
    import openvino_genai

    link = work / "source.gguf"
    link.symlink_to(file.resolve())
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    try:
        openvino_genai.ContinuousBatchingPipeline(str(link), scheduler, "CPU", {"enable_save_ov_model": True})
    except RuntimeError as error:
        raise BrokenModel(
            f"OpenVINO cannot read {str(file)!r} ({_last_line(error)}); it may be truncated or hold an unsupported "
            "quantisation; run: chatkit models pull --force, or name another GGUF file"
        ) from error
    finally:
        link.unlink()
    if not (work / "openvino_model.bin").is_file():
        raise BrokenModel(f"OpenVINO read {str(file)!r} but saved no converted form of it; name another GGUF file")


def _write_tokenizers(file: Path, reader: Any, work: Path) -> ModelFacts:
    try:
        import openvino
        import openvino_tokenizers
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", "local") from error

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
    except (ValueError, OSError, KeyError, IndexError, OverflowError) as error:
        raise _unreadable(file, error) from error
    forward, backward = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(forward, work / "openvino_tokenizer.xml")
    openvino.save_model(backward, work / "openvino_detokenizer.xml")
    tokenizer.backend_tokenizer.save(str(work / "tokenizer.json"))
    return _facts(file, reader, tokenizer)


def _facts(file: Path, reader: Any, tokenizer: Any) -> ModelFacts:
    architecture = str(reader.fields["general.architecture"].contents())
    name = reader.fields.get("general.name")

    def number(key: str, default: int | None = None) -> int:
        found = reader.fields.get(f"{architecture}.{key}")
        if found is not None:
            return int(found.contents())
        if default is None:
            raise BrokenModel(f"{str(file)!r} has no {architecture}.{key}, which the engine needs; name another file")
        return default

    heads = number("attention.head_count")
    return ModelFacts(
        name=str(name.contents()) if name else file.stem,
        file=file.name,
        architecture=architecture,
        context_window=number("context_length"),
        layers=number("block_count"),
        kv_heads=number("attention.head_count_kv", heads),
        head_size=number("attention.key_length", number("embedding_length") // heads),
        chat_template=str(tokenizer.chat_template or ""),
        bos_token=tokenizer.bos_token or "",
        eos_token=tokenizer.eos_token or "",
        eos_ids=_end_ids(file, reader, tokenizer),
        special_tokens=tuple(sorted({str(t) for t in tokenizer.all_special_tokens} | _control_tokens(tokenizer))),
    )


def _end_ids(file: Path, reader: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end a reply, the tokenizer's own first: of a text, of a turn, and of a message to a tool."""
    named = [reader.fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    found = [tokenizer.eos_token_id, *(int(field.contents()) for field in named if field is not None)]
    ids = tuple(dict.fromkeys(int(i) for i in found if i is not None))
    if not ids:
        raise BrokenModel(
            f"{str(file)!r} names no token that ends a reply (tokenizer.ggml.eos_token_id); name another file"
        )
    return ids


def _control_tokens(tokenizer: Any) -> set[str]:
    return {str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special}


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
