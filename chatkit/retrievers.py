"""Retrievers that are no index: a search API, or code of the operator's."""

import importlib
from pathlib import Path
from typing import Any, Protocol

from chatkit.errors import ConfigError
from chatkit.protocols import Retriever


class OpenRetriever(Retriever, Protocol):
    """A retriever that has been opened."""

    def close(self) -> None:
        """Let running searches end and let go of what is open."""
        ...


def open_other(named: str) -> OpenRetriever:
    """Open a retriever that is no index, as the setting `retriever` names it.

    Raises:
        ConfigError: its file or module is missing or wrong.
    """
    kind, _, rest = named.partition(":")
    if kind == "http":
        from chatkit.retrieval.http import HttpRetriever, read_search

        return HttpRetriever(read_search(Path(rest).expanduser()))
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
