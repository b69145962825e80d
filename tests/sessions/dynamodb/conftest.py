"""A table of the test's own on the DynamoDB server, a store over it, and one behind a proxy that meddles."""

from collections import Counter

import pytest

from chatkit.sessions.dynamodb import DynamoDBStore
from tests import ministack
from tests.clock import Clock
from tests.faults.proxy import Proxy, operation_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(dynamodb) -> str:
    return ministack.new_table(dynamodb)


@pytest.fixture
def opened(dynamodb, table):
    """Return what opens one more store over the table; all of them are closed at the end."""
    stores = []

    def open_store(**more) -> DynamoDBStore:
        stores.append(DynamoDBStore(table, **({"endpoint": dynamodb} | more)))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(opened):
    return opened()


@pytest.fixture
def calls(store) -> Counter:
    """Count the requests that leave for the server, re-sent ones too."""
    sent: Counter = Counter()
    store._table.client.meta.events.register(
        "before-send.dynamodb.*", lambda request, **_: sent.update([operation_of(request.headers)])
    )
    return sent


@pytest.fixture
def proxy(dynamodb):
    made = Proxy(dynamodb)
    yield made
    made.close()


@pytest.fixture
def proxied(proxy, opened):
    return opened(endpoint=proxy.address)
