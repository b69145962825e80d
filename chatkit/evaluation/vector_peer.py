"""A script that searches vectors with hnswlib or usearch, in an environment that has them.

Run by path, without chatkit: NAME VECTORS.f32 DIM QUERIES.npy TRUTH.npy KEPT THREADS. KEPT is where the built index is
kept. It prints a line of JSON when the index is there, and another for each line that it reads: `recall R` chooses the
least effort that finds a share R of TRUTH, `run` searches for every query once, one after the other, on one thread.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

M = 16
EF_CONSTRUCTION = 200
EFFORTS = (10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)


def hnswlib_side(rows: Any, kept: str, threads: int) -> "tuple[Callable[[Any, int], Any], Callable[[int], None]]":
    """Return what searches and what sets the effort, float32."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=rows.shape[1])
    if os.path.exists(kept):
        index.load_index(kept)
    else:
        index.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCTION, random_seed=0)
        for start in range(0, len(rows), 50_000):
            index.add_items(rows[start : start + 50_000], num_threads=threads)
        index.save_index(f"{kept}.part")
        os.replace(f"{kept}.part", kept)
    index.set_num_threads(1)

    def search(query: Any, k: int) -> Any:
        return index.knn_query(query, k=k)[0][0]

    return search, index.set_ef


def usearch_side(rows: Any, kept: str, threads: int) -> "tuple[Callable[[Any, int], Any], Callable[[int], None]]":
    """Return what searches and what sets the effort, bfloat16."""
    import numpy as np
    from usearch.index import Index

    index = Index(
        ndim=rows.shape[1],
        metric="ip",
        dtype="bf16",
        connectivity=M,
        expansion_add=EF_CONSTRUCTION,
        expansion_search=64,
    )
    if os.path.exists(kept):
        index.load(kept)
    else:
        for start in range(0, len(rows), 50_000):
            part = np.ascontiguousarray(rows[start : start + 50_000])
            index.add(np.arange(start, start + len(part)), part, threads=threads)
        index.save(f"{kept}.part")
        os.replace(f"{kept}.part", kept)

    def search(query: Any, k: int) -> Any:
        return index.search(query, k, threads=1).keys

    def effort(ef: int) -> None:
        index.expansion_search = ef

    return search, effort


def main(name: str, vectors: str, dim: str, queries: str, truth: str, kept: str, threads: str) -> None:
    """Build or load, then do what the lines say."""
    import numpy as np

    rows = np.memmap(vectors, dtype=np.float32, mode="r").reshape(-1, int(dim))
    asked, wanted = np.load(queries), np.load(truth)
    built = Path(f"{kept}.seconds")
    new, started = not os.path.exists(kept), time.perf_counter()
    search, set_effort = (hnswlib_side if name == "hnswlib" else usearch_side)(rows, kept, int(threads))
    if new:
        built.write_text(str(time.perf_counter() - started), encoding="utf-8")
    seconds = float(built.read_text(encoding="utf-8")) if built.exists() else None
    say({"seconds": seconds, "bytes": Path(kept).stat().st_size})
    for line in sys.stdin:
        order, _, value = line.strip().partition(" ")
        if order == "recall":
            for effort in EFFORTS:
                set_effort(effort)
                recall = found_of(search, asked, wanted)
                if recall >= float(value):
                    break
            say({"effort": effort, "recall": recall})
        else:
            started = time.perf_counter()
            for query in asked:
                search(query, wanted.shape[1])
            say({"seconds": time.perf_counter() - started})


def found_of(search: "Callable[[Any, int], Any]", asked: Any, wanted: Any) -> float:
    """Return the mean share of `wanted` that is found."""
    k = wanted.shape[1]
    hits = [len(set(search(query, k).tolist()) & set(rows.tolist())) for query, rows in zip(asked, wanted, strict=True)]
    return float(sum(hits) / (k * len(hits)))


def say(line: "dict[str, Any]") -> None:
    """Print one line of JSON at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
