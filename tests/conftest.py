"""Shared parts of the suite: real models from the model cache, a home folder of its own for every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import ministack

# A busy machine is no fault of a property; what hangs meets the time-out of the suite.
settings.register_profile("chatkit", deadline=None)
settings.load_profile("chatkit")

# Read before any test changes the environment: where `chatkit models pull` put the default models.
MODELS = Path(os.environ.get("CHATKIT_MODELS_DIR", "~/.chatkit/models")).expanduser()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def models_dir() -> Path:
    return MODELS


@pytest.fixture(scope="session")
def dynamodb(tmp_path_factory) -> Iterator[str]:
    """Address of a DynamoDB server of the tests' own; nothing of the developer's AWS settings is read from then on."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in ministack.CREDENTIALS.items():
            patch.setenv(name, value)
        with ministack.running(tmp_path_factory.mktemp("ministack")) as address:
            yield address


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch) -> None:
    """No test reads or writes the user's own home, settings or variables; only the model cache is shared."""
    for name in list(os.environ):
        if name.startswith("CHATKIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CHATKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CHATKIT_MODELS_DIR", str(MODELS))
