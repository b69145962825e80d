"""What others do to a running service does not end it: cut files, clients that leave within a body."""

import os
import socket
from urllib.parse import urlsplit

import pytest

from tests.serving import Served


@pytest.fixture(scope="module")
def served(tmp_path_factory, models_dir):
    service = Served(tmp_path_factory.mktemp("robust") / "home", models_dir)
    assert service.chatkit("prepare-index", "README.md", "--name", "docs").returncode == 0
    with service:
        yield service


def test_an_index_that_is_cut_short_while_it_is_served_goes_on_answering(served):
    question = "Which command fits the moderation head?"
    before = served.ask(question, max_new_tokens=5)["sources"]
    assert before
    for file in (served.home / "indexes" / "docs").rglob("*"):
        if file.suffix in (".faiss", ".parquet"):
            os.truncate(file, 10)
    assert served.ask(question, max_new_tokens=5)["sources"] == before
    restarted = served.chatkit("search", question)
    assert restarted.returncode == 3
    assert "prepare-index" in restarted.stderr
    assert restarted.stderr.count("\n") == 1


def test_a_client_that_leaves_within_its_body_is_no_error(served):
    address = urlsplit(str(served.client.base_url))
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b'POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"inp')
    assert served.ask("hello", max_new_tokens=2, no_retrieval=True)["finish_reason"] in ("stop", "length")
    assert "Traceback" not in served.log
    assert "error" not in served.log.lower()


def test_a_path_with_a_slash_too_many_is_not_redirected(served):
    answer = served.client.post("/invocations/", json={"inputs": "hello"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
