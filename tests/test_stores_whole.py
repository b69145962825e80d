"""One setting moves a conversation to another store: the real service, told a name, stopped, started and asked."""

import json

import pytest

from tests import ministack
from tests.encrypted import key_file
from tests.serving import Served

FORGOTTEN = 404


def tell(service: Served) -> str:
    """Tell the model a name and return the session; nothing but the session knows it."""
    told = service.ask("Please remember that my name is Zebulon.", max_new_tokens=30)
    return told["session_id"]


@pytest.mark.parametrize("store", ["sqlite", "sqlite encrypted", "dynamodb"])
def test_a_conversation_goes_on_after_a_restart_whatever_store_keeps_it(tmp_path, models_dir, request, store):
    flags = ["--store", store.split()[0]]
    if store.endswith(" encrypted"):
        flags += ["--session-keys", f"file:{key_file(tmp_path)}"]
    if store == "dynamodb":
        address = request.getfixturevalue("dynamodb")
        flags += ["--dynamodb-table", ministack.new_table(address), "--dynamodb-endpoint", address]
    service = Served(tmp_path / "home", models_dir, "--index", "", *flags)
    with service:
        session = tell(service)
    with service:
        again = service.ask("What is my name?", session_id=session, request_id="request-again", max_new_tokens=30)
        assert "Zebulon" in again["outputs"]
        repeat = service.ask("What is my name?", session_id=session, request_id="request-again", max_new_tokens=30)
        assert (repeat["replayed"], repeat["outputs"]) == (True, again["outputs"])
    files = b"".join(file.read_bytes() for file in (tmp_path / "home").glob("*sqlite3*"))
    assert (b"Zebulon" in files) == (store == "sqlite")
    shown = service.chatkit("sessions", "show", session, "--json", *flags)
    turns = json.loads(shown.stdout)["turns"]
    assert [(turn["seq"], turn["status"], turn["assistant"]) for turn in turns][1:] == [
        (2, "complete", again["outputs"])
    ]
    assert service.chatkit("sessions", "delete", session, "--yes", *flags).returncode == 0
    assert json.loads(service.chatkit("sessions", "list", "--json", *flags).stdout)["sessions"] == []


def test_the_memory_store_forgets_a_conversation_at_a_restart(tmp_path, models_dir):
    service = Served(tmp_path / "home", models_dir, "--index", "", "--store", "memory")
    with service:
        session = tell(service)
        assert "Zebulon" in service.ask("What is my name?", session_id=session, max_new_tokens=30)["outputs"]
    with service:
        body = {"inputs": "What is my name?", "parameters": {"session_id": session}}
        assert service.client.post("/invocations", json=body).status_code == FORGOTTEN


def test_a_service_whose_table_is_missing_says_so_and_ends(tmp_path, models_dir, dynamodb):
    service = Served(tmp_path / "home", models_dir)
    place = ("--dynamodb-table", "not-there", "--dynamodb-endpoint", dynamodb)
    done = service.chatkit("serve", "--port", "0", "--index", "", "--store", "dynamodb", *place)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: the DynamoDB table 'not-there' does not exist; run: chatkit sessions create-table {' '.join(place)}"
    )
