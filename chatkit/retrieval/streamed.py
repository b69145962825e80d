"""Rows of a Hugging Face data set as documents, streamed: no more than a few rows are in memory. Extra `datasets`."""

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from chatkit.errors import MissingExtra
from chatkit.retrieval.document import Document, Section, Unreadable
from chatkit.retrieval.entries import DocumentReader

_COMMIT = re.compile(r"[0-9a-f]{40}")


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
        """Names what is read; empty without a commit or local files, for then the rows may have changed."""
        is_on_hub = "/" in self.path
        files = list(self.data_files) if is_on_hub else [_digest(file) for file in self.data_files]
        if not (_COMMIT.fullmatch(self.revision) if is_on_hub else files and all(files)):
            return ""
        told = [self.path, self.name, self.split, self.revision, files, self.limit, dict(self.columns)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def documents(self, reader: DocumentReader) -> Iterator[Document]:
        """Yield a document a row: its source is the row's address, or else the data set with the row's id or number.

        Raises:
            Unreadable: the data set is not there, has no such column, or breaks off.
            MissingExtra: `datasets` is not installed.
        """
        rows = self._rows()
        empty = 0
        try:
            for number, row in enumerate(islice(rows, self.limit or None), start=1):
                document = self._document(row, number)
                if document is None:
                    empty += 1
                else:
                    yield document
        except Unreadable:
            raise
        except Exception as error:  # of the library, or of any of the file systems and formats behind it
            raise Unreadable(f"breaks off ({_said(error)}); run again when it can be reached") from error
        if empty:
            reader.leave_out(self.source, f"rows without text: {empty}")

    def _document(self, row: Mapping[str, Any], number: int) -> Document | None:
        values = {name: row.get(self.columns.get(name, name)) for name in ("id", "url", "title", "text")}
        given = {name: "" if value is None else str(value) for name, value in values.items()}
        if self.columns.get("text", "text") not in row:
            raise Unreadable(f"has no column {self.columns.get('text', 'text')!r}, only {', '.join(map(repr, row))}")
        text = given["text"]
        if not text.strip():
            return None
        source = given["url"] or f"{self.source}#{given['id'] or number}"
        return Document(source, " ".join(given["title"].split()) or source, text, (Section("", 0, len(text)),))

    def _rows(self) -> Any:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise MissingExtra("datasets", "datasets") from error
        try:
            return datasets.load_dataset(
                self.path,
                name=self.name or None,
                split=self.split,
                revision=self.revision or None,
                data_files=list(self.data_files) or None,
                streaming=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise Unreadable(f"cannot be opened ({_said(error)}); check its path, name, split and revision") from error


def _digest(pattern: str) -> str:
    """Return the digest of the local files that match, empty where there are none."""
    whole = hashlib.sha256()
    files = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
    for file in files:
        with Path(file).open("rb") as content:
            whole.update(f"{file}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode(errors="replace"))
    return whole.hexdigest() if files else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
