"""Manifests that are damaged in every way, by what is wrong with them."""

import json
from pathlib import Path
from typing import Any

_GOOD_FILE = {"size": 1, "sha256": "0" * 64}


def _with(**changed: Any):
    """Return what makes a manifest's text of a good one: fields replaced, or left out where they are `...`."""

    def spoil(table: dict[str, Any]) -> bytes:
        return json.dumps({k: v for k, v in (table | changed).items() if v is not ...}).encode()

    return spoil


def _with_file(name: str = "vectors.faiss", **entry: Any):
    def spoil(table: dict[str, Any]) -> bytes:
        return json.dumps(table | {"files": table["files"] | {name: _GOOD_FILE | entry}}).encode()

    return spoil


BAD_MANIFESTS = {
    "a size of text": (_with_file(size="x"), "size of vectors.faiss is 'x', expected a whole number"),
    "a negative size": (_with_file(size=-1), "size of vectors.faiss is -1"),
    "a size that is no number": (_with_file(size=True), "size of vectors.faiss is True"),
    "an endless size": (_with_file(size=10**30), "size of vectors.faiss is 1000000"),
    "a size of a fraction": (_with_file(size=1e400), "size of vectors.faiss is inf"),
    "a digest of numbers": (_with_file(sha256=[1]), "sha256 of vectors.faiss is a list, expected a text"),
    "a file that has more": (_with_file(other=1), "vectors.faiss is a dict, expected an object with sha256 and size"),
    "a file elsewhere": (_with_file("../current"), "a file is named '../current', expected letters"),
    "a file of no name": (_with_file(""), "a file is named ''"),
    "a file's name cut by a zero": (_with_file("a\0b"), r"a file is named 'a\x00b'"),
    "half a character in a file's name": (_with_file("\ud800"), r"a file is named '\ud800'"),
    "files in a list": (_with(files=[]), "files is a list, expected an object"),
    "no files": (_with(files={}), "files has no passages.parquet"),
    "counts of text": (_with(passages="7"), "passages is '7', expected a whole number"),
    "counts of nothing": (_with(dim=None), "dim is None, expected a whole number"),
    "a name that is none": (_with(fingerprint=["x"]), "fingerprint is a list, expected a text"),
    "half a character": (_with(built_at="\udcff"), r"built_at is '\udcff', expected a text of whole characters"),
    "chunking of text": (_with(chunking={"max_tokens": "x"}), "chunking is 'x', expected a whole number"),
    "skipped without rows": (_with(skipped={"a": 1}), "skipped is a dict, expected a list"),
    "skipped rows of text": (
        _with(skipped=["x"]),
        "an entry of skipped is 'x', expected an object with reason and source",
    ),
    "a field missing": (_with(built_by=...), "the field 'built_by' is missing"),
    "a field too many": (_with(**{"\ud800\n": 1}), r"the field '\ud800\n' is unknown"),
    "nested too deep": (lambda table: b"[" * 100_000, "manifest.json' is damaged"),
    "no object": (lambda table: b"[]", "it is a list, expected an object"),
    "nothing": (lambda table: b"", "manifest.json' is damaged"),
    "a number of many digits": (lambda table: b"9" * 5000, "manifest.json' is damaged"),
    "huge": (lambda table: b" " * (64 * 2**20 + 1), "has more than 67108864 bytes"),
    "binary": (lambda table: bytes(range(256)), "manifest.json' is damaged"),
}


def spoil(version: Path, damage: str) -> None:
    """Damage the manifest of a version in one of the ways."""
    file = version / "manifest.json"
    file.write_bytes(BAD_MANIFESTS[damage][0](json.loads(file.read_text(encoding="utf-8"))))
