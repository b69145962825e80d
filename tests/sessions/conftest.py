"""The SQLite store on a disk."""

import pytest

from chatkit.sessions.sqlite import SQLiteStore


@pytest.fixture
def file(tmp_path):
    return tmp_path / "home" / "sessions.sqlite3"


@pytest.fixture
def store(file):
    opened = SQLiteStore(file)
    yield opened
    opened.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
