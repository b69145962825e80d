"""The manifest: what an index was made of and with, and the hash of every file in it."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenIndex
from chatkit.retrieval.checkpoint import sha256_of
from chatkit.retrieval.kinds import KINDS

FILE = "manifest.json"
FORMAT = 2

# The files that every version has beside this one; others are named in the manifest alone.
VECTORS = "vectors.faiss"
PASSAGES = "passages.parquet"
SOURCES = "sources.parquet"
# Only where the passages were scored.
RISKS = "risks.npy"
# A manifest takes about 2 KB; one past this is no manifest.
_MOST_BYTES = 2**20
_MOST_COUNT = 2**63 - 1
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"
_FILE_NAME = re.compile(rf"{_PART}(?:/{_PART})?")
_TEXTS = ("name", "chunker", "sources_sha256", "built_at", "built_by")
_COUNTS = ("documents", "passages", "duplicates", "near_duplicates", "skipped")
METRICS = ("cosine", "ip")

# The smallest files are hashed when an index is opened, as many as come to this in all; of the others sizes are
# compared, so that a large index opens in less than a second. Bytes.
HASHED_AT_OPEN = 128 * 2**20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the index: its size in bytes and hex digest."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class EncoderEntry:
    """What made the vectors, and what has to be done alike with a query.

    Attributes:
        fingerprint: another one gives vectors that cannot be compared.
        dim: length of one vector.
        pooling: how token vectors become one: `mean`, `cls`, ….
        normalised: the encoder's vectors have length one.
        metric: `cosine` or `ip`, the inner product.
        query_prefix, passage_prefix: what stands before a query and before a passage when it is embedded.
    """

    fingerprint: str
    name: str
    dim: int
    pooling: str = "mean"
    normalised: bool = True
    metric: str = "cosine"
    query_prefix: str = ""
    passage_prefix: str = ""


@dataclass(frozen=True, slots=True)
class VectorsEntry:
    """How the vectors are stored.

    Attributes:
        kind: one of `kinds.KINDS`.
        factory: what Faiss calls it.
        search: parameters of a search: `ef`, `nprobe`, `k_factor`, as far as the kind has them.
        recall: that they were chosen for, 0 to 1; 0 where that is not known.
    """

    kind: str
    factory: str
    search: Mapping[str, int] = field(default_factory=dict)
    recall: float = 0.0


@dataclass(frozen=True, slots=True)
class LexicalEntry:
    """The engine of the lexical index and how it cuts words."""

    engine: str
    analyser: str


@dataclass(frozen=True, slots=True)
class FusionEntry:
    """How the two legs are weighed.

    Attributes:
        dense_weight: of the dense leg, 0 to 1; the rest is the lexical one's.
        tuned_on: what the weight was chosen on.
        background: mean cosine of unrelated passages with this encoder, 0 to 1.
    """

    dense_weight: float = 1.0
    tuned_on: str = "default"
    background: float = 0.0


@dataclass(frozen=True, slots=True)
class RisksEntry:
    """What scored the passages, and the categories in the order of the columns."""

    version: str
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of an index.

    Attributes:
        lexical: None where there is no lexical index.
        duplicates: chunks left out because their words are in the index already.
        near_duplicates: chunks left out that differ from one in the index in spelling or markup only.
        skipped: how many sources were left out; `sources.parquet` has the reasons.
        sources_sha256: of every source's name and content, in order.
        built_at: UTC, ISO 8601.
        files: name → entry; a name may hold one slash.
        risks: None where the passages were not scored.
    """

    name: str
    encoder: EncoderEntry
    vectors: VectorsEntry
    lexical: LexicalEntry | None
    fusion: FusionEntry
    chunker: str
    chunking: Mapping[str, int | float]
    documents: int
    passages: int
    duplicates: int
    near_duplicates: int
    skipped: int
    sources_sha256: str
    built_at: str
    built_by: str
    files: Mapping[str, FileEntry]
    format: int = FORMAT
    risks: RisksEntry | None = None

    @property
    def fingerprint(self) -> str:
        """Of the encoder."""
        return self.encoder.fingerprint

    @property
    def dim(self) -> int:
        """Length of one vector."""
        return self.encoder.dim

    @property
    def metric(self) -> str:
        """`cosine` or `ip`."""
        return self.encoder.metric

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
            hashes: hash every byte, or none; the smallest files up to HASHED_AT_OPEN in all unless told.

        Raises:
            BrokenIndex: a file is missing or was changed, naming it.
        """
        room = HASHED_AT_OPEN if hashes is None else _MOST_COUNT if hashes else -1
        for name, entry in sorted(self.files.items(), key=lambda item: item[1].size):
            room -= entry.size
            file = folder / name
            try:
                size = file.stat().st_size
                if size != entry.size:
                    raise broken(file, f"has {size} bytes, expected {entry.size}")
                if room >= 0 and sha256_of(file) != entry.sha256:
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
    table = {"risks": None, **table}  # releases that scored no passages did not write it
    names = {field.name for field in dataclasses.fields(Manifest)}
    if wrong := sorted(table.keys() ^ names):
        raise ValueError(f"the field {_shown(wrong[0])} is {'missing' if wrong[0] in names else 'unknown'}")
    chunking = _table(table["chunking"], "chunking").items()
    values: dict[str, Any] = {name: _text(table[name], name) for name in _TEXTS}
    values |= {name: _count(table[name], name) for name in _COUNTS}
    return Manifest(
        **values,
        encoder=_encoder(table["encoder"]),
        vectors=_vectors(table["vectors"]),
        lexical=None if table["lexical"] is None else LexicalEntry(**_texts(table["lexical"], "lexical", LexicalEntry)),
        fusion=_fusion(table["fusion"]),
        chunking={_text(name, "an option of chunking"): _number(value, "chunking") for name, value in chunking},
        files=_files(table["files"]),
        risks=None if table["risks"] is None else _risks(table["risks"], table["files"]),
    )


def _risks(value: Any, files: Mapping[str, Any]) -> RisksEntry:
    row = _fields(value, "risks", RisksEntry)
    if not isinstance(row["categories"], list) or RISKS not in files:
        raise ValueError(f"categories of risks is {_shown(row['categories'])}, expected a list and the file {RISKS}")
    return RisksEntry(
        _text(row["version"], "version of risks"),
        tuple(_text(name, "a category of risks") for name in row["categories"]),
    )


def _encoder(value: Any) -> EncoderEntry:
    row = _fields(value, "encoder", EncoderEntry)
    for name, each in row.items():
        if name not in ("dim", "normalised"):
            _text(each, f"{name} of encoder")
    _count(row["dim"], "dim")
    if not isinstance(row["normalised"], bool):
        raise ValueError(f"normalised is {_shown(row['normalised'])}, expected true or false")
    if row["metric"] not in METRICS:
        raise ValueError(f"metric is {_shown(row['metric'])}, expected {' or '.join(METRICS)}")
    return EncoderEntry(**row)


def _vectors(value: Any) -> VectorsEntry:
    row = _fields({"recall": 0.0, **_table(value, "vectors")}, "vectors", VectorsEntry)
    search = _table(row["search"], "search").items()
    if row["kind"] not in KINDS:
        raise ValueError(f"kind of vectors is {_shown(row['kind'])}, expected one of {', '.join(KINDS)}")
    return VectorsEntry(
        row["kind"],
        _text(row["factory"], "factory of vectors"),
        {_text(name, "a parameter of search"): _count(each, "search") for name, each in search},
        float(_number(row["recall"], "recall of vectors")),
    )


def _fusion(value: Any) -> FusionEntry:
    row = _fields(value, "fusion", FusionEntry)
    shares = {name: _number(row[name], name) for name in ("dense_weight", "background")}
    for name, share in shares.items():
        if share > 1:
            raise ValueError(f"{name} is {_shown(share)}, expected a number from 0 to 1")
    return FusionEntry(
        **{name: float(share) for name, share in shares.items()}, tuned_on=_text(row["tuned_on"], "tuned_on")
    )


def _files(value: Any) -> dict[str, FileEntry]:
    files = {}
    for name, entry in _table(value, "files").items():
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(
                f"a file is named {_shown(name)}, expected letters, digits, '.', '_' or '-', in one folder at most"
            )
        row = _table(entry, name, {"size", "sha256"})
        files[name] = FileEntry(_count(row["size"], f"size of {name}"), _text(row["sha256"], f"sha256 of {name}"))
    if missing := {VECTORS, PASSAGES, SOURCES} - files.keys():
        raise ValueError(f"files has no {min(missing)}")
    return files


def _fields(value: Any, name: str, kind: type[Any]) -> dict[str, Any]:
    return _table(value, name, {each.name for each in dataclasses.fields(kind)})


def _texts(value: Any, name: str, kind: type[Any]) -> dict[str, str]:
    return {key: _text(each, f"{key} of {name}") for key, each in _fields(value, name, kind).items()}


def _table(value: Any, name: str, keys: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and value.keys() != keys):
        with_keys = f" with {' and '.join(sorted(keys))}" if keys else ""
        raise ValueError(f"{name} is {_shown(value)}, expected an object{with_keys}")
    return value


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_COUNT:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number of 0 or more")
    return value


def _number(value: Any, name: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_COUNT:
        raise ValueError(f"{name} is {_shown(value)}, expected a number of 0 or more")
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
