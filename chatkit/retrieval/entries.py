"""What a build reads: files and other sources of documents, and what it could not read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chatkit.retrieval.document import Document


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is not in the index, and why: a file, or a part of one."""

    source: str
    reason: str


class DocumentReader(Protocol):
    """Reads files; `apart.Reader` is one."""

    def read(self, file: "SourceFile") -> Iterator[Document]:
        """Yield the documents of one file as they are read.

        Raises:
            Unreadable: the message is the reason. Documents that came before it are whole.
        """
        ...

    def leave_out(self, source: str, reason: str) -> None:
        """Note what is left out of a source that is read otherwise."""
        ...


class SourceEntry(Protocol):
    """One source of documents: a file, a streamed data set, a page of the web."""

    @property
    def source(self) -> str:
        """The name that its documents carry, or that theirs begin with."""
        ...

    @property
    def digest(self) -> str:
        """Hex digest that changes with the content; empty where that is known only once it is read."""
        ...

    def documents(self, reader: DocumentReader) -> Iterator[Document]:
        """Yield its documents, in the same order each time, in bounded memory.

        Raises:
            Unreadable: the message is the reason. Documents that came before it are whole.
        """
        ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file and the name that its passages carry. Its content is read when its documents are.

    Attributes:
        size: bytes, as they were when it was gathered.
        sha256: hex digest of the content, as it was then.
    """

    path: Path
    source: str
    size: int
    sha256: str

    @property
    def digest(self) -> str:
        """The content's hex digest."""
        return self.sha256

    def documents(self, reader: DocumentReader) -> Iterator[Document]:
        """Yield what `reader` reads in it."""
        return reader.read(self)
