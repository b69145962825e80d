"""How much of real documents is read: phrases that must be found, and the words of an independent extraction.

    python benchmarks/documents.py DIR [--json]

DIR holds `manifest.json`, a list of objects with `file`, `format`, `must_contain` (phrases, compared with runs of
blanks as one), and where there are such `expected` (a file with the text that others extracted) and `password`.

| figure | meaning |
|---|---|
| `documents`, `read` | files in the manifest, and those that gave a text |
| `phrases`, `phrases_found` | phrases of all files, and the share found in title and text |
| `phrases_in_passages` | the share found in the title, a heading or one section, as a passage shows them |
| `complete`, `FORMAT.complete` | share of files with all their phrases |
| `FORMAT.word_coverage` | mean share of the different words of `expected` that were read |
| `seconds`, `reader_peak_mb`, `own_peak_mb` | wall time; the most memory of the process that reads, and of this one |
"""

import argparse
import hashlib
import json
import re
import resource
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from chatkit.evaluation.report import Report
from chatkit.retrieval.apart import Reader
from chatkit.retrieval.document import Document, Unreadable
from chatkit.retrieval.entries import SourceFile

_WORD = re.compile(r"\w+")


def main() -> int:
    """Print the figures; 1 when a phrase is missing."""
    parser = argparse.ArgumentParser(description="How much of real documents is read.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    report = measure(options.folder)
    print(report.as_json() if options.json else report.as_table())
    for row in report.rows:
        if not options.json and (row["missing"] or row["reason"]):
            print(f"{row['file']}: {row['reason'] or ''} missing {row['missing']}")
    return 0 if report.figures["phrases_found"] == 1 else 1


def measure(folder: Path) -> Report:
    """Read every document of the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    passwords = sorted({entry["password"] for entry in manifest if entry.get("password")})
    started = time.monotonic()
    with Reader(passwords=passwords) as reader:
        rows = [_row(folder, entry, reader) for entry in manifest]
        left_out = [f"{skipped.source}: {skipped.reason}" for skipped in reader.left_out]
    figures = _figures(rows)
    figures["seconds"] = round(time.monotonic() - started, 2)
    for name, who in (("reader_peak_mb", resource.RUSAGE_CHILDREN), ("own_peak_mb", resource.RUSAGE_SELF)):
        figures[name] = round(resource.getrusage(who).ru_maxrss / 1024, 1)
    return Report("documents", {"folder": str(folder), "left_out": left_out}, figures, rows)


def _row(folder: Path, entry: dict[str, Any], reader: Reader) -> dict[str, Any]:
    path = folder / entry["file"]
    content = path.read_bytes()
    reason, documents = None, []
    try:
        documents = list(
            reader.read(SourceFile(path, entry["file"], len(content), hashlib.sha256(content).hexdigest()))
        )
    except Unreadable as error:
        reason = str(error)
    whole = _normal(" ".join(f"{document.title} {document.text}" for document in documents))
    shown = [_normal(piece) for document in documents for piece in _pieces(document)]
    phrases = [_normal(phrase) for phrase in entry["must_contain"]]
    coverage = None
    if entry.get("expected"):
        expected = set(_WORD.findall((folder / entry["expected"]).read_text(encoding="utf-8").lower()))
        coverage = len(expected & set(_WORD.findall(whole.lower()))) / max(1, len(expected))
    return {
        "file": entry["file"],
        "format": entry["format"],
        "read": bool(whole),
        "reason": reason,
        "characters": len(whole),
        "pages": max((section.page for document in documents for section in document.sections), default=0),
        "phrases": len(phrases),
        "missing": [phrase for phrase in phrases if phrase not in whole],
        "not_in_passages": [phrase for phrase in phrases if not any(phrase in piece for piece in shown)],
        "word_coverage": coverage,
    }


def _pieces(document: Document) -> list[str]:
    pieces = [document.title]
    for section in document.sections:
        pieces += [section.heading, document.text[section.start : section.end]]
    return pieces


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    phrases = sum(row["phrases"] for row in rows)
    figures: dict[str, float] = {
        "documents": len(rows),
        "read": sum(row["read"] for row in rows),
        "phrases": phrases,
        "phrases_found": 1 - sum(len(row["missing"]) for row in rows) / phrases,
        "phrases_in_passages": 1 - sum(len(row["not_in_passages"]) for row in rows) / phrases,
        "complete": statistics.mean(not row["missing"] for row in rows),
    }
    by_format: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_format[row["format"]].append(row)
    for name, group in by_format.items():
        figures[f"{name}.complete"] = statistics.mean(not row["missing"] for row in group)
        if covered := [row["word_coverage"] for row in group if row["word_coverage"] is not None]:
            figures[f"{name}.word_coverage"] = round(statistics.mean(covered), 4)
    return figures


def _normal(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
