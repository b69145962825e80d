"""The manifest: what an index was made of and with, and the hash of every file in it."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenIndex
from chatkit.retrieval.checkpoint import sha256_of

FILE = "manifest.json"
FORMAT = 1

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
            table = json.loads(file.read_text(encoding="utf-8"))
            if table["format"] != FORMAT:
                raise broken(file, f"has format {table['format']!r}, expected {FORMAT}")
            files = {name: FileEntry(**entry) for name, entry in table.pop("files").items()}
            skipped = tuple(table.pop("skipped"))
            return cls(**table, skipped=skipped, files=files)
        except OSError as error:
            raise broken(file, f"cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def broken(file: Path, problem: str) -> BrokenIndex:
    """Return the error for one file of an index; whoever knows the other versions adds the next step."""
    return BrokenIndex(f"index file {str(file)!r} {' '.join(problem.split())}")
