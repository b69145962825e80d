"""Every store in turn, under a clock that the test moves."""

import pytest

from tests.clock import Clock
from tests.contracts.stores import STORES, opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retention_s() -> float | None:
    """How long the store keeps a session, seconds; a test that says otherwise is parametrized with it."""
    return None


@pytest.fixture(params=STORES)
def store(request, tmp_path, clock, retention_s):
    with opened(request.param, request, tmp_path, clock, retention_s) as store:
        yield store
