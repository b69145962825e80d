"""The curl lines of the pages, run as they are written against a running service."""

import asyncio
import json
import os
import re

import pytest

from tests.server.owners import BACKEND, key_of, write_keys
from tests.serving import ROOT

pytestmark = pytest.mark.anyio


def examples(page: str) -> list[str]:
    """Return the curl commands in the blocks of code of a page, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if not kind]
    return [line for block in blocks for line in re.split(r"^(?=curl )", block, flags=re.M) if line.startswith("curl ")]


async def run(site, command: str) -> tuple[int, str]:
    """Run one command on the site and return the status and body of its answer."""
    assert command.count("http://127.0.0.1:8080/") == 1, command
    line = command.replace("127.0.0.1:8080", f"{site.host}:{site.port}")
    line = line.replace("curl -s", "curl -s -w '\\n%{http_code}'")
    environment = {**os.environ, "KEY": key_of(BACKEND), "no_proxy": "*"}
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", line, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b""), (command, err)
    body, _, status = out.decode().rpartition("\n")
    return int(status), body


async def test_the_examples_of_the_http_page_open_edit_read_export_and_remove_a_session(open_site) -> None:
    commands = examples("http-api.md")
    async with open_site(["It is Authorization."], ["It is api-key."]) as site:
        answers = [await run(site, command) for command in commands]
        assert [status for status, _ in answers] == [200, 200, 200, 200, 204]
        first, again, page, export, _ = (body for _, body in answers)
        assert (json.loads(first)["seq"], json.loads(again)["seq"]) == (1, 2)
        assert json.loads(again)["outputs"] == "It is api-key."
        assert [turn["replaces"] for turn in json.loads(page)["turns"]] == [None, 1]
        assert [json.loads(line)["seq"] for line in export.splitlines()] == [1, 2]
        assert site.stored_items() == 0


async def test_the_examples_of_the_owners_page_name_a_user_list_and_remove_everything(open_site, tmp_path) -> None:
    commands = examples("owners.md")
    async with open_site(["Hello."], keys_file=write_keys(tmp_path)) as site:
        answers = [await run(site, command) for command in commands]
        assert [status for status, _ in answers] == [200, 200, 200]
        assert [row["session_id"] for row in json.loads(answers[1][1])["sessions"]] == ["carols-session-1"]
        assert json.loads(answers[2][1]) == {"removed": 1}
