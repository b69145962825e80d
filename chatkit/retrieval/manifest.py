"""The manifest: what an index was made of and with, and the hash of every file in it."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenIndex
from chatkit.retrieval.checkpoint import sha256_of

FILE = "manifest.json"
FORMAT = 1

# The two files that every version has beside this one.
VECTORS = "vectors.faiss"
PASSAGES = "passages.parquet"
# A manifest takes about 1 KB, and 200 bytes for each file that was left out.
_MOST_BYTES = 64 * 2**20
_MOST_COUNT = 2**63 - 1
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_TEXTS = ("name", "fingerprint", "metric", "chunker", "sources_sha256", "built_at", "built_by")
_COUNTS = ("dim", "documents", "passages", "duplicates")

# Up to here every byte is hashed when an index is opened; above, sizes are compared. Bytes in all files.
HASHED_AT_OPEN = 128 * 2**20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the index: its size in bytes and hex digest."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of an index.

    Attributes:
        fingerprint: of the encoder; another one gives vectors that cannot be compared.
        sources_sha256: of every source's name and content, in order.
        skipped: source and reason of every file that was left out.
        built_at: UTC, ISO 8601.
    """

    name: str
    fingerprint: str
    dim: int
    metric: str
    chunker: str
    chunking: Mapping[str, int]
    documents: int
    passages: int
    duplicates: int
    skipped: tuple[Mapping[str, str], ...]
    sources_sha256: str
    built_at: str
    built_by: str
    files: Mapping[str, FileEntry]
    format: int = FORMAT

    def same_content(self, other: "Manifest") -> bool:
        """Return whether both come from the same sources in the same way."""

        def made_of(manifest: Manifest) -> tuple[Any, ...]:
            return (
                manifest.format,
                manifest.fingerprint,
                manifest.chunker,
                dict(manifest.chunking),
                manifest.sources_sha256,
            )

        return made_of(self) == made_of(other)

    def write(self, folder: Path) -> None:
        """Write into `folder`, durably."""
        with (folder / FILE).open("w", encoding="utf-8") as stream:
            json.dump(dataclasses.asdict(self), stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a version folder.

        Raises:
            BrokenIndex: missing, not readable, or of a format this release does not know.
        """
        file = folder / FILE
        try:
            with file.open("rb") as stream:
                content = stream.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise broken(file, f"has more than {_MOST_BYTES} bytes")
            table = _table(json.loads(content.decode("utf-8")), "it")
            if table.get("format") != FORMAT:
                raise broken(file, f"has format {_shown(table.get('format'))}, expected {FORMAT}")
            return _checked(table)
        except OSError as error:
            raise broken(file, f"cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise broken(file, f"is damaged ({error})") from error

    def verify(self, folder: Path, *, hashes: bool | None = None) -> None:
        """Compare the files in `folder` with what was built.

        Args:
            folder: the version folder.
            hashes: hash every byte; only for indexes up to HASHED_AT_OPEN unless told.

        Raises:
            BrokenIndex: a file is missing or was changed, naming it.
        """
        if hashes is None:
            hashes = sum(entry.size for entry in self.files.values()) <= HASHED_AT_OPEN
        for name, entry in self.files.items():
            file = folder / name
            try:
                size = file.stat().st_size
                if size != entry.size:
                    raise broken(file, f"has {size} bytes, expected {entry.size}")
                if hashes and sha256_of(file) != entry.sha256:
                    raise broken(file, "was changed after the build (its SHA-256 differs)")
            except FileNotFoundError as error:
                raise broken(file, "is missing") from error
            except OSError as error:
                raise broken(file, f"cannot be read ({error.strerror})") from error


def _checked(table: dict[str, Any]) -> Manifest:
    """Return the manifest that a JSON object holds.

    Raises:
        ValueError: a field is missing, unknown or not of its type, naming it.
    """
    names = {field.name for field in dataclasses.fields(Manifest)}
    if wrong := sorted(table.keys() ^ names):
        raise ValueError(f"the field {_shown(wrong[0])} is {'missing' if wrong[0] in names else 'unknown'}")
    files = {}
    for name, entry in _table(table["files"], "files").items():
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"a file is named {_shown(name)}, expected letters, digits, '.', '_' or '-'")
        row = _table(entry, name, {"size", "sha256"})
        files[name] = FileEntry(_count(row["size"], f"size of {name}"), _text(row["sha256"], f"sha256 of {name}"))
    if missing := {VECTORS, PASSAGES} - files.keys():
        raise ValueError(f"files has no {min(missing)}")
    if not isinstance(table["skipped"], list):
        raise ValueError(f"skipped is {_shown(table['skipped'])}, expected a list")
    rows = [_table(row, "an entry of skipped", {"source", "reason"}) for row in table["skipped"]]
    chunking = _table(table["chunking"], "chunking").items()
    values: dict[str, Any] = {name: _text(table[name], name) for name in _TEXTS}
    values |= {name: _count(table[name], name) for name in _COUNTS}
    return Manifest(
        **values,
        chunking={_text(name, "an option of chunking"): _count(value, "chunking") for name, value in chunking},
        skipped=tuple({name: _text(text, name) for name, text in row.items()} for row in rows),
        files=files,
    )


def _table(value: Any, name: str, keys: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and value.keys() != keys):
        with_keys = f" with {' and '.join(sorted(keys))}" if keys else ""
        raise ValueError(f"{name} is {_shown(value)}, expected an object{with_keys}")
    return value


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_COUNT:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number of 0 or more")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} is {_shown(value)}, expected a text of whole characters")
    return value


def _shown(value: Any) -> str:
    """Return a value as it may stand in a line, however large or deep it is."""
    if isinstance(value, str | int | float | None):
        return ascii(value if not isinstance(value, str) else value[:40])[:60]
    return f"a {type(value).__name__}"


def broken(file: Path, problem: str) -> BrokenIndex:
    """Return the error for one file of an index; whoever knows the other versions adds the next step."""
    return BrokenIndex(f"index file {str(file)!r} {' '.join(problem.split())}")
