"""The store of a service that is killed."""

from chatkit.settings import load_settings
from tests import ministack


def settings_for(store: str, request, **more):
    """Return settings of a store of its own, in a fresh table where that is a table."""
    if store == "dynamodb":
        address = request.getfixturevalue("dynamodb")
        more |= {"dynamodb_endpoint": address, "dynamodb_table": ministack.new_table(address)}
    return load_settings({"store": store, **more})
