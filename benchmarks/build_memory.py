"""The memory that a build takes over a growing corpus.

    python benchmarks/build_memory.py [--chunks 5000,20000,80000] [--vectors KIND] [--json]

Every build is a process of its own, over generated text in files of 1,000 passages. Vectors of 384 numbers are made of
each text's hash, so that encoding takes no time and no memory: the default encoder's own is some 300 MB, whatever the
corpus. Everything else is that of a real build: reading apart, cutting, both kinds of duplicates, cache, passages,
lexical leg, vectors, checks.

| figure | meaning |
|---|---|
| `base_mb` | of the process before it builds, with everything imported |
| `peak_mb@N`, `reader_peak_mb@N` | the most memory of the build with N passages, and of the process that reads |
| `bytes_a_passage` | by which the peak grows between the two largest corpora |
| `text_mb@N`, `index_mb@N`, `seconds@N` | size of the sources and of the version, and what the build took |
"""

import argparse
import importlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.evaluation.report import Report
from chatkit.retrieval.build import BuildOptions, build_index

_A_FILE = 1000
_WORDS_EACH = 60
_MB = 1e6


class HashEncoder:
    """Vectors of length one made of each text's hash."""

    name, dim, fingerprint = "hashes", 384, "hashes-384"
    pooling, normalised, metric = "mean", True, "cosine"
    query_prefix = passage_prefix = ""
    max_tokens = 256

    def count_tokens_of(self, texts: Sequence[str]) -> list[int]:
        """Return the words of each text and two."""
        return [len(text.split()) + 2 for text in texts]

    def encode_now(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, 384) vectors."""
        seeds = [zlib.crc32(text.encode()) for text in texts]
        rows = np.stack([np.random.default_rng(seed).standard_normal(self.dim, dtype=np.float32) for seed in seeds])
        scaled: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return scaled


def write_corpus(folder: Path, passages: int) -> int:
    """Write files with so many sections of one passage each; returns their bytes."""
    folder.mkdir()
    chance = random.Random(passages)
    words = [f"{chance.choice('bdfgklmnprstvz')}{chance.choice('aeiou')}{n:x}" for n in range(20_000)]
    size = 0
    for first in range(0, passages, _A_FILE):
        sections = (
            f"## Part {n}\n\n{' '.join(chance.choices(words, k=_WORDS_EACH))}.\n\n"
            for n in range(first, min(passages, first + _A_FILE))
        )
        text = f"# Book {first // _A_FILE}\n\n" + "".join(sections)
        (folder / f"book-{first // _A_FILE:05d}.md").write_text(text, encoding="utf-8")
        size += len(text)
    return size


def build(folder: Path, vectors: str) -> None:
    """Build the index of a folder and print what it took."""
    for name in ("faiss", "pyarrow.parquet", "tantivy"):
        importlib.import_module(name)
    base = _peak(resource.RUSAGE_SELF)
    encoder: Any = HashEncoder()
    options = BuildOptions(vectors=vectors, keep=0)
    report = build_index([folder / "corpus"], folder / "indexes", name="docs", encoder=encoder, options=options)
    figures = {
        "base_mb": base,
        "peak_mb": _peak(resource.RUSAGE_SELF),
        "reader_peak_mb": _peak(resource.RUSAGE_CHILDREN),
        "index_mb": sum(f.stat().st_size for f in report.folder.rglob("*") if f.is_file()) / _MB,
        "seconds": report.seconds,
    }
    print(json.dumps({"passages": report.passages, "vectors": report.vectors, "figures": figures}))


def measure(sizes: Sequence[int], vectors: str) -> Report:
    """Return the figures of builds of these many passages."""
    figures: dict[str, float] = {}
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="chatkit-memory-") as folder:
            text = write_corpus(Path(folder) / "corpus", size)
            command = [sys.executable, __file__, "--build", folder, "--vectors", vectors]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if row["passages"] != size:
            raise SystemExit(f"error: {row['passages']} passages were made, expected {size}")
        figures["base_mb"] = row["figures"].pop("base_mb")
        figures[f"text_mb@{size}"] = text / _MB
        figures |= {f"{name}@{size}": value for name, value in row["figures"].items()}
        rows.append(row)
    if len(sizes) > 1:
        grown = figures[f"peak_mb@{sizes[-1]}"] - figures[f"peak_mb@{sizes[-2]}"]
        figures["bytes_a_passage"] = grown * _MB / (sizes[-1] - sizes[-2])
    return Report("build_memory", {"chunks": list(sizes), "vectors": vectors or "chosen"}, figures, rows)


def _peak(who: int) -> float:
    return round(resource.getrusage(who).ru_maxrss * 1024 / _MB, 1)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="The memory of a build over a growing corpus.")
    parser.add_argument("--chunks", default="5000,20000,80000", help="passages of each corpus, ascending")
    parser.add_argument("--vectors", default="", help="kind of the vectors; by the number of passages")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    if given.build:
        build(given.build, given.vectors)
        return 0
    report = measure([int(size) for size in given.chunks.split(",")], given.vectors)
    print(report.as_json() if given.json else report.as_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
