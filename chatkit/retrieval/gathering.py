"""Sources to files: paths, folders and glob patterns, in a stable order, each file once. No content is kept."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatkit.errors import InvalidRequest
from chatkit.retrieval.document import utf8
from chatkit.retrieval.entries import Skipped, SourceEntry, SourceFile
from chatkit.retrieval.formats import kinds

__all__ = ["Gathered", "Skipped", "SourceFile", "gather"]


@dataclass(frozen=True, slots=True)
class Gathered:
    """All files of a build.

    Attributes:
        files: in the order of their names.
        others: sources that are no files, in the order given.
        skipped: files that cannot be opened, and patterns that match nothing.
        digest: hex digest of every source name and content, in order; files that could not be read count by reason,
            and other sources that do not know their own digest make it another one each time.
    """

    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...]
    digest: str
    others: tuple[SourceEntry, ...] = ()

    @property
    def entries(self) -> tuple[SourceEntry, ...]:
        """All sources, files first."""
        return (*self.files, *self.others)


def gather(
    sources: Sequence[str | Path], *, others: Sequence[SourceEntry] = (), tell: Callable[[int, int], None]
) -> Gathered:
    """Name every file of `sources` and take its size and digest.

    In folders only files of the kinds that are read are taken, hidden ones are not. A pattern may match nothing.

    Raises:
        InvalidRequest: a path without wildcards does not exist.
    """
    named: dict[Path, str] = {}
    skipped = []
    for source in sources:
        matches = list(_expand(str(source)))
        if not matches:
            skipped.append(Skipped(_label(Path(source), str(source)), "matches no file of a kind that is read"))
        for path, label in matches:
            named.setdefault(path.resolve(), label)
    uses = Counter(named.values())
    files = []
    digest = hashlib.sha256()
    for done, (path, label) in enumerate(sorted(named.items(), key=lambda item: (item[1], item[0])), start=1):
        source = utf8(path.as_posix()) if uses[label] > 1 else label
        try:
            file = _take(path, source)
        except OSError as error:
            skipped.append(Skipped(source, f"cannot be read ({error.strerror or error})"))
            content = hashlib.sha256(str(error).encode()).digest()
        else:
            files.append(file)
            content = bytes.fromhex(file.sha256)
        digest.update(f"{source}\0".encode() + content)
        tell(done, len(named))
    for entry in others:
        digest.update(f"{entry.source}\0{entry.digest or os.urandom(16).hex()}\0".encode())
    return Gathered(tuple(files), tuple(skipped), digest.hexdigest(), tuple(others))


def _expand(source: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of one source with the name that each gets."""
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _in_folder(path)
    elif path.exists():
        yield path, _label(path, path.name)
    elif any(sign in source for sign in "*?["):
        for match in sorted(glob.glob(str(path), recursive=True)):
            if Path(match).is_file() and kinds.is_taken(Path(match)):
                yield Path(match), _label(Path(match), Path(match).name)
    else:
        raise InvalidRequest(f"the source {source!r} does not exist; name a file, a folder or a pattern")


def _in_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    for entry in sorted(folder.rglob("*")):
        inside = entry.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if entry.is_file() and kinds.is_taken(entry):
            yield entry, _label(entry, (Path(folder.resolve().name) / inside).as_posix())


def _label(path: Path, outside: str) -> str:
    """Return the path from the working directory, or `outside` for a file elsewhere: no absolute paths in citations."""
    try:
        return utf8(path.resolve().relative_to(Path.cwd()).as_posix())
    except ValueError:
        return utf8(outside)


def _take(path: Path, source: str) -> SourceFile:
    if not path.is_file():
        raise OSError("is no regular file")
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
        return SourceFile(path, source, content.tell(), digest.hexdigest())
