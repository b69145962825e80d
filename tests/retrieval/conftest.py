"""The real default encoder, opened once, and small corpora."""

import pytest

from chatkit.models import sources
from chatkit.retrieval.encoder import open_encoder

CORPUS = {
    "network.md": """# Network guide

## Ports

The service listens on port 8080. Any other address than loopback needs an API key.

## Time-outs

A connection that is silent for thirty seconds is closed by the proxy, and the client has to open it again.
""",
    "storage.md": """# Storage guide

Sessions are written to a SQLite file in write-ahead mode. A turn is two transactions.

## Backups

Copy the database with the backup command while the service runs; copying the file by hand may tear a page.

```
# not a heading
chatkit sessions export
```
""",
    "notes.txt": "The encoder pools token vectors by their mean and normalises them to length one.\n",
}


@pytest.fixture(scope="session")
def encoder_folder(models_dir):
    return sources.resolve("default", models_dir=models_dir, role="encoder")


@pytest.fixture(scope="session")
def encoder_cache(encoder_folder, models_dir):
    return sources.derived_dir(encoder_folder, models_dir=models_dir)


@pytest.fixture(scope="session")
def encoder(encoder_folder, encoder_cache):
    opened = open_encoder(encoder_folder, cache=encoder_cache)
    yield opened
    opened.close()


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A folder of small documents; the working directory is above it."""
    folder = tmp_path / "work" / "corpus"
    folder.mkdir(parents=True)
    for name, text in CORPUS.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder.parent)
    return folder


@pytest.fixture
def indexes(tmp_path):
    return tmp_path / "indexes"
