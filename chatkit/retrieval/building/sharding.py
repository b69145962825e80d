"""One shard of an index: the part of a build that can run anywhere."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from chatkit.errors import Unavailable
from chatkit.retrieval.building import cutting, workplace
from chatkit.retrieval.building.cache import VectorCache
from chatkit.retrieval.building.cutting import Share, Sources
from chatkit.retrieval.building.embedding import Embedding, IndexingEncoder, InProcess, embed_missing
from chatkit.retrieval.building.plan import (
    BuildOptions,
    Plan,
    ShardReport,
    digest_of,
    plan_of,
    skipped_of,
    told_of_the_disk,
)
from chatkit.retrieval.building.progress import Meter, Tell
from chatkit.retrieval.building.shards import folder_of, write_shard
from chatkit.retrieval.building.staging import Stage
from chatkit.retrieval.building.workplace import Staging, Workplace
from chatkit.retrieval.entries import SourceEntry


def embed_shard(
    sources: Sequence[str | Path],
    out: Path,
    *,
    share: Share,
    encoder: IndexingEncoder,
    is_split: bool = False,
    entries: Sequence[SourceEntry] = (),
    options: BuildOptions | None = None,
    embedding: Embedding | None = None,
    progress: Tell | None = None,
) -> ShardReport:
    """Cut and embed one shard of the sources and write it as plain files; resumable like a build.

    Args:
        sources: all of them, the same for every shard; or this shard's alone with `is_split`.
        out: the folder of shards.
        share: which shard of how many.
        encoder: the same for all shards.
        is_split: the sources were shared out already, by whatever brought them here.
        entries: sources that are no files.
        options: chunking and batch; near duplicates are dropped when the shards are merged.
        embedding: as in `build_index`.
        progress: called in this thread, after every file and every batch.

    Raises:
        InvalidRequest: a source does not exist.
        BadIndex: the folder cannot be written.
        Unavailable: the encoder failed.
    """
    started = time.monotonic()
    options = options or BuildOptions()
    meter = Meter(progress)
    found = cutting.find(sources, entries, meter)
    plan = plan_of(encoder, options.chunking)
    digest = digest_of(plan, sources=cutting.digest_of(cutting.planned_rows(found)) or str(started), share=str(share))
    work = out / f".work-{folder_of(out, share).name}"
    job = _Job(out, share, plan, encoder, embedding or InProcess(encoder), options, meter)
    with told_of_the_disk(f"the shard {share.number}/{share.of}", out), _alone(work):
        staged, embedded = job.run(work, digest, lambda stage: job.cut(found, stage, Share() if is_split else share))
    shutil.rmtree(work, ignore_errors=True)
    return ShardReport(
        folder=folder_of(out, share),
        number=share.number,
        of=share.of,
        documents=staged.counts.documents,
        passages=staged.counts.passages,
        embedded=embedded,
        duplicates=staged.counts.duplicates,
        skipped=skipped_of(staged.rows),
        seconds=round(time.monotonic() - started, 3),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """The making of one shard."""

    out: Path
    share: Share
    plan: Plan
    encoder: IndexingEncoder
    embedding: Embedding
    options: BuildOptions
    meter: Meter

    def cut(self, found: Sources, stage: Stage, part: Share) -> None:
        """Stage the chunks of a part of the sources."""
        self.meter.begin("cut")
        cutting.cut_all(found, stage, self.options.chunking, self.encoder.count_tokens_of, self.meter, share=part)

    def run(self, work: Path, digest: str, fill: Callable[[Stage], None]) -> tuple[Staging, int]:
        """Write the shard of what `fill` stages; returns that, and how many chunks were embedded for it."""
        encoder, meter = self.encoder, self.meter
        place = Workplace(work, digest)
        workplace.remove_others(work, keep=place.folder)
        staged = place.staged(fill, self.options.chunking, near=False)
        meter.begin("embed")
        with VectorCache(work / "vectors", encoder.fingerprint, encoder.dim) as cache:
            total, batch = staged.counts.passages, self.options.batch
            embedded = embed_missing(staged.spool, total, cache, encoder, self.embedding, meter, batch=batch)
            write_shard(self.out, self.share, staged, cache, self.plan, encoder.passage_prefix, meter)
        return staged, embedded


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Be the only one at work on a shard in this folder."""
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Unavailable(
            f"this shard is being made in {str(work.parent)!r} by another process; wait for it"
        ) from error
    try:
        yield
    finally:
        lock.release()
