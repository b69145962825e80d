"""OpenChatKit's retrieval against `WikipediaIndex`, on one folder in its layout: same texts, time a query, memory.

    python benchmarks/openchatkit_fixture.py TEXTS FOLDER --rows 1000000
    python benchmarks/openchatkit.py FOLDER TEXTS [--queries 200] [--json]

The reference is written afresh from what is known of the ancestor's algorithm: the whole Parquet column in memory, the
query and then the eleven rows around every hit encoded by torch in float32 with gradients on, each batch padded to its
longest row, cosines to the hit, neighbours joined without a separator, and its behaviour at the ends of the file. The
default encoder stands for contriever-msmarco on both sides, and its device is the CPU. The frame is the list of its
strings, which is what a frame's column of objects holds.

Each side has a process of its own and opens the folder once; the sidecar is there already. As many other queries are
encoded first, as in a service that has been up for a while: an encoder is slower for lengths it has not seen. Queries
are those of the test sets below TEXTS. The reference *behaves* where its window lies inside the file and what it merged
inside one article. Texts are the same when they are equal without white space: the ancestor joins without any, ours
puts a space where two rows would run together. Memory is the resident set after the last query, with the mapped pages
of the index.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatkit.evaluation.report import Report

K, W, W_TH = 1, 5, 0.5
_WARM_UP = 3


# Search of a query, encoding of a query, and what is left of the search for its vector.
Side = tuple[Callable[[str], dict[str, Any]], Callable[[str], Any], Callable[[Any], Any]]


def reference_side(folder: Path) -> Side:
    """Open the ancestor's."""
    import faiss
    import numpy as np
    import transformers
    from pyarrow import parquet

    from chatkit.models import sources
    from chatkit.settings import load_settings

    encoder = sources.resolve("default", models_dir=load_settings().models, role="encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModel.from_pretrained(encoder)
    columns = ["text_snippet", "position_in_source_text", "title"]
    frame = {name: column.to_pylist() for name, column in _columns(parquet, folder, columns)}
    index = faiss.read_index(str(folder / "knn.index"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)

    def embed(texts: list[str]) -> np.ndarray:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        states, mask = model(**tokens)[0], tokens["attention_mask"]
        pooled = states.masked_fill(~mask[..., None].bool(), 0.0).sum(dim=1) / mask.sum(dim=1)[..., None]
        return pooled.detach().numpy()

    def search(query: str) -> dict[str, Any]:
        return merged(embed([query]))

    def merged(vector: np.ndarray) -> dict[str, Any]:
        row = int(index.search(vector, K)[1][0][0])
        window = range(row - W, row + W + 1)
        texts = [frame["text_snippet"][at] for at in window if at < len(frame["text_snippet"])]
        if len(texts) < 2 * W + 1:  # the ancestor's index error: the hit stays alone
            return {"text": frame["text_snippet"][row], "behaves": False}
        vectors = embed(texts)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        near = vectors @ vectors[W] > W_TH
        first = last = W
        while first > 0 and near[first - 1]:
            first -= 1
        while last < 2 * W and near[last + 1]:
            last += 1
        positions = frame["position_in_source_text"]
        inside = window[0] >= 0 and all(positions[window[at]] > 0 for at in range(first + 1, last + 1))
        return {"text": "".join(texts[first : last + 1]), "behaves": inside}

    return search, lambda query: embed([query]), merged


def _columns(parquet: Any, folder: Path, names: list[str]) -> list[tuple[str, Any]]:
    table = parquet.read_table(folder / "wikipedia-en-sentences.parquet", columns=names)
    return [(name, table.column(name)) for name in names]


def our_side(folder: Path) -> Side:
    """Open ours."""
    from chatkit import wiring
    from chatkit.retrieval.wikipedia import WikipediaIndex
    from chatkit.settings import load_settings

    encoder = wiring.open_encoder(load_settings())
    index = WikipediaIndex(folder, encoder)
    return (
        lambda query: {"text": index.search(query, K, W, W_TH)[0]},
        lambda query: encoder.encode_now([query]),
        lambda vector: index.passages(vector, K, min_score=-1.0),
    )


def run_side(side: str, folder: Path, queries: list[str], count: int) -> dict[str, Any]:
    """Open one side, encode what is beyond `count` to warm up, ask the rest; return texts, milliseconds and memory."""
    before = _resident()
    began = time.perf_counter()
    search, encode, merge = reference_side(folder) if side == "reference" else our_side(folder)
    opened = time.perf_counter() - began
    asked = queries[:count]
    for query in queries[count:]:
        encode(query)
    for query in asked[:_WARM_UP]:
        search(query)
    rows = []
    for query in asked:
        at = time.perf_counter()
        vector = encode(query)
        encoded = time.perf_counter() - at
        at = time.perf_counter()
        merge(vector)
        merged = time.perf_counter() - at
        at, used = time.perf_counter(), time.process_time()
        found = search(query)
        spent, used = time.perf_counter() - at, time.process_time() - used
        rows.append({**found, "ms": 1e3 * spent, "encode_ms": 1e3 * encoded, "merge_ms": 1e3 * merged})
        rows[-1]["cpu_ms"] = 1e3 * used
    return {"open_s": opened, "before_mb": before["VmRSS"], "memory": _resident(), "rows": rows}


def _resident() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    pairs = (line.split()[:2] for line in lines if line.startswith(("VmRSS", "RssAnon", "RssFile", "VmHWM")))
    return {name.rstrip(":"): int(value) / 1024 for name, value in pairs}


def encoder_alone(side: str) -> float:
    """Return the resident MB of a process that has a side's encoder open and nothing else."""
    script = {
        "ours": "from chatkit import wiring; from chatkit.settings import load_settings;"
        "e = wiring.open_encoder(load_settings()); e.encode_now(['a few words'] * 4); import faiss",
        "reference": "from chatkit.models import sources; from chatkit.settings import load_settings; import faiss;"
        "import pyarrow.parquet, transformers as t;"
        "p = sources.resolve('default', models_dir=load_settings().models, role='encoder');"
        "m = t.AutoModel.from_pretrained(p); z = t.AutoTokenizer.from_pretrained(p);"
        "m(**z(['a few words ' * 40] * 11, return_tensors='pt'))",
    }[side]
    tail = "; import re; print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-c", script + tail], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 1024


def _fastest(rows: list[dict[str, Any]]) -> float:
    """Return the milliseconds that a tenth of the queries stayed below: what others on the machine disturb least."""
    return statistics.quantiles((row["ms"] for row in rows), n=10)[0]


def queries_below(texts: Path, count: int) -> list[str]:
    """Return queries of the test sets below a folder, shuffled, always in the same order."""
    found = []
    for file in sorted(texts.rglob("queries.jsonl")):
        found += [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").split("\n") if line]
    found = [query for query in found if query.isascii() and len(query) < 300]
    random.Random(6).shuffle(found)
    return found[:count]


def compare(folder: Path, texts: Path, count: int) -> Report:
    """Run both sides and compare them."""
    queries = queries_below(texts, 2 * count)
    sides = {}
    for side in ("ours", "reference"):
        command = [sys.executable, __file__, str(folder), str(texts), "--side", side, "--queries", str(count)]
        done = subprocess.run(command, input=json.dumps(queries), check=True, stdout=subprocess.PIPE, text=True)
        sides[side] = json.loads(done.stdout)
    ours, reference = sides["ours"], sides["reference"]
    pairs = list(zip(ours["rows"], reference["rows"], strict=True))
    behaved = [(a, b) for a, b in pairs if b["behaves"]]
    same = [(a, b) for a, b in behaved if "".join(a["text"].split()) == "".join(b["text"].split())]

    def ms(rows: list[dict[str, Any]], name: str) -> float:
        return statistics.median(row[name] for row in rows)

    alone = {side: encoder_alone(side) for side in sides}
    total = {side: sides[side]["memory"]["VmRSS"] for side in sides}
    own = {side: max(total[side] - alone[side], 1.0) for side in sides}
    figures = {
        "same_text": len(same) / len(behaved),
        "reference_behaves": len(behaved) / len(pairs),
        "ratio_to_reference": ms(reference["rows"], "ms") / ms(ours["rows"], "ms"),
        "ratio_without_query_encoding": ms(reference["rows"], "merge_ms") / ms(ours["rows"], "merge_ms"),
        "merge_ms": ms(ours["rows"], "merge_ms"),
        "reference.merge_ms": ms(reference["rows"], "merge_ms"),
        "ratio_fastest_tenth": _fastest(reference["rows"]) / _fastest(ours["rows"]),
        "ratio_of_cpu_time": ms(reference["rows"], "cpu_ms") / ms(ours["rows"], "cpu_ms"),
        "cpu_ms": ms(ours["rows"], "cpu_ms"),
        "reference.cpu_ms": ms(reference["rows"], "cpu_ms"),
        "ms": ms(ours["rows"], "ms"),
        "reference.ms": ms(reference["rows"], "ms"),
        "encode_ms": ms(ours["rows"], "encode_ms"),
        "reference.encode_ms": ms(reference["rows"], "encode_ms"),
        "open_s": ours["open_s"],
        "reference.open_s": reference["open_s"],
        "mb": total["ours"],
        "reference.mb": total["reference"],
        "peak_mb": ours["memory"]["VmHWM"],
        "reference.peak_mb": reference["memory"]["VmHWM"],
        "memory_share": total["ours"] / total["reference"],
        "mb_without_encoder": own["ours"],
        "reference.mb_without_encoder": own["reference"],
        "memory_share_without_encoder": own["ours"] / own["reference"],
        "anonymous_mb": ours["memory"]["RssAnon"],
        "reference.anonymous_mb": reference["memory"]["RssAnon"],
    }
    fixture = json.loads((folder / "fixture.json").read_text(encoding="utf-8"))
    settings = {**fixture, "queries": len(pairs), "k": K, "w": W, "w_th": W_TH, "encoder": "default"}
    differing = [{"ours": a["text"], "reference": b["text"]} for a, b in behaved if (a, b) not in same]
    return Report("benchmarks/openchatkit.py", settings, figures, differing[:20])


def main() -> None:
    """Read the command line and print the report, or be one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=("ours", "reference"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run_side(given.side, given.folder, json.load(sys.stdin), given.queries)))
        return
    report = compare(given.folder, given.texts, given.queries)
    print(report.as_json() if given.json else report.as_table())


if __name__ == "__main__":
    main()
