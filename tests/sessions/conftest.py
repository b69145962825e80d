"""The SQLite store on a disk."""

import pytest

from chatkit.sessions.sqlite import SQLiteStore
from tests.clock import Clock


@pytest.fixture
def file(tmp_path):
    return tmp_path / "home" / "sessions.sqlite3"


@pytest.fixture
def store(file):
    opened = SQLiteStore(file)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()
