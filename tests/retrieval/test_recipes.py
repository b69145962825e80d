import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from chatkit.errors import InvalidRequest
from chatkit.recipes import Dataset, read_recipe
from chatkit.retrieval.document import Unreadable
from chatkit.retrieval.entries import Skipped

pytest.importorskip("datasets")
ROWS = {
    "id": ["1", "2", "3", "4"],
    "url": ["https://wiki.example/Anchor", "https://wiki.example/Empty", "", "https://wiki.example/Ship"],
    "title": ["Anchor", "Empty", "Chain", "Ship"],
    "text": ["An anchor holds a ship.", "", "A chain holds an anchor.", "A ship floats."],
}


class Noting:
    def __init__(self):
        self.left_out = []

    def leave_out(self, source, reason):
        self.left_out.append(Skipped(source, reason))


@pytest.fixture
def recipe(tmp_path):
    """Returns a recipe file with that text, beside a data set of four rows in groups of one."""
    parquet.write_table(pa.table(ROWS), tmp_path / "rows.parquet", row_group_size=1)

    def write(text):
        (tmp_path / "wiki.toml").write_text(text)
        return read_recipe(str(tmp_path / "wiki.toml"))

    return write


LOCAL = '[dataset]\npath = "parquet"\ndata_files = ["rows.parquet"]\n'


def test_rows_of_a_data_set_are_documents_that_name_their_address(recipe):
    [entry] = recipe(LOCAL).entries()
    noting = Noting()
    documents = list(entry.documents(noting))
    assert [(document.source, document.title, document.text) for document in documents] == [
        ("https://wiki.example/Anchor", "Anchor", "An anchor holds a ship."),
        ("parquet/train#3", "Chain", "A chain holds an anchor."),
        ("https://wiki.example/Ship", "Ship", "A ship floats."),
    ]
    assert noting.left_out == [Skipped("parquet/train", "rows without text: 1")]
    assert [document.sections[0].end for document in documents] == [23, 24, 14]


def test_a_limit_and_other_names_of_columns_are_kept_to(recipe):
    made = recipe(LOCAL + 'limit = 1\n[dataset.columns]\ntext = "title"\ntitle = "text"\n')
    [document] = made.entries()[0].documents(Noting())
    assert (document.title, document.text) == ("An anchor holds a ship.", "Anchor")
    assert len(list(made.with_rows(limit=3).entries()[0].documents(Noting()))) == 3


def test_the_digest_says_when_rows_or_limits_changed(recipe, tmp_path):
    [entry] = recipe(LOCAL).entries()
    before = entry.digest
    assert before == recipe(LOCAL).entries()[0].digest != recipe(LOCAL + "limit = 2").entries()[0].digest
    parquet.write_table(pa.table({**ROWS, "title": ["A", "B", "C", "D"]}), tmp_path / "rows.parquet")
    assert entry.digest != before


def test_only_a_commit_or_files_that_are_there_keep_the_rows_of_a_data_set_from_being_read_again(recipe, tmp_path):
    def digest(text):
        return recipe("[dataset]\n" + text).entries()[0].digest

    assert digest('path = "org/name"\n') == digest('path = "org/name"\nrevision = "main"\n') == ""
    assert digest('path = "parquet"\ndata_files = ["https://host.example/rows.parquet"]\n') == ""
    assert digest('path = "parquet"\nrevision = "main"\ndata_files = ["none*.parquet"]\n') == ""
    assert len(digest(f'path = "org/name"\nrevision = "{"0a" * 20}"\n')) == 64
    matched = digest('path = "parquet"\ndata_files = ["*.parquet"]\n')
    parquet.write_table(pa.table(ROWS), tmp_path / "more.parquet")
    assert "" != matched != digest('path = "parquet"\ndata_files = ["*.parquet"]\n')


def test_files_of_a_data_set_on_the_hub_and_addresses_are_no_local_paths(recipe, tmp_path):
    def files(path):
        made = recipe(f'[dataset]\npath = "{path}"\ndata_files = ["en/*.parquet", "https://host.example/x"]\n')
        return made.datasets[0].data_files

    assert files("org/name") == ("en/*.parquet", "https://host.example/x")
    assert files("parquet") == (f"{tmp_path}/en/*.parquet", "https://host.example/x")


def test_a_row_with_the_id_0_has_a_name_of_its_own(recipe, tmp_path):
    parquet.write_table(pa.table({"id": [1, 0, None], "text": ["One.", "Zero.", "None."]}), tmp_path / "ids.parquet")
    documents = recipe(LOCAL.replace("rows", "ids")).entries()[0].documents(Noting())
    assert [document.source for document in documents] == ["parquet/train#1", "parquet/train#0", "parquet/train#3"]


def test_what_a_data_set_lacks_is_the_reason(recipe):
    with pytest.raises(Unreadable, match="has no column 'body', only 'id', 'url', 'title', 'text'"):
        list(recipe(LOCAL + '[dataset.columns]\ntext = "body"\n').entries()[0].documents(Noting()))
    with pytest.raises(Unreadable, match=r"cannot be opened \(FileNotFoundError"):
        list(recipe(LOCAL.replace("rows", "none")).entries()[0].documents(Noting()))


def test_the_recipe_for_wikipedia_is_pinned():
    made = read_recipe(str(Path(__file__).parents[2] / "index" / "wikipedia.toml"))
    assert made.name == "wikipedia"
    assert made.sources == ()
    assert made.datasets == (
        Dataset("wikimedia/wikipedia", "20231101.en", revision="b04c8d1ceb2f5cd4588862100d08de323dccfbaa"),
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[dataset]\nname = 'x'", "dataset without a path"),
        ("[dataset]\npath = 1", "dataset.path 1, expected a str"),
        ("[dataset]\npath = 'x'\nlimits = 1", "has dataset.limits, expected only path, name, split"),
        ("[dataset]\npath = 'x'\nlimit = -1", "dataset.limit -1"),
        ("[dataset]\npath = 'x'\ncolumns = {body = 'x'}", r"dataset.columns.body, expected names for id, url"),
        ("[dataset]\npath = 'pandas'", "dataset.path 'pandas', expected ORG/NAME, or one of arrow, csv, json"),
        ("[dataset]\npath = '../x'", r"dataset.path '../x', expected ORG/NAME"),
        ("dataset = 'x'", "has dataset 'x', expected a table"),
        ("kind = 'other'", "has kind 'other', expected 'documents' or 'openchatkit'"),
        ("kind = 'openchatkit'\nsources = ['x']", "has 'sources', expected only kind, name, openchatkit"),
        ("sources = []", r"has sources \[\]"),
    ],
)
def test_a_recipe_that_is_wrong_says_what_is(recipe, text, wrong):
    tomllib.loads(text)
    with pytest.raises(InvalidRequest, match=wrong):
        recipe(text)


def test_a_recipe_of_another_kind_hands_its_table_on(recipe):
    made = recipe("kind = 'openchatkit'\n[openchatkit]\nrepository = 'org/name'\n")
    assert (made.name, made.kind, made.options) == ("wiki", "openchatkit", {"repository": "org/name"})
