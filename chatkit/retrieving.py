"""The part of the composition that finds passages: an index with its search, a search API, or code of one's own."""

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chatkit.errors import ConfigError
from chatkit.protocols import Encoder, Retriever
from chatkit.settings import Settings

if TYPE_CHECKING:
    from chatkit.retrieval.index import SearchOptions


class OpenRetriever(Retriever, Protocol):
    """A retriever that has been opened."""

    def close(self) -> None:
        """Let running searches end and let go of what is open."""
        ...


def open_retriever(
    settings: Settings, encoder: Encoder, encoders: Callable[[str], Encoder | None], scored_by: Callable[[], str]
) -> OpenRetriever | None:
    """Open the search API of the settings, or the index that they name, and others when requests name them.

    None where the settings name neither.

    Args:
        settings: `retriever`, `index` and how it is searched.
        encoder: the service's own.
        encoders: opens another one by its source; None where that is the service's own.
        scored_by: returns the version of the scorer whose stored scores of passages may be used.

    Raises:
        BadIndex: there is no such index, or it cannot be used.
        ConfigError: the search API's file is missing or wrong.
    """
    if settings.retriever:
        return _open_other(settings.retriever)
    if not settings.index:
        return None
    from chatkit.retrieval.live import LiveIndexes

    names = {name.strip() for name in settings.request_indexes.split(",")}
    return LiveIndexes(
        settings.indexes,
        encoder,
        default=settings.index,
        named=None if "*" in names else names,
        options=replace(search_options(settings), scored_by=scored_by()),
        encoders=encoders,
    )


def search_options(settings: Settings) -> "SearchOptions":
    """Return how indexes are searched, with the reranker opened where the settings name one.

    Raises:
        ModelError: the reranker was not pulled or is of another kind.
    """
    from chatkit.models import sources
    from chatkit.retrieval.index import SearchOptions
    from chatkit.retrieval.rerank import CrossEncoder

    reranker = None
    if settings.reranker:
        reranker = CrossEncoder(sources.resolve(settings.reranker, models_dir=settings.models))
    return SearchOptions(
        min_score=settings.min_score,
        dense_weight=None if settings.dense_weight < 0 else settings.dense_weight,
        reranker=reranker,
        neighbours=settings.neighbours,
        alike=settings.neighbour_score,
    )


def _open_other(named: str) -> OpenRetriever:
    """Open a retriever that is no index, as the setting `retriever` names it.

    Raises:
        ConfigError: its file or module is missing or wrong.
    """
    kind, _, rest = named.partition(":")
    if kind == "http":
        from chatkit.retrieval.http import HttpRetriever, read_search

        return HttpRetriever(read_search(Path(os.path.expanduser(rest))))
    module, _, name = rest.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"retriever is {named!r}, which cannot be imported ({error}); set PYTHONPATH?") from error
    return _Own(made)


class _Own:
    """A retriever of the user's, which need not have a `close`."""

    def __init__(self, made: Any) -> None:
        self.search = made.search
        self.close = getattr(made, "close", lambda: None)
