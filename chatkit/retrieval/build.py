"""Files to an index directory, swapped in whole: `<indexes>/<name>/<version>/` and a pointer to the live version.

A build that fails, is killed or fills the disk leaves the live version as it was; the next build removes what it left.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import chatkit
from chatkit.errors import BadIndex, BrokenIndex
from chatkit.retrieval import layout, versions, writing
from chatkit.retrieval.apart import PageReader
from chatkit.retrieval.chunking import CHUNKER, Chunk, Chunking, cut
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.gathering import Gathered, Skipped, gather
from chatkit.retrieval.manifest import EncoderEntry, FusionEntry, Manifest, VectorsEntry
from chatkit.retrieval.parsing import parse

# Chunks embedded between two reports of progress.
_EMBED_SLICE = 128


class IndexingEncoder(Protocol):
    """What a build needs of an encoder."""

    @property
    def dim(self) -> int:
        """Length of one vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names everything that decides the vectors."""
        ...

    def count_tokens_of(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, special tokens included."""
        ...

    def encode_now(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), dim) float32 L2-normalised vectors."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is; `chunks_total` is 0 until all files are cut."""

    stage: str
    files: int
    files_total: int
    chunks: int = 0
    chunks_total: int = 0
    chunks_per_s: float = 0.0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        up_to_date: sources and settings are those of the live version, nothing was built.
        embedded: chunks that the encoder ran on.
        duplicates: chunks left out because their words are in the index already.
    """

    name: str
    version: str
    folder: Path
    up_to_date: bool
    documents: int
    passages: int
    embedded: int
    duplicates: int
    skipped: tuple[Skipped, ...]
    seconds: float


def build_index(
    sources: Sequence[str | Path],
    indexes: Path,
    *,
    name: str,
    encoder: IndexingEncoder,
    chunking: Mapping[str, int] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Build the index `name` from files, folders and glob patterns, unless it is up to date.

    Args:
        sources: looked up from the working directory.
        indexes: the folder of all indexes.
        name: a folder name in it.
        encoder: its fingerprint is noted; only the same encoder can query the index.
        chunking: options of `Chunking`.
        progress: called in this thread, after every file and every few chunks.

    Raises:
        InvalidRequest: a source does not exist, or the name cannot be a folder's.
        BadIndex: nothing could be indexed, or the index could not be written.
        ConfigError: an option of `chunking` is wrong.
        Unavailable: another process is building this index.
        MissingExtra: faiss is not installed.
    """
    started = time.monotonic()
    options = Chunking.from_options(chunking)
    tell = progress or (lambda _: None)
    index = layout.IndexFolder(indexes, name)
    with index.locked():
        gathered = gather(sources, tell=lambda done, total: tell(Progress("read", done, total)))
        plan = _plan(name, encoder, options, gathered)
        live = _live_if_same(index, plan)
        if live is not None:
            version, manifest = live
            embedded = 0
        else:
            manifest, folder = _build(index, plan, options, encoder, gathered, tell)
            version, embedded = folder.name, manifest.passages
        return BuildReport(
            name=name,
            version=version,
            folder=index.version_folder(version),
            up_to_date=live is not None,
            documents=manifest.documents,
            passages=manifest.passages,
            embedded=embedded,
            duplicates=manifest.duplicates,
            skipped=tuple(
                Skipped(row.source, row.skipped)
                for row in writing.read_sources(index.version_folder(version))
                if row.skipped
            ),
            seconds=round(time.monotonic() - started, 3),
        )


def _plan(name: str, encoder: IndexingEncoder, options: Chunking, gathered: Gathered) -> Manifest:
    """Return the manifest as far as it is known before anything is embedded."""
    return Manifest(
        name=name,
        encoder=EncoderEntry(encoder.fingerprint, getattr(encoder, "name", ""), encoder.dim),
        vectors=VectorsEntry("flat", "Flat"),
        lexical=None,
        fusion=FusionEntry(),
        chunker=CHUNKER,
        chunking={"max_tokens": options.max_tokens},
        documents=0,
        passages=0,
        duplicates=0,
        near_duplicates=0,
        skipped=0,
        sources_sha256=gathered.digest,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_by=f"chatkit {chatkit.__version__}",
        files={},
    )


def _live_if_same(index: layout.IndexFolder, plan: Manifest) -> tuple[str, Manifest] | None:
    """Return the live version when it is whole and was made from the same sources in the same way."""
    try:
        version = index.current()
        manifest = Manifest.read(index.version_folder(version))
        manifest.verify(index.version_folder(version))
    except BadIndex:
        return None  # none yet, or damaged: build
    return (version, manifest) if manifest.same_content(plan) else None


def _build(
    index: layout.IndexFolder,
    plan: Manifest,
    options: Chunking,
    encoder: IndexingEncoder,
    gathered: Gathered,
    tell: Callable[[Progress], None],
) -> tuple[Manifest, Path]:
    index.remove_leftovers()
    chunks, plan, rows = _cut_all(gathered, plan, options, encoder, tell)
    vectors = _embed(chunks, encoder, len(gathered.files), plan.skipped, tell)
    try:
        with index.building() as beside:
            files, entry = writing.write_both(beside, chunks, vectors)
            files.append(writing.write_sources(beside, rows))
            manifest = replace(plan, passages=len(chunks), vectors=entry, files=writing.entries(beside, files))
            manifest.write(beside)
            _check(beside, manifest, chunks, vectors)
            return manifest, index.publish(beside, keep=versions.to_keep(index, plan.fingerprint))
    except OSError as error:
        raise BadIndex(
            f"the index {plan.name!r} could not be written to {str(index.folder)!r} ({error.strerror or error}); "
            f"the version before it, if there was one, is untouched; free some space or set --home, then run again"
        ) from error


def _cut_all(
    gathered: Gathered,
    plan: Manifest,
    options: Chunking,
    encoder: IndexingEncoder,
    tell: Callable[[Progress], None],
) -> tuple[list[Chunk], Manifest, list[writing.SourceRow]]:
    """Cut every file; one that cannot be read is noted with its reason and left out."""
    skipped = list(gathered.skipped)
    rows: list[writing.SourceRow] = []
    chunks: dict[bytes, Chunk] = {}
    documents = duplicates = 0
    with PageReader() as pages:
        for done, file in enumerate(gathered.files, start=1):
            try:
                document = parse(file.path, file.source, file.content, read_html=pages.read)
                pieces = list(cut(document, options, encoder.count_tokens_of))
                if not pieces:
                    raise Unreadable("has headings only, nothing to retrieve")
            except Unreadable as error:
                skipped.append(Skipped(file.source, str(error)))
            else:
                documents += 1
                rows.append(writing.SourceRow(file.source, "", 1, len(pieces)))
                for piece in pieces:
                    if chunks.setdefault(piece.sameness, piece) is not piece:
                        duplicates += 1
            tell(Progress("cut", done, len(gathered.files), chunks=len(chunks), skipped=len(skipped)))
    if not chunks:
        reasons = "; ".join(f"{entry.source} {entry.reason}" for entry in skipped[:3]) or "no files were found"
        raise BadIndex(f"nothing to index: {reasons}; name Markdown, HTML or text files, or folders that hold some")
    rows += [writing.SourceRow(entry.source, skipped=entry.reason) for entry in skipped]
    plan = replace(plan, documents=documents, duplicates=duplicates, skipped=len(skipped))
    return list(chunks.values()), plan, rows


def _embed(
    chunks: list[Chunk], encoder: IndexingEncoder, files: int, skipped: int, tell: Callable[[Progress], None]
) -> NDArray[np.float32]:
    vectors = np.empty((len(chunks), encoder.dim), dtype=np.float32)
    started = time.monotonic()
    for start in range(0, len(chunks), _EMBED_SLICE):
        part = chunks[start : start + _EMBED_SLICE]
        vectors[start : start + len(part)] = encoder.encode_now([chunk.embedded for chunk in part])
        done = start + len(part)
        rate = done / max(time.monotonic() - started, 1e-9)
        tell(Progress("embed", files, files, done, len(chunks), round(rate, 1), skipped))
    return vectors


def _check(folder: Path, manifest: Manifest, chunks: list[Chunk], vectors: NDArray[Any]) -> None:
    """Read the new version back: hashes, row counts, and that stored chunks find themselves.

    Raises:
        BrokenIndex: what was written is not what was meant; the disk or a library is at fault.
    """
    try:
        Manifest.read(folder).verify(folder, hashes=True)
        index, table = writing.read_both(folder, manifest)
    except BrokenIndex as error:
        raise BrokenIndex(f"{error}; the version before it is untouched; check the disk and run again") from error
    table.close()
    try:
        _find_themselves(index, chunks, vectors)
    finally:
        index.close()


def _find_themselves(index: Any, chunks: list[Chunk], vectors: NDArray[Any]) -> None:
    for row in {0, len(chunks) // 2, len(chunks) - 1}:
        scores, _ = index.search(vectors[row : row + 1], 1)
        if not scores[0, 0] > 1 - 1e-3:
            raise BrokenIndex(
                f"passage {row} of the new index finds itself with a score of {scores[0, 0]:.4f}, expected 1; "
                f"the version before it is untouched; run again"
            )
