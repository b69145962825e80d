"""What lies in a version folder that is a copy of OpenChatKit's published index: a receipt beside its two files."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenIndex
from chatkit.retrieval.wikipedia import INDEX, PARQUET

_AGAIN = "get it again with: chatkit prepare-index --recipe openchatkit"
FILE = "openchatkit.json"
# Beside the versions: what each source was when it was first received.
LOCK = "openchatkit.lock.json"
FILES = (INDEX, PARQUET)
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file as it was received.

    Attributes:
        mtime_ns: modification time of the file that it was copied from; 0 for one of the hub.
    """

    bytes: int
    sha256: str
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """The receipt.

    Attributes:
        repository: where it came from: ORG/NAME on the hub, or a folder.
        revision: what was asked for; `commit` is what that stood for, "" for a folder.
        encoder: source of the encoder that it is searched with; "" for the service's own.
        rows: of the Parquet file, and vectors of the index.
        prepared_at: ISO 8601, UTC.
    """

    repository: str
    revision: str
    commit: str
    encoder: str
    rows: int
    files: Mapping[str, PublishedFile]
    prepared_at: str = ""

    @property
    def bytes(self) -> int:
        """The size of the published files."""
        return sum(file.bytes for file in self.files.values())

    def write(self, folder: Path) -> None:
        """Write the receipt through to the disk."""
        with (folder / FILE).open("w", encoding="utf-8") as out:
            json.dump({"format": _FORMAT, **asdict(self)}, out, indent=1)
            out.flush()
            os.fsync(out.fileno())

    def check(self, folder: Path) -> None:
        """Compare sizes; hashes were compared when the files arrived.

        Raises:
            BrokenIndex: a file is missing or has another length.
        """
        for name, file in self.files.items():
            path = folder / name
            actual = path.stat().st_size if path.is_file() else None
            if actual != file.bytes:
                state = "is missing" if actual is None else f"has {actual} bytes, expected {file.bytes}"
                raise BrokenIndex(f"{str(path)!r} {state}; {_AGAIN}")


@dataclass(frozen=True, slots=True)
class Locked:
    """What a source was when it was first received; it is expected to be that ever after.

    Attributes:
        sha256: hash of each file by its name.
    """

    commit: str
    sha256: Mapping[str, str]


def read_locks(index: Path) -> dict[str, Locked]:
    """Return what was received for an index, by source.

    Args:
        index: the folder of all its versions.

    Raises:
        BrokenIndex: the lock file cannot be read.
    """
    file = index / LOCK
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        locks = {source: Locked(str(row["commit"]), dict(row["sha256"])) for source, row in table.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenIndex(
            f"{str(file)!r}, which says what was received first, cannot be read ({error}); restore it, or remove it to "
            "trust what the hub has now"
        ) from error
    return locks


def write_lock(index: Path, source: str, lock: Locked) -> None:
    """Write down what a source was, beside what is known of others; whole or not at all."""
    locks = read_locks(index) | {source: lock}
    fresh = index / f".{LOCK}.{os.getpid()}"
    with fresh.open("w", encoding="utf-8") as out:
        json.dump({name: asdict(each) for name, each in locks.items()}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(index / LOCK)


def read_published(folder: Path) -> Published | None:
    """Return the receipt of a version folder, None where it is another kind of index.

    Raises:
        BrokenIndex: it cannot be read as one.
    """
    try:
        table: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if table.pop("format") != _FORMAT:
            raise ValueError("another format")
        files = {str(name): PublishedFile(**file) for name, file in table.pop("files").items()}
        found = Published(**table, files=files)
        texts = (found.repository, found.revision, found.commit, found.encoder, found.prepared_at)
        if set(files) != set(FILES) or not isinstance(found.rows, int) or not all(isinstance(t, str) for t in texts):
            raise ValueError("a field of another type")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenIndex(f"{str(folder / FILE)!r} is damaged ({error}); {_AGAIN}") from error
    return found
