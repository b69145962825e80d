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


def _with_in(table_name: str, **changed: Any):
    def spoil(table: dict[str, Any]) -> bytes:
        return json.dumps(table | {table_name: table[table_name] | changed}).encode()

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
    "counts of nothing": (_with_in("encoder", dim=None), "dim is None, expected a whole number"),
    "a name that is none": (
        _with_in("encoder", fingerprint=["x"]),
        "fingerprint of encoder is a list, expected a text",
    ),
    "half a character": (_with(built_at="\udcff"), r"built_at is '\udcff', expected a text of whole characters"),
    "chunking of text": (_with(chunking={"max_tokens": "x"}), "chunking is 'x', expected a number of 0 or more"),
    "skipped in a list": (_with(skipped=["x"]), "skipped is a list, expected a whole number"),
    "a metric of no kind": (_with_in("encoder", metric="l2"), "metric is 'l2', expected cosine or ip"),
    "an encoder of half a table": (_with(encoder={"dim": 384}), "encoder is a dict, expected an object with dim and"),
    "an encoder that may be normal": (_with_in("encoder", normalised=1), "normalised is 1, expected true or false"),
    "a search of text": (_with_in("vectors", search={"ef": "x"}), "search is 'x', expected a whole number"),
    "vectors of no kind": (_with_in("vectors", kind="tree"), "kind of vectors is 'tree', expected one of flat"),
    "a weight past one": (_with_in("fusion", dense_weight=1.5), "dense_weight is 1.5, expected a number from 0 to 1"),
    "a weight that is none": (_with_in("fusion", dense_weight=float("nan")), "dense_weight is nan, expected a number"),
    "a lexical index of text": (_with(lexical="x"), "lexical is 'x', expected an object with analyser and engine"),
    "a file two folders down": (_with_file("a/b/c"), "a file is named 'a/b/c'"),
    "a file beside the folder": (_with_file("lexical/../x"), "a file is named 'lexical/../x'"),
    "the format before": (_with(format=1), "has format 1, expected 2"),
    "a field missing": (_with(built_by=...), "the field 'built_by' is missing"),
    "a field too many": (_with(**{"\ud800\n": 1}), r"the field '\ud800\n' is unknown"),
    "nested too deep": (lambda table: b"[" * 100_000, "manifest.json' is damaged"),
    "no object": (lambda table: b"[]", "it is a list, expected an object"),
    "nothing": (lambda table: b"", "manifest.json' is damaged"),
    "a number of many digits": (lambda table: b"9" * 5000, "manifest.json' is damaged"),
    "huge": (lambda table: b" " * (2**20 + 1), "has more than 1048576 bytes"),
    "binary": (lambda table: bytes(range(256)), "manifest.json' is damaged"),
}


def spoil(version: Path, damage: str) -> None:
    """Damage the manifest of a version in one of the ways."""
    file = version / "manifest.json"
    file.write_bytes(BAD_MANIFESTS[damage][0](json.loads(file.read_text(encoding="utf-8"))))
