"""What the tests of encrypted sessions share: key files, and an encrypted store around a plain one."""

import base64
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chatkit.sessions.encryption import MAX_MESSAGE, EncryptedStore
from chatkit.sessions.key_shelves import DynamoDBKeys, SQLiteKeys
from chatkit.sessions.master_keys import KeyFile
from chatkit.sessions.session_keys import KeyRing
from tests import ministack


def key_file(folder: Path, name: str = "master.key") -> Path:
    """Write a fresh master key and return its file."""
    file = folder / name
    file.touch(0o600)
    file.write_bytes(base64.b64encode(secrets.token_bytes(32)) + b"\n")
    return file


def around(plain: Any, request: Any, folder: Path, clock: Callable[[], float], retention_s: float | None) -> Any:
    """Return an encrypted store around one of the contracts'; it has what they have, and its `shelf`."""
    if "DynamoDB" in type(plain).__name__:
        address = request.getfixturevalue("dynamodb")
        table = ministack.new_table(address)
        shelf: Any = DynamoDBKeys(table, endpoint=address)
        seen = [plain.everything, lambda: ministack.everything_in(address, table)]
    else:
        file = folder / "session-keys.sqlite3"
        shelf = SQLiteKeys(file, clock=clock)
        seen = [plain.everything, lambda: file.read_bytes().decode("utf-8", "replace")]
    master = KeyFile(key_file(folder))

    def again(store: Any, retention_s: float | None) -> Any:
        return EncryptedStore(store, KeyRing(shelf, master, clock=clock), clock=clock, retention_s=retention_s)

    store = again(plain, retention_s)
    store.shelf, store.most, store.encrypted = shelf, MAX_MESSAGE, True
    store.everything = lambda: "".join(read() for read in seen)
    store.with_retention = lambda seconds: again(plain.with_retention(seconds), seconds)
    return store
