"""Sources to files: paths, folders and glob patterns, in a stable order, each file once."""

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatkit.errors import InvalidRequest
from chatkit.retrieval.document import utf8
from chatkit.retrieval.parsing import MAX_FILE_BYTES, SUFFIXES


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not in the index, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file and the name that its passages carry."""

    path: Path
    source: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Gathered:
    """All files of a build.

    Attributes:
        digest: hex digest of every source name and content, in order; files that could not be read count by reason.
    """

    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...]
    digest: str


def gather(sources: Sequence[str | Path], *, tell: Callable[[int, int], None]) -> Gathered:
    """Read every file that `sources` names.

    In folders only Markdown, HTML and text files are taken, hidden ones are not. A pattern may match nothing.

    Raises:
        InvalidRequest: a path without wildcards does not exist.
    """
    named: dict[Path, str] = {}
    skipped = []
    for source in sources:
        matches = list(_expand(str(source)))
        if not matches:
            skipped.append(Skipped(_label(Path(source), str(source)), "matches no Markdown, HTML or text file"))
        for path, label in matches:
            named.setdefault(path.resolve(), label)
    labels = list(named.values())
    files = []
    digest = hashlib.sha256()
    for done, (path, label) in enumerate(sorted(named.items(), key=lambda item: (item[1], item[0])), start=1):
        source = label if labels.count(label) == 1 else utf8(path.as_posix())
        try:
            content = _read(path)
        except OSError as error:
            skipped.append(Skipped(source, f"cannot be read ({error.strerror or error})"))
            content = str(error).encode()
        else:
            files.append(SourceFile(path, source, content))
        digest.update(f"{source}\0".encode() + hashlib.sha256(content).digest())
        tell(done, len(named))
    return Gathered(tuple(files), tuple(skipped), digest.hexdigest())


def _expand(source: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of one source with the name that each gets."""
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _in_folder(path)
    elif path.exists():
        yield path, _label(path, path.name)
    elif any(sign in source for sign in "*?["):
        for match in sorted(glob.glob(str(path), recursive=True)):
            if Path(match).is_file() and Path(match).suffix.lower() in SUFFIXES:
                yield Path(match), _label(Path(match), Path(match).name)
    else:
        raise InvalidRequest(f"the source {source!r} does not exist; name a file, a folder or a pattern")


def _in_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    for entry in sorted(folder.rglob("*")):
        inside = entry.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry, _label(entry, (Path(folder.resolve().name) / inside).as_posix())


def _label(path: Path, outside: str) -> str:
    """Return the path from the working directory, or `outside` for a file elsewhere: no absolute paths in citations."""
    try:
        return utf8(path.resolve().relative_to(Path.cwd()).as_posix())
    except ValueError:
        return utf8(outside)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise OSError("is no regular file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise OSError(f"has {size} bytes, at most {MAX_FILE_BYTES} are read")
    return path.read_bytes()
