"""Opening whichever kind of index a folder holds: one built here, or a copy of OpenChatKit's."""

from collections.abc import Callable
from pathlib import Path

from chatkit.protocols import Encoder
from chatkit.retrieval import layout, published, versions
from chatkit.retrieval.index import SearchOptions, VectorIndex
from chatkit.retrieval.wikipedia import WikipediaIndex, WikipediaRetriever

OpenIndex = VectorIndex | WikipediaRetriever


def open_index(
    folder: Path,
    encoder: Encoder,
    *,
    options: SearchOptions | None = None,
    encoders: Callable[[str], Encoder | None] = lambda source: None,
) -> OpenIndex:
    """Open the live version of the index in `folder`.

    Args:
        folder: `<indexes>/<name>`.
        encoder: the service's own.
        options: how it is searched.
        encoders: opens the encoder that a published index names; None where that is the service's own.

    Raises:
        BadIndex: there is no index, or it cannot be used with its encoder.
        ModelError: the encoder that it names was not pulled.
        MissingExtra: faiss is not installed.
    """
    options = options or SearchOptions()
    index = layout.IndexFolder(folder.parent, folder.name)
    pointer = index.pointer()
    version = index.version_folder(pointer.text) if pointer and layout.VERSION.fullmatch(pointer.text) else None
    receipt = published.read_published(version) if version is not None else None
    if version is None or receipt is None:
        return VectorIndex.open(folder, encoder, options=options)
    with versions.advised(index, None):
        receipt.check(version)
    own = encoders(receipt.encoder) if receipt.encoder else None
    try:
        opened = WikipediaIndex(version, own or encoder)
    except BaseException:
        _close(own)
        raise
    return WikipediaRetriever(opened, name=index.name, min_score=options.min_score, on_close=lambda: _close(own))


def _close(encoder: Encoder | None) -> None:
    close = getattr(encoder, "close", None)
    if close is not None:
        close()
