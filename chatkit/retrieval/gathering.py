"""Sources to files: paths, folders and glob patterns, in a stable order, each file once. No content is kept."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from chatkit.errors import InvalidRequest
from chatkit.retrieval.document import utf8
from chatkit.retrieval.entries import Skipped, SourceFile
from chatkit.retrieval.formats import kinds

__all__ = ["Gathered", "Skipped", "SourceFile", "gather"]

_WILD = "*?["
_ANY_DEPTH = "**"
# Kinds of files that are told by name before the rest of them is a number.
_MOST_KINDS = 12
_LONGEST_SUFFIX = 16


@dataclass(frozen=True, slots=True)
class Gathered:
    """All files of a build.

    Attributes:
        files: in the order of their names.
        skipped: files and folders that cannot be opened, links that are not followed, and patterns that match nothing.
        other_kinds: for each folder and pattern, how many files of which kinds in it are not read.
    """

    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...]
    other_kinds: tuple[Skipped, ...] = ()


def gather(sources: Sequence[str | Path], *, tell: Callable[[int, int], None]) -> Gathered:
    """Name every file of `sources` and take its size and digest.

    In folders only files of the kinds that are read are taken, hidden ones are not. A pattern may match nothing. Links
    in them are followed to files inside, and nowhere else.

    Raises:
        InvalidRequest: a path without wildcards does not exist.
    """
    found = _Found()
    for source in sources:
        before = len(found.named) + found.repeated
        label = _label(Path(source), str(source))
        try:
            others = _expand(str(source), found)
        except OSError as error:
            found.skip(label, _cannot("read", error))
            continue
        if len(found.named) + found.repeated == before:
            found.skip(label, "matches no file of a kind that is read")
        if others:
            found.other_kinds[label] = _told(others)
    uses = Counter(found.named.values())
    files = []
    for done, (path, label) in enumerate(sorted(found.named.items(), key=lambda item: (item[1], item[0])), start=1):
        source = utf8(path.as_posix()) if uses[label] > 1 else label
        try:
            files.append(_take(path, source))
        except OSError as error:
            found.skip(source, _cannot("read", error))
        tell(done, len(found.named))
    return Gathered(tuple(files), _listed(found.skipped), _listed(found.other_kinds))


@dataclass(slots=True)
class _Found:
    """What was met so far: the name of each file, and the reasons for what is left out by its name."""

    named: dict[Path, str] = field(default_factory=dict)
    repeated: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    other_kinds: dict[str, str] = field(default_factory=dict)

    def take(self, path: Path, label: str) -> None:
        self.repeated += path in self.named
        self.named.setdefault(path, label)

    def skip(self, source: str, reason: str) -> None:
        self.skipped.setdefault(source, reason)


def _expand(source: str, found: _Found) -> Counter[str]:
    """Take the files of one source; return how many of which other kinds are in it."""
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:
        raise InvalidRequest(f"the source {source!r} names nobody's home folder; write the path in full") from error
    if path.is_dir():
        return _in_folder(path, (_ANY_DEPTH, "*"), found, named=Path(path.resolve().name))
    if path.exists():
        found.take(path.resolve(), _label(path, path.name))
        return Counter()
    wild = next((at for at, part in enumerate(path.parts) if any(sign in part for sign in _WILD)), None)
    if wild is None:
        raise InvalidRequest(f"the source {source!r} does not exist; name a file, a folder or a pattern")
    parts = path.parts[wild:]
    pattern = (*parts, "*") if parts[-1] == _ANY_DEPTH else parts
    return _in_folder(Path(*path.parts[:wild]), pattern, found, named=None)


def _in_folder(root: Path, pattern: Sequence[str], found: _Found, *, named: Path | None) -> Counter[str]:
    """Take what is below `root` and matches, links to folders not followed; return the numbers of other kinds."""
    others: Counter[str] = Counter()
    home = root.resolve()

    def label(path: Path) -> str:
        return _label(path, (named / path.relative_to(root)).as_posix() if named is not None else path.name)

    for path in _matching(root, pattern, lambda folder, error: found.skip(label(folder), _cannot("listed", error))):
        target = Path(os.path.realpath(path))
        try:
            is_file = path.is_file()
        except OSError as error:
            found.skip(label(path), _cannot("read", error))
            continue
        if path.is_symlink() and not (target.exists() and target.is_relative_to(home)):
            link = label(path.parent) + f"/{utf8(path.name)}"  # not what it leads to
            found.skip(link, "is a link that leads out of its source, or nowhere; name what it leads to")
        elif is_file and kinds.is_taken(path):
            found.take(target, label(path))
        elif is_file:
            others[utf8(kinds.suffix_of(path))[:_LONGEST_SUFFIX] or "without suffix"] += 1
    return others


def _matching(root: Path, pattern: Sequence[str], cannot_be_listed: Callable[[Path, OSError], None]) -> Iterator[Path]:
    """Yield what matches below `root` and is no folder and not hidden, and links to folders that may hold such.

    Args:
        root: where the pattern begins; it may not be there.
        pattern: a name each, with wildcards; `**` stands for any number of folders.
        cannot_be_listed: told of folders.
    """
    if not root.is_dir():
        return

    # Which parts of the pattern may come next: the walk goes once over each folder, whatever the pattern.
    awaited = {str(root): _awaited(pattern, {0})}
    for folder, folders, files in os.walk(root, onerror=lambda error: cannot_be_listed(Path(error.filename), error)):
        places = awaited.pop(folder)
        for name in sorted(files):
            if len(pattern) in _after(pattern, places, name):
                yield Path(folder, name)
        goes_on = []
        for name in sorted(folders):
            below = _after(pattern, places, name) - {len(pattern)}
            if not below:
                continue
            if Path(folder, name).is_symlink():
                yield Path(folder, name)
            else:
                awaited[os.path.join(folder, name)] = below
                goes_on.append(name)
        folders[:] = goes_on


def _after(pattern: Sequence[str], places: set[int], name: str) -> set[int]:
    """Return the places in the pattern that may come after `name`, its length where it may end there."""
    following = set()
    for at in places - {len(pattern)}:
        part = pattern[at]
        if name.startswith(".") and not part.startswith("."):
            continue
        if part == _ANY_DEPTH:
            following.add(at)
        elif fnmatchcase(name, part):
            following.add(at + 1)
    return _awaited(pattern, following)


def _awaited(pattern: Sequence[str], places: set[int]) -> set[int]:
    """Return the places with those that are reached where `**` stands for no folder."""
    reached = set(places)
    for at, part in enumerate(pattern):
        if at in reached and part == _ANY_DEPTH:
            reached.add(at + 1)
    return reached


def _told(others: Counter[str]) -> str:
    kinds_of = [f"{suffix} {count}" for suffix, count in others.most_common(_MOST_KINDS)]
    kinds_of += ["…"] if len(others) > _MOST_KINDS else []
    return f"files of other kinds, which are not read: {others.total()} ({', '.join(kinds_of)})"


def _cannot(be: str, error: OSError) -> str:
    return f"cannot be {be} ({error.strerror or error})"


def _listed(reasons: dict[str, str]) -> tuple[Skipped, ...]:
    return tuple(Skipped(source, reason) for source, reason in reasons.items())


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
