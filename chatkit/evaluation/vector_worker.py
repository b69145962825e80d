"""A process that opens a version of an index as a service's worker does and answers from it.

Run as a module: FOLDER QUERIES.npy. It prints one line of JSON with the seconds of opening and the megabytes it took
for itself, and stays, with all open, until its input ends.
"""

import json
import sys
import time
from pathlib import Path


def main(folder: str, queries: str) -> None:
    """Open, answer every query once, report."""
    import faiss
    import numpy as np
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401 - what every worker has loaded is not the index's

    from chatkit.retrieval import versions, writing

    faiss.omp_set_num_threads(1)
    asked = np.load(queries)
    warm = np.zeros((1, asked.shape[1]), np.float32)
    faiss.IndexFlatIP(asked.shape[1]).search(warm, 1)
    before = private_mb()
    started = time.perf_counter()
    manifest = versions.check(Path(folder), None)
    vectors, passages = writing.read_both(Path(folder), manifest)
    opened = time.perf_counter() - started
    for query in asked:
        _, rows = vectors.search(query[np.newaxis], 10)
        passages.rows(rows[0].tolist())
    sys.stdout.write(json.dumps({"load_s": opened, "mb": private_mb() - before}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def private_mb() -> float:
    """Return the memory of this process that no other shares, in megabytes of 10^6 bytes; 0 where nothing tells."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
