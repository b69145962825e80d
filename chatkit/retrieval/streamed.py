"""Rows of a Hugging Face data set as documents, streamed: no more than a few rows are in memory. Extra `datasets`."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chatkit.retrieval.document import Document
from chatkit.retrieval.entries import DocumentReader


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """A data set as one source of many documents; `recipes.Dataset` says what the attributes are."""

    path: str
    name: str = ""
    split: str = "train"
    revision: str = ""
    data_files: tuple[str, ...] = ()
    limit: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The data set with its configuration and split."""
        return "/".join(part for part in (self.path, self.name, self.split) if part)

    @property
    def digest(self) -> str:
        """Names what is read; empty unless a revision is given, for then the rows may have changed."""
        if not self.revision:
            return ""
        told = [self.path, self.name, self.split, self.revision, self.data_files, self.limit, dict(self.columns)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def documents(self, reader: DocumentReader) -> Iterator[Document]:
        """Yield a document a row."""
        raise NotImplementedError

    def _load(self) -> Any:
        raise NotImplementedError
