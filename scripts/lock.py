"""Resolve pyproject.toml into the locks: every platform, every hash, torch and what it brings left out.

requirements.lock holds what chatkit and its tests need; requirements-ministack.lock the DynamoDB server of the tests.

Run by `make lock`. Needs `uv`, which it installs into a temporary environment of its own.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv>=0.8"
# Torch's builds differ by platform, so it and the CUDA packages it pulls are installed apart (see the Makefile).
TORCH_BRINGS = ("torch", "triton", "cuda-bindings", "cuda-pathfinder", "cuda-toolkit")
# OpenVINO's converter reports usage when this package is there, and works without it: chatkit phones nobody.
UNWANTED = ("openvino-telemetry",)


LOCKS = {
    "requirements.lock": [
        "--extra=cpu",
        "--extra=local",
        "--extra=torch",
        "--extra=quantize",
        "--extra=aws",
        "--extra=encryption",
        "--extra=datasets",
        "--extra=ray",
        "--extra=presidio",
        "--group=dev",
    ],
    "requirements-ministack.lock": ["--group=pyproject.toml:ministack"],
}


def main() -> int:
    """Write the locks and return uv's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", UV], check=True)
        for name, wanted in LOCKS.items():
            command = [str(python), "-m", "uv", "pip", "compile", "--quiet", *wanted]
            command += [] if any("pyproject" in option for option in wanted) else ["pyproject.toml"]
            command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header"]
            for unwanted in TORCH_BRINGS + UNWANTED:
                command += ["--no-emit-package", unwanted]
            done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
            if done.returncode:
                sys.stderr.write(done.stderr)
                return done.returncode
            (ROOT / name).write_text(_without_cuda(done.stdout), encoding="utf-8")
    return 0


def _without_cuda(text: str) -> str:
    """Drop the requirement blocks of NVIDIA's own wheels, which only a CUDA build of torch asks for."""
    kept: list[str] = []
    skipping = False
    for line in text.splitlines():
        if not line.startswith((" ", "#")):
            skipping = line.startswith("nvidia-")
        if not skipping:
            kept.append(line)
    return "\n".join(kept).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
