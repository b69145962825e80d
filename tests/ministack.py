"""A DynamoDB server for the tests: ministack in an environment of its own, started once and stopped at the end."""

import copy
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from chatkit.sessions.table import Table

PROGRAM = Path(sys.prefix) / "ministack" / "bin" / "ministack"
# Any will do for a server of one's own; no test may use the developer's.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run the server on a free loopback port and give its address; it ends with the block, however that ends."""
    if not PROGRAM.is_file():
        raise AssertionError(f"the DynamoDB server of the tests is not at {PROGRAM}; run: make test")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "SERVICES": "dynamodb,kms",
        "SFTP_ENABLED": "0",
    }
    with (folder / "ministack.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}", folder / "ministack.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _maker(f"http://127.0.0.1:{port}").close()


def _wait(process: subprocess.Popen, address: str, log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{address}/_ministack/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"ministack did not start: {log.read_text(errors='replace')[-2000:]}")


@functools.cache
def _maker(address: str) -> Table:
    return Table("test", endpoint=address)


def new_table(address: str) -> str:
    """Create a table for one test and return its name."""
    table = copy.copy(_maker(address))  # opening a client of its own for each would take longer than most tests
    table.name = f"test-{uuid.uuid4().hex}"
    assert table.create()
    return table.name


def everything_in(address: str, table: str) -> str:
    """Return the whole table as text: what a thief of it would read."""
    import boto3

    client = boto3.client("dynamodb", endpoint_url=address)
    try:
        pages = client.get_paginator("scan").paginate(TableName=table)
        return json.dumps([page["Items"] for page in pages], ensure_ascii=False)
    finally:
        client.close()
