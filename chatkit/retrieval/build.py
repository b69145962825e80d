"""Sources to an index directory, swapped in whole: `<indexes>/<name>/<version>/` and a pointer to the live version.

A build has three stages: sources are cut to chunks on the disk, chunks without a vector are embedded, and the version
is written from both. One that fails or is killed leaves the live version as it was, and the next one goes on where it
stopped: staged chunks are taken over, and every vector that was made is in the cache.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from chatkit.errors import BadIndex, ChatkitError, IndexMismatch, Unavailable
from chatkit.retrieval import layout, versions
from chatkit.retrieval.building import collecting, cutting, merging, scoring, version, workplace
from chatkit.retrieval.building.cache import VectorCache, file_of
from chatkit.retrieval.building.cutting import Share, Sources
from chatkit.retrieval.building.earlier import LiveChunks
from chatkit.retrieval.building.embedding import Embedding, IndexingEncoder, InProcess, embed_missing
from chatkit.retrieval.building.plan import (
    BuildOptions,
    BuildReport,
    Plan,
    digest_of,
    plan_of,
    skipped_of,
    told_of_the_disk,
)
from chatkit.retrieval.building.progress import Meter, Progress, Tell
from chatkit.retrieval.building.shards import Shard
from chatkit.retrieval.building.staging import Stage
from chatkit.retrieval.building.workplace import Staging, Workplace
from chatkit.retrieval.entries import SourceEntry
from chatkit.retrieval.manifest import Manifest

_log = logging.getLogger(__name__)

# The live version by its number.
_Live = tuple[str, Manifest]

__all__ = ["BuildOptions", "BuildReport", "Progress", "build_index", "merge_shards"]


def build_index(
    sources: Sequence[str | Path],
    indexes: Path,
    *,
    name: str,
    encoder: IndexingEncoder,
    chunking: Mapping[str, int] | None = None,
    entries: Sequence[SourceEntry] = (),
    options: BuildOptions | None = None,
    embedding: Embedding | None = None,
    progress: Tell | None = None,
) -> BuildReport:
    """Build the index `name` from files, folders, glob patterns and other sources, unless it is up to date.

    Args:
        sources: paths are looked up from the working directory.
        indexes: the folder of all indexes.
        name: a folder name in it.
        encoder: its fingerprint is noted; only the same encoder can query the index.
        chunking: options of `Chunking`, in place of those in `options`.
        entries: sources that are no files.
        options: everything else.
        embedding: where texts become vectors; in this process unless told, with `encoder` either way.
        progress: called in this thread, after every file and every batch.

    Raises:
        InvalidRequest: a source does not exist, or the name cannot be a folder's.
        BadIndex: nothing could be indexed, or the index could not be written.
        ConfigError: an option of `chunking` is wrong.
        Unavailable: another process is building this index, or the encoder failed.
        MissingExtra: faiss is not installed.
    """
    started = time.monotonic()
    options = (options or BuildOptions()).with_chunking(chunking)
    meter = Meter(progress)
    index = layout.IndexFolder(indexes, name)
    found = cutting.find(sources, entries, meter)
    with index.locked():
        plan = {**plan_of(encoder, options.chunking), "sources_sha256": cutting.digest_of(cutting.planned_rows(found))}
        job = _Job(index, plan, encoder, embedding or InProcess(encoder), options, meter, started)
        return job.run(lambda stage, live: job.cut(found, stage, live))


def merge_shards(
    folders: Sequence[Path],
    indexes: Path,
    *,
    name: str,
    encoder: IndexingEncoder,
    options: BuildOptions | None = None,
    progress: Tell | None = None,
) -> BuildReport:
    """Build the index `name` from all its shards: the same passages and vectors as in one process.

    Args:
        folders: each a shard or a folder of shards, as `embed_shard` wrote them.
        indexes: the folder of all indexes.
        name: a folder name in it.
        encoder: the one that the shards were made with.
        options: kind of the vectors and versions to keep; the chunking is that of the shards.
        progress: called in this thread.

    Raises:
        BadIndex: shards are missing, do not belong together, or the index could not be written.
        BrokenIndex: a shard is damaged.
        IndexMismatch: the shards were made with another encoder, or another prefix before passages.
        Unavailable: another process is building this index.
    """
    started = time.monotonic()
    meter = Meter(progress)
    found = merging.open_all(folders)
    plan = found[0].plan
    if plan["encoder"]["fingerprint"] != encoder.fingerprint:
        raise IndexMismatch(
            f"the shards were made with the encoder {plan['encoder']['fingerprint']!r}, but the one in use is "
            f"{encoder.fingerprint!r}; set --encoder to theirs, or make them again"
        )
    prefix = plan["encoder"]["passage_prefix"]
    if prefix != encoder.passage_prefix:
        raise IndexMismatch(
            f"the shards were made with {prefix!r} before every passage, but the prefix in use is "
            f"{encoder.passage_prefix!r}; set --encoder-passage-prefix to theirs, or make them again"
        )
    options = (options or BuildOptions()).with_chunking(plan["chunking"])
    plan = {**plan, "sources_sha256": cutting.digest_of(merging.rows_of(found))}
    index = layout.IndexFolder(indexes, name)
    with index.locked():
        job = _Job(index, plan, encoder, InProcess(encoder), options, meter, started, tuple(found))
        return job.run(lambda stage, _: merging.stage_merged(found, stage, meter))


@dataclass(frozen=True, slots=True)
class _Job:
    """One build under the lock of its index.

    Attributes:
        shards: where their vectors come from; none when they are made here.
    """

    index: layout.IndexFolder
    plan: Plan
    encoder: IndexingEncoder
    embedding: Embedding
    options: BuildOptions
    meter: Meter
    started: float
    shards: tuple[Shard, ...] = ()

    def run(self, fill: Callable[[Stage, _Live | None], None]) -> BuildReport:
        """Build what `fill` stages, unless the live version is of the same sources in the same way."""
        live = self._live()
        if live is not None and version.is_of(live[1], self.plan, self.options):
            return self._report(*live, 0, up_to_date=True)
        place = Workplace(self.index.folder, digest_of(self.plan, unique="" if self._is_known() else str(self.started)))
        with told_of_the_disk(f"the index {self.index.name!r}", self.index.folder):
            try:
                workplace.remove_others(self.index.folder, keep=place.folder)
                return self._build(place, lambda stage: fill(stage, live))
            except Unavailable:
                raise  # the encoder or a worker failed: the next build goes on from here
            except OSError:
                place.shrink()
                raise
            except ChatkitError:
                place.remove()
                raise

    def cut(self, found: Sources, stage: Stage, live: _Live | None) -> None:
        """Stage the chunks of sources; what has not changed since the live version is not read again."""
        with ExitStack() as opened:
            earlier = None
            if live is not None and version.cuts_alike(live[1], self.plan):
                earlier = opened.enter_context(closing(LiveChunks(self.index.version_folder(live[0]))))
            count = self.encoder.count_tokens_of
            self.meter.begin("cut")
            cutting.cut_all(found, stage, self.options.chunking, count, self.meter, share=Share(), earlier=earlier)

    def _build(self, place: Workplace, fill: Callable[[Stage], None]) -> BuildReport:
        staged = place.staged(fill, self.options.chunking)
        if not staged.counts.passages:
            raise _nothing(staged)
        file = file_of(self.index.folder, self.encoder.fingerprint)
        with VectorCache(file, self.encoder.fingerprint, self.encoder.dim) as cache:
            prefix = self.encoder.passage_prefix
            merging.import_vectors(self.shards, cache, prefix, self.meter)
            self.meter.begin("embed")
            total, batch = staged.counts.passages, self.options.batch
            embedded = embed_missing(staged.spool, total, cache, self.encoder, self.embedding, self.meter, batch=batch)
            scores = None
            if (scorer := self.options.scorer) is not None:
                self.meter.begin("score")
                scores = scoring.scores_of(self.index.folder, staged.spool, total, scorer, prefix, self.meter)
            self.meter.begin("write")
            manifest = version.write(
                place.folder, self.index.name, staged, cache, self.plan, self.options, self.encoder, self.meter, scores
            )
            kept = versions.to_keep(self.index, self.encoder.fingerprint, self.options.keep)
            much = len(cache) > collecting.MOST_SPARE * total
        folder = self.index.publish(place.cleared(), keep=kept)
        if much:
            self._trim()
        return self._report(folder.name, manifest, embedded, up_to_date=False)

    def _trim(self) -> None:
        """Take out of the cache what is spare; the new version is live, whether this succeeds or not."""
        try:
            collecting.trim_cache(self.index)
        except OSError as error:
            _log.warning(
                "the cache of the index %r was not trimmed (%s); `chatkit index gc %s` does it",
                self.index.name,
                error.strerror or error,
                self.index.name,
            )

    def _live(self) -> _Live | None:
        """Return the live version when it is whole: every byte is read, for chunks of it may be taken over."""
        try:
            live = self.index.current()
            manifest = Manifest.read(self.index.version_folder(live))
            manifest.verify(self.index.version_folder(live), hashes=True)
        except BadIndex:
            return None  # none yet, or damaged: build
        return live, manifest

    def _is_known(self) -> bool:
        """Whether it is known before reading what the sources hold."""
        return bool(self.plan["sources_sha256"])

    def _report(self, live: str, manifest: Manifest, embedded: int, *, up_to_date: bool) -> BuildReport:
        return BuildReport(
            name=self.index.name,
            version=live,
            folder=self.index.version_folder(live),
            up_to_date=up_to_date,
            documents=manifest.documents,
            passages=manifest.passages,
            embedded=embedded,
            duplicates=manifest.duplicates,
            near_duplicates=manifest.near_duplicates,
            vectors=manifest.vectors.kind,
            skipped=version.skipped_in(self.index.version_folder(live)),
            seconds=round(time.monotonic() - self.started, 3),
        )


def _nothing(staged: Staging) -> BadIndex:
    reasons = (
        "; ".join(f"{entry.source} {entry.reason}" for entry in skipped_of(staged.rows)[:3]) or "no files were found"
    )
    return BadIndex(f"nothing to index: {reasons}; name files of a kind that is read, or folders that hold some")
