"""A GGUF file written out as a model folder of transformers, once: safetensors, configuration, tokenizer.

Run as a program in a process of its own, whose memory is gone afterwards:

    python -m chatkit.models.chat_convert FILE OUT
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from chatkit import child_python
from chatkit.errors import BrokenModel, ModelError

log = logging.getLogger(__name__)

RECEIPT = "chatkit.json"
# Raised whenever what stands in a converted folder changes.
_LAYOUT = 1
# Weights of four bits become sixteen.
_GROWTH = 5


def dequantized(file: Path, *, cache: Path) -> Path:
    """Return the folder that a GGUF file was written out to, doing it first where there is none.

    Raises:
        BrokenModel: the file is damaged, or of an architecture that transformers does not read from GGUF.
        ModelError: there is no room.
    """
    stat = file.stat()
    folder = cache / f"transformers-{_LAYOUT}-{stat.st_size}-{stat.st_mtime_ns}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".dequantize.lock"):
        if _whole(folder):
            return folder
        for left in cache.glob(".dequantizing-*"):
            shutil.rmtree(left, ignore_errors=True)
        _make(file, folder)
    return folder


def _whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _make(file: Path, folder: Path) -> None:
    free, needed = shutil.disk_usage(folder.parent).free, file.stat().st_size * _GROWTH
    if free < needed:
        raise ModelError(
            f"writing {str(file)!r} out needs {needed >> 20} MiB in {str(folder.parent)!r}, {free >> 20} MiB are free; "
            "free some, or move the model cache with CHATKIT_MODELS_DIR"
        )
    log.info("writing %s out for transformers, once", file.name)
    work = Path(tempfile.mkdtemp(prefix=".dequantizing-", dir=folder.parent))
    try:
        command = [sys.executable, *child_python.run_module("chatkit.models.chat_convert"), str(file), str(work)]
        done = subprocess.run(command, env=child_python.environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise BrokenModel(
                f"{str(file)!r} cannot be read by transformers ({(lines or ['no message'])[-1][:300]}); it may be "
                "truncated, or of an architecture that is not read from GGUF: name a model folder with safetensors"
            )
        sizes = {entry.name: entry.stat().st_size for entry in sorted(work.iterdir())}
        (work / RECEIPT).write_text(json.dumps({"files": sizes}, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def main() -> int:
    """Write the model out in float16: a scale of the file has as many bits, and steps between weights stay apart."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file, out = Path(sys.argv[1]), Path(sys.argv[2])
    settings = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    settings["trust_remote_code"] = False
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float16, **settings)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False).save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
