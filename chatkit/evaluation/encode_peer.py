"""A script that encodes passages with sentence-transformers as it comes, in an environment that has it.

Run by path, without chatkit: MODEL PASSAGES.json OUT.npy THREADS. It prints a line of JSON when it is ready and another
for each line that it reads; the vectors of the last time lie in OUT.npy.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(model: str, passages: str, out: str, threads: str) -> None:
    """Load the model, then encode all passages each time a line comes in."""
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    torch.set_num_threads(int(threads))
    texts = json.loads(Path(passages).read_text(encoding="utf-8"))
    loaded = SentenceTransformer(model, device="cpu")
    loaded.encode(texts[:8])
    _say({"ready": True, "max_tokens": loaded.max_seq_length})
    for _ in sys.stdin:
        started, used = time.perf_counter(), time.process_time()
        vectors = loaded.encode(texts, show_progress_bar=False)
        _say({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used})
        np.save(out, vectors)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
