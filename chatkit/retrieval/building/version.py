"""The third stage of a build: the files of a version from staged chunks and their vectors, checked by reading back."""

import os
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import chatkit
from chatkit.errors import BrokenIndex
from chatkit.retrieval import vectors
from chatkit.retrieval.building import embedding, spool, staging
from chatkit.retrieval.building.cache import VectorCache
from chatkit.retrieval.building.keys import text_keys
from chatkit.retrieval.building.plan import BuildOptions, Plan
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.building.workplace import Staging
from chatkit.retrieval.checkpoint import sha256_of
from chatkit.retrieval.manifest import (
    SOURCES,
    EncoderEntry,
    FileEntry,
    FusionEntry,
    Manifest,
    VectorsEntry,
)
from chatkit.retrieval.passages import PassageWriter

Vectors = NDArray[np.float32]

# Vectors that a quantiser learns from, taken evenly from the whole index.
_SAMPLE = 131_072


def kind_for(passages: int, plan: Plan, options: BuildOptions) -> vectors.VectorKind:
    """Return how the vectors are stored: as the options say, else as their number asks for.

    Raises:
        ConfigError: the options name a kind that there is not.
    """
    return vectors.choose(passages, plan["encoder"]["dim"], options.recall or vectors.RECALL, kind=options.vectors or None)


def is_of(manifest: Manifest, plan: Plan, options: BuildOptions) -> bool:
    """Return whether a version is what a build of this plan would make."""
    return (
        cuts_alike(manifest, plan)
        and plan["sources_sha256"] == manifest.sources_sha256 != ""
        and manifest.vectors.kind == kind_for(manifest.passages, plan, options).name
    )


def cuts_alike(manifest: Manifest, plan: Plan) -> bool:
    """Return whether a version's chunks of a source are those that this plan would make."""
    return (
        manifest.encoder == EncoderEntry(**plan["encoder"])
        and manifest.chunker == plan["chunker"]
        and dict(manifest.chunking) == plan["chunking"]
        and manifest.built_by == _built_by()
    )


def write(
    folder: Path, name: str, staged: Staging, cache: VectorCache, plan: Plan, options: BuildOptions, meter: Meter
) -> Manifest:
    """Write every file of a version into `folder`, durably, and check them.

    Raises:
        BrokenIndex: what was written is not what was meant; the disk or a library is at fault.
        MissingExtra: faiss is not installed.
        OSError: the disk is full or cannot be written.
    """
    encoder = EncoderEntry(**plan["encoder"])
    kind = kind_for(staged.counts.passages, plan, options)
    written = _write_legs(folder, staged, cache, encoder, kind, meter)
    staging.write_rows(folder / SOURCES, sorted(staged.rows, key=lambda row: (row.source, row.part, row.reason)))
    counts = staged.counts
    manifest = Manifest(
        name=name,
        encoder=encoder,
        vectors=VectorsEntry(kind.name, kind.factory, dict(kind.search)),
        lexical=None,
        fusion=FusionEntry(),
        chunker=plan["chunker"],
        chunking=plan["chunking"],
        documents=counts.documents,
        passages=counts.passages,
        duplicates=counts.duplicates,
        near_duplicates=counts.near_duplicates,
        skipped=sum(bool(row.reason) for row in staged.rows),
        sources_sha256=plan["sources_sha256"],
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_by=_built_by(),
        files={str(file.relative_to(folder)): _entry(file) for file in [*written, folder / SOURCES]},
    )
    manifest.write(folder)
    _check(folder, manifest, staged, cache)
    return manifest


def _write_legs(
    folder: Path, staged: Staging, cache: VectorCache, encoder: EncoderEntry, kind: vectors.VectorKind, meter: Meter
) -> list[Path]:
    """Write passages and vectors row by row in the same order; returns the files."""
    total = staged.counts.passages
    with (
        closing(PassageWriter(folder)) as passages,
        closing(vectors.VectorWriter(folder, encoder.dim, kind, encoder.metric)) as rows,
    ):
        if kind.is_trained:
            rows.train(_sample(staged, cache, encoder.passage_prefix))
        done = 0
        for chunks, their_vectors in embedding.with_vectors(staged.spool, cache, encoder.passage_prefix):
            passages.add([entry.chunk for entry in chunks])
            rows.add(their_vectors)
            done += len(chunks)
            meter.chunks(done, total)
        return [*passages.finish(), rows.finish()]


def _sample(staged: Staging, cache: VectorCache, prefix: str) -> Vectors:
    """Return vectors of chunks at even distances."""
    every = max(1, staged.counts.passages // _SAMPLE)
    row = 0
    found = []
    for chunks in spool.read(staged.spool):
        taken = chunks[-row % every :: every]
        row += len(chunks)
        found.append(_vectors_of(taken, cache, prefix))
    return np.concatenate(found)


def _vectors_of(chunks: Sequence[spool.Staged], cache: VectorCache, prefix: str) -> Vectors:
    return cache.vectors(cache.find(text_keys(embedding.embedded_texts(chunks, prefix))))


def _built_by() -> str:
    return f"chatkit {chatkit.__version__}"


def _entry(file: Path) -> FileEntry:
    """Flush a file to the disk and describe it."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return FileEntry(file.stat().st_size, sha256_of(file))
