"""The third stage of a build: the files of a version from staged chunks and their vectors, checked by reading back."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import chatkit
from chatkit.errors import BrokenIndex
from chatkit.retrieval import kinds, lexical, risks, tuning, writing
from chatkit.retrieval.building import embedding, spool
from chatkit.retrieval.building.cache import VectorCache
from chatkit.retrieval.building.keys import text_keys
from chatkit.retrieval.building.plan import BuildOptions, Plan, skipped_of
from chatkit.retrieval.building.progress import Meter
from chatkit.retrieval.building.workplace import Staging
from chatkit.retrieval.entries import Skipped
from chatkit.retrieval.manifest import (
    EncoderEntry,
    Manifest,
    RisksEntry,
    VectorsEntry,
)
from chatkit.retrieval.passages import Passages, PassageWriter
from chatkit.retrieval.vector_writer import VectorWriter
from chatkit.retrieval.vectors import Vectors as OpenVectors

Vectors = NDArray[np.float32]

# Passages that are looked for in a new version, and the share of its own score with which each has to be found: bytes
# in place of numbers take some of it, and a search among lists may miss one and find its neighbour.
_CHECKED = 8
_LEAST_OWN = 0.9
# Passages from which the weight of the dense leg is chosen, or a few more.
_TUNED_ON = 512


def kind_for(passages: int, plan: Plan, options: BuildOptions) -> kinds.VectorKind:
    """Return how the vectors are stored: as the options say, else as their number asks for.

    Raises:
        ConfigError: the options name a kind that there is not.
    """
    return kinds.choose(passages, plan["encoder"]["dim"], options.recall, kind=options.vectors)


def is_of(manifest: Manifest, plan: Plan, options: BuildOptions) -> bool:
    """Return whether a version is what a build of this plan would make."""
    return (
        cuts_alike(manifest, plan)
        and plan["sources_sha256"] == manifest.sources_sha256 != ""
        and manifest.vectors.kind == kind_for(manifest.passages, plan, options).name
        and (not manifest.vectors.search or manifest.vectors.recall == options.recall)
        and (options.scorer is None or manifest.risks == entry_of(options.scorer))
    )


def entry_of(scorer: risks.PassageScorer) -> RisksEntry:
    """Return what a manifest says of the scorer of its passages."""
    return RisksEntry(scorer.version, scorer.categories)


def cuts_alike(manifest: Manifest, plan: Plan) -> bool:
    """Return whether a version's chunks of a source are those that this plan would make."""
    return (
        manifest.encoder == EncoderEntry(**plan["encoder"])
        and manifest.chunker == plan["chunker"]
        and dict(manifest.chunking) == plan["chunking"]
        and manifest.built_by == _built_by()
    )


def write(
    folder: Path,
    name: str,
    staged: Staging,
    cache: VectorCache,
    plan: Plan,
    options: BuildOptions,
    encoder: embedding.IndexingEncoder,
    meter: Meter,
    scores: NDArray[np.float32] | None = None,
) -> Manifest:
    """Write every file of a version into `folder`, durably, and check them.

    The encoder is asked for some 256 vectors at most, by which the weight of the dense leg is chosen. `scores` are
    (passages, categories), by the scorer of the options.

    Raises:
        BrokenIndex: what was written is not what was meant; the disk or a library is at fault.
        MissingExtra: faiss is not installed.
        OSError: the disk is full or cannot be written.
    """
    made_by = EncoderEntry(**plan["encoder"])
    kind = kind_for(staged.counts.passages, plan, options)
    written, stored = _write_legs(folder, staged, cache, made_by, kind, options.recall, meter)
    written.append(
        writing.write_sources(folder, sorted(staged.rows, key=lambda row: (row.source, row.part, row.reason)))
    )
    if scores is not None:
        written.append(risks.write(folder, scores))
    counts = staged.counts
    manifest = Manifest(
        name=name,
        encoder=made_by,
        vectors=stored,
        lexical=lexical.entry(),
        fusion=tuning.choose_fusion(_texts(staged), encoder),
        chunker=plan["chunker"],
        chunking=plan["chunking"],
        documents=counts.documents,
        passages=counts.passages,
        duplicates=counts.duplicates,
        near_duplicates=counts.near_duplicates,
        skipped=sum(bool(row.reason) for row in staged.rows),
        sources_sha256=plan["sources_sha256"] if all(row.digest or row.part for row in staged.rows) else "",
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_by=_built_by(),
        files=writing.entries(folder, written),
        risks=None if scores is None or options.scorer is None else entry_of(options.scorer),
    )
    manifest.write(folder)
    _check(folder, manifest, staged, cache)
    return manifest


def skipped_in(folder: Path) -> tuple[Skipped, ...]:
    """Return what is not in a version, by name.

    Raises:
        BrokenIndex: the version's list of sources cannot be read.
    """
    return skipped_of(writing.read_sources(folder))


def _write_legs(
    folder: Path,
    staged: Staging,
    cache: VectorCache,
    encoder: EncoderEntry,
    kind: kinds.VectorKind,
    recall: float,
    meter: Meter,
) -> tuple[list[Path], VectorsEntry]:
    """Write passages and both legs, row by row in the same order; returns the files and how vectors are searched."""
    shutil.rmtree(folder / lexical.FOLDER, ignore_errors=True)  # of a build that was killed while it wrote
    total = staged.counts.passages
    with (
        closing(PassageWriter(folder)) as passages,
        closing(VectorWriter(folder, encoder.dim, kind, encoder.metric)) as rows,
        closing(lexical.LexicalWriter(folder)) as words,
    ):
        if kind.train_rows:
            rows.train(_sample(staged, cache, encoder, kind.train_rows))
        done = 0
        for chunks, their_vectors in embedding.with_vectors(staged.spool, cache, encoder.passage_prefix):
            own = [entry.chunk for entry in chunks]
            passages.add(own)
            words.add(done, own)
            rows.add(their_vectors)
            done += len(chunks)
            meter.chunks(done, total)
        files, stored = rows.finish(recall)
        return [*passages.finish(), *words.finish(), *files], stored


def _sample(staged: Staging, cache: VectorCache, encoder: EncoderEntry, wanted: int) -> Vectors:
    """Return `wanted` vectors or a few more, of chunks at even distances."""
    every = max(1, staged.counts.passages // wanted)
    sample = np.empty((-(-staged.counts.passages // every), encoder.dim), dtype=np.float32)
    row = taken = 0
    for chunks in spool.read(staged.spool):
        found = _vectors_of(chunks[-row % every :: every], cache, encoder.passage_prefix)
        sample[taken : taken + len(found)] = found
        row, taken = row + len(chunks), taken + len(found)
    return sample


def _texts(staged: Staging) -> list[str]:
    """Return the texts of some chunks at even distances."""
    every = max(1, staged.counts.passages // _TUNED_ON)
    row = 0
    found: list[str] = []
    for chunks in spool.read(staged.spool):
        found += (entry.chunk.text for entry in chunks[-row % every :: every])
        row += len(chunks)
    return found


def _vectors_of(chunks: Sequence[spool.Staged], cache: VectorCache, prefix: str) -> Vectors:
    return cache.vectors(cache.find(text_keys(embedding.embedded_texts(chunks, prefix))))


def _check(folder: Path, manifest: Manifest, staged: Staging, cache: VectorCache) -> None:
    """Read the new version back: hashes, row counts, and that stored chunks find themselves.

    Raises:
        BrokenIndex: what was written is not what was meant; the disk or a library is at fault.
    """
    again = "the version before it is untouched; check the disk and run again"
    try:
        Manifest.read(folder).verify(folder, hashes=True)
        first = next(spool.read(staged.spool))[:_CHECKED]
        _check_words(folder, manifest, first)
        with closing(Passages.open(folder, manifest)), closing(OpenVectors.open(folder, manifest)) as opened:
            own = _vectors_of(first, cache, manifest.encoder.passage_prefix)
            # Several passages may have one vector: their scores are what has to be found, not their rows.
            scores, _ = opened.search(own, 1)
    except BrokenIndex as error:
        raise BrokenIndex(f"{error}; {again}") from error
    expected = np.ones(len(own)) if manifest.metric == "cosine" else (own * own).sum(axis=1)
    worst = int(np.argmin(scores[:, 0] / expected))
    if not scores[worst, 0] > _LEAST_OWN * expected[worst]:
        raise BrokenIndex(
            f"passage {worst} of the new index finds itself with a score of {scores[worst, 0]:.4f}, "
            f"expected {expected[worst]:.4f}; {again}"
        )


def _check_words(folder: Path, manifest: Manifest, first: Sequence[spool.Staged]) -> None:
    """Look for the first passages by their own words, each alone and among all.

    Raises:
        BrokenIndex: the lexical index cannot be read, or one does not find itself.
    """
    with closing(lexical.Lexical.open(folder, manifest)) as opened:
        for row, staged in enumerate(first):
            if not (own := opened.words_of(staged.chunk.embedded)):
                continue
            alone, best = opened.search_words(own, 1, np.array([row])), opened.search_words(own, 1)
            if [found for found, _ in alone] != [row] or not best or not best[0][1] >= alone[0][1] > 0:
                raise BrokenIndex(
                    f"passage {row} of the new index is found by its own words as {alone}, and among all as {best}, "
                    f"expected itself, {row}"
                )


def _built_by() -> str:
    return f"chatkit {chatkit.__version__}"
