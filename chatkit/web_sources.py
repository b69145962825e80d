"""Web addresses among the sources of a build, apart from its files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatkit.retrieval.entries import SourceEntry


def split_web(sources: Sequence[str], *, allowed: bool) -> "tuple[tuple[SourceEntry, ...], tuple[str, ...]]":
    """Return an entry for every web address among the sources, and the other sources.

    Raises:
        InvalidRequest: there are addresses and they are not allowed, or one can never be fetched.
    """
    from chatkit.retrieval import web

    pages, others = web.split_pages(sources, allowed=allowed)
    return tuple(pages), tuple(map(str, others))
