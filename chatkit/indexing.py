"""Indexes made and cleaned up as the settings say: builds here or on Ray, shards, merging, collecting."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatkit import wiring
from chatkit.errors import ModelError
from chatkit.settings import Settings

if TYPE_CHECKING:
    from chatkit.retrieval.build import BuildOptions, BuildReport
    from chatkit.retrieval.building.collecting import Collected
    from chatkit.retrieval.building.embedding import Embedding
    from chatkit.retrieval.building.plan import ShardReport
    from chatkit.retrieval.encoder import SentenceEncoder
    from chatkit.retrieval.entries import SourceEntry

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayPool:
    """Where the embedding stage runs when it runs on Ray.

    Attributes:
        workers: actors, each with an encoder of its own.
        address: of a cluster, `auto` for the one this machine is part of; None starts Ray on this machine alone.
        cpus, gpus: that one actor takes; GPUs may be a fraction.
    """

    workers: int = 2
    address: str | None = None
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a build.

    Attributes:
        sources: files, folders and patterns, looked up from the working directory.
        entries: sources that are no files.
        chunking: options of `retrieval.chunking.Chunking`.
        vectors: kind of the Faiss index; chosen by the number of passages where empty.
        recall: share of the exact nearest neighbours that a search is to find, 0 to 1.
        ray: runs the embedding stage; None for this process.
        scan: let the moderation head score every passage, sentence by sentence, for policies to go by.
    """

    sources: Sequence[str] = ()
    entries: "Sequence[SourceEntry]" = ()
    chunking: Mapping[str, int] = field(default_factory=dict)
    vectors: str = ""
    recall: float = 0.98
    ray: RayPool | None = None
    scan: bool = True


def prepare_index(settings: Settings, asked: Asked, *, name: str, progress: Any) -> "BuildReport":
    """Build the index `name`, unless it is up to date."""
    from chatkit.retrieval import build

    with closing(wiring.open_encoder(settings, bulk=True)) as encoder, _scanned(settings, asked, encoder) as options:
        return build.build_index(
            asked.sources,
            settings.indexes,
            name=name,
            encoder=encoder,
            entries=asked.entries,
            options=options,
            embedding=_embedding(settings, asked.ray),
            progress=progress,
        )


def prepare_shard(
    settings: Settings, asked: Asked, *, shard: str, out: Path, is_split: bool, progress: Any
) -> "ShardReport":
    """Cut and embed one shard, `i/n`, into the folder `out`."""
    from chatkit.retrieval.building import sharding, shards

    share = shards.share_of(shard)
    with closing(wiring.open_encoder(settings, bulk=True)) as encoder:
        return sharding.embed_shard(
            asked.sources,
            out,
            share=share,
            encoder=encoder,
            is_split=is_split,
            entries=asked.entries,
            options=_options(settings, asked),
            embedding=_embedding(settings, asked.ray),
            progress=progress,
        )


def merge_index(
    settings: Settings,
    folders: Sequence[Path],
    *,
    name: str,
    vectors: str,
    recall: float,
    progress: Any,
    scan: bool = True,
) -> "BuildReport":
    """Build the index `name` from all its shards."""
    from chatkit.retrieval import build

    asked = Asked(vectors=vectors, recall=recall, scan=scan)
    with closing(wiring.open_encoder(settings, bulk=True)) as encoder, _scanned(settings, asked, encoder) as options:
        return build.merge_shards(
            folders,
            settings.indexes,
            name=name,
            encoder=encoder,
            options=options,
            progress=progress,
        )


def collect_index(settings: Settings, name: str) -> "Collected":
    """Remove what the index `name` needs no more; `settings.keep_versions` older versions stay."""
    from chatkit.retrieval.building import collecting

    return collecting.collect(settings.indexes, name, keep=settings.keep_versions)


def _options(settings: Settings, asked: Asked) -> "BuildOptions":
    from chatkit.retrieval.build import BuildOptions

    options = BuildOptions(vectors=asked.vectors, recall=asked.recall, keep=settings.keep_versions)
    return options.with_chunking(asked.chunking)


@contextmanager
def _scanned(settings: Settings, asked: Asked, encoder: "SentenceEncoder") -> "Iterator[BuildOptions]":
    """Yield the options of a build, with what scores its passages where that is asked for and can be opened.

    Passages without scores are judged when they are found, so an index can do without.
    """
    options = _options(settings, asked)
    if not asked.scan:
        yield options
        return
    try:
        scorer, own = wiring.open_passage_scores(settings, encoder)
    except ModelError as error:
        _log.warning("passages are not scanned: %s", error)
        yield options
        return
    try:
        yield replace(options, scorer=scorer)
    finally:
        if own is not encoder:
            own.close()


def _embedding(settings: Settings, ray: RayPool | None) -> "Embedding | None":
    if ray is None:
        return None
    from chatkit.retrieval.building.on_ray import OnRay

    opened = partial(wiring.open_encoder, settings, bulk=True)
    return OnRay(opened, workers=ray.workers, address=ray.address, cpus=ray.cpus, gpus=ray.gpus)
