"""Recipes: TOML files that say what an index is made of."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatkit.errors import InvalidRequest

if TYPE_CHECKING:
    from chatkit.retrieval.entries import SourceEntry

# Where recipes that are named rather than given as a file are looked up, from the working directory.
RECIPES = Path("index")
# What is made: an index of documents, or a copy of one that others published, which has a table of its own.
KINDS = ("documents", "openchatkit")

# What `datasets` reads in files that a recipe names; others of its formats run what is in them, such as pickles.
FORMATS = ("arrow", "csv", "json", "parquet", "text")

_KEYS = frozenset({"name", "kind", "root", "sources", "chunking", "dataset"})
_ON_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_COLUMNS = ("id", "url", "title", "text")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of a Hugging Face data set, streamed, or of local files that `datasets` reads.

    Attributes:
        path: `ORG/NAME`, or one of `FORMATS` for `data_files`.
        name: the configuration, such as a snapshot and language.
        revision: commit, tag or branch; a commit makes two builds the same.
        data_files: paths or patterns: of a data set as they are, of a format resolved against the recipe's root.
        limit: most rows, from the first; 0 for all.
        columns: which column is the id, url, title and text, where they are not named so.
    """

    path: str
    name: str = ""
    split: str = "train"
    revision: str = ""
    data_files: tuple[str, ...] = ()
    limit: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an index is made of, as a TOML file says it; paths are resolved against its root.

    Attributes:
        options: the table that bears the name of `kind`, as it is, for kinds other than documents.
    """

    name: str
    sources: tuple[str, ...] = ()
    chunking: Mapping[str, int] = field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    kind: str = "documents"
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_rows(self, limit: int | None = None, revision: str | None = None) -> "Recipe":
        """Return the recipe with other numbers of rows, or another revision, of its data sets."""
        changes: dict[str, Any] = {} if limit is None else {"limit": limit}
        if revision is not None:
            changes["revision"] = revision
        return replace(self, datasets=tuple(replace(dataset, **changes) for dataset in self.datasets))

    def entries(self) -> "tuple[SourceEntry, ...]":
        """Return the sources that are no files."""
        from chatkit.retrieval.streamed import DatasetRows

        return tuple(
            DatasetRows(
                path=dataset.path,
                name=dataset.name,
                split=dataset.split,
                revision=dataset.revision,
                data_files=dataset.data_files,
                limit=dataset.limit,
                columns=dataset.columns,
            )
            for dataset in self.datasets
        )


def read_recipe(named: str) -> Recipe:
    """Read a recipe by file or by its name in ./index.

    Raises:
        InvalidRequest: there is none, or it is not a recipe, naming what is wrong.
    """
    file = _find(named)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the recipe {str(file)!r} is not valid TOML: {error}") from error
    where = f"the recipe {str(file)!r}"
    kind = table.get("kind", "documents")
    if kind not in KINDS:
        raise InvalidRequest(f"{where} has kind {kind!r}, expected {' or '.join(map(repr, KINDS))}")
    known = _KEYS if kind == "documents" else {"name", "kind", kind}
    if unknown := sorted(set(table) - known):
        raise InvalidRequest(f"{where} has {unknown[0]!r}, expected only {', '.join(sorted(known))}")
    name = str(table.get("name", file.stem))
    if kind != "documents":
        return Recipe(name, kind=kind, options=_table(table.get(kind, {}), kind, where))
    root = (file.parent / str(table.get("root", "."))).resolve()
    tables = table.get("dataset", [])
    datasets = tuple(_dataset(entry, root, where) for entry in (tables if isinstance(tables, list) else [tables]))
    sources = _sources(table.get("sources", [] if datasets else None), where, may_be_empty=bool(datasets))
    placed = tuple(source if "://" in source else str(root / source) for source in sources)
    return Recipe(name, placed, table.get("chunking", {}), datasets)


def _find(named: str) -> Path:
    file = Path(named)
    if not file.is_file():
        file = RECIPES / f"{named}.toml"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml"))) or "none"
        raise InvalidRequest(
            f"there is no recipe {named!r}: looked in {str(RECIPES.resolve())!r}, which has: {there}; "
            f"run this in a clone of the project, or name a recipe file"
        )
    return file


def _sources(given: Any, where: str, *, may_be_empty: bool) -> list[str]:
    if not _is_texts(given) or not (given or may_be_empty):
        raise InvalidRequest(f"{where} has sources {given!r}, expected a list of paths or patterns")
    sources: list[str] = given
    return sources


def _dataset(given: Any, root: Path, where: str) -> Dataset:
    table = _table(given, "dataset", where)
    expected = {"path": str, "name": str, "split": str, "revision": str, "data_files": list, "limit": int}
    for key, value in table.items():
        if key == "columns":
            continue
        if key not in expected:
            raise InvalidRequest(f"{where} has dataset.{key}, expected only {', '.join([*expected, 'columns'])}")
        if not isinstance(value, expected[key]):
            raise InvalidRequest(f"{where} has dataset.{key} {value!r}, expected a {expected[key].__name__}")
    if not table.get("path"):
        raise InvalidRequest(f"{where} has a dataset without a path, expected one such as 'wikimedia/wikipedia'")
    if not _is_texts(files := table.get("data_files", [])):
        raise InvalidRequest(f"{where} has dataset.data_files {files!r}, expected a list of paths or patterns")
    columns = _table(table.get("columns", {}), "dataset.columns", where)
    if wrong := [key for key, value in columns.items() if key not in _COLUMNS or not isinstance(value, str)]:
        raise InvalidRequest(f"{where} has dataset.columns.{wrong[0]}, expected names for {', '.join(_COLUMNS)}")
    if table.get("limit", 0) < 0:
        raise InvalidRequest(f"{where} has dataset.limit {table['limit']}, expected a number of rows, or 0 for all")
    if table["path"] not in FORMATS and not _ON_HUB.fullmatch(table["path"]):
        raise InvalidRequest(
            f"{where} has dataset.path {table['path']!r}, expected ORG/NAME, or one of {', '.join(FORMATS)}"
        )
    placed = tuple(str(root / file) if table["path"] in FORMATS and "://" not in file else file for file in files)
    return Dataset(**{**table, "data_files": placed, "columns": columns})


def _table(given: Any, key: str, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidRequest(f"{where} has {key} {given!r}, expected a table")
    return given


def _is_texts(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(entry, str) for entry in given)
