"""Every store in turn, under a clock that the test moves."""

import pytest

from tests.contracts.stores import STORES, opened


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
def store(request, tmp_path, clock):
    with opened(request.param, request, tmp_path, clock) as store:
        yield store
