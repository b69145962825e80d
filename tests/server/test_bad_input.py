"""Every malformed request gets its status and one line that names what is wrong; nothing is stored."""

import asyncio
import json

import pytest

pytestmark = pytest.mark.anyio

DIGITS = b"1" * 5000


def body(**parameters) -> bytes:
    return json.dumps({"inputs": "Hello", "parameters": parameters}).encode()


BAD = [
    (b"", 422, "the body is not JSON"),
    (b"{", 422, "the body is not JSON"),
    (b"inputs=Hello", 422, "the body is not JSON"),
    (b'{"inputs": "a"} x', 422, "the body is not JSON: Extra data at character 16"),
    (b'{"inputs": "\xff"}', 422, "the body is not UTF-8: byte 0xff at 12"),
    (b'"Hello"', 422, "the body is 'Hello', expected an object"),
    (b"[]", 422, "the body is [], expected an object"),
    (b"null", 422, "the body is None, expected an object"),
    (b"{}", 422, "'inputs' is missing"),
    (b'{"inputs": null}', 422, "'inputs' is None"),
    (b'{"inputs": 5}', 422, "'inputs' is 5"),
    (b'{"inputs": ["a"]}', 422, "'inputs' is ['a']"),
    (b'{"inputs": ""}', 422, "the message is empty"),
    (b'{"inputs": " \\n "}', 422, "the message is empty"),
    (b'{"inputs": "a\\ud800"}', 422, "half a character at 1"),
    (b'{"inputs": "a", "\\ud800": 1}', 422, "expected a valid string"),
    (b'{"inputs": "a", "input": "b"}', 422, "'input' is not known; known here: inputs, parameters, stream"),
    (b'{"inputs": "a", "stream": "yes"}', 422, "'stream' is 'yes'"),
    (b'{"inputs": "a", "parameters": []}', 422, "'parameters' is []"),
    (body(max_tokens=5), 422, "'parameters.max_tokens' is not known; known here: session_id"),
    (body(max_new_tokens="5"), 422, "'parameters.max_new_tokens' is '5'"),
    (body(max_new_tokens=True), 422, "'parameters.max_new_tokens' is True"),
    (body(max_new_tokens=1.5), 422, "'parameters.max_new_tokens' is 1.5"),
    (body(max_new_tokens=0), 422, "max_new_tokens is 0, expected a number from 1 to 32768"),
    (body(max_new_tokens=-1), 422, "max_new_tokens is -1"),
    (body(max_new_tokens=2048), 422, "max_new_tokens is 2048, but scripted holds 2048"),
    (body(max_new_tokens=10**400), 422, "max_new_tokens is 1000"),
    (b'{"inputs": "a", "parameters": {"seed": ' + DIGITS + b"}}", 422, "a number of thousands of digits"),
    (body(temperature=2.1), 422, "temperature is 2.1, expected a number from 0.0 to 2.0"),
    (body(temperature=-0.1), 422, "temperature is -0.1"),
    (b'{"inputs": "a", "parameters": {"temperature": NaN}}', 422, "the body holds NaN"),
    (b'{"inputs": "a", "parameters": {"temperature": Infinity}}', 422, "the body holds Infinity"),
    (b'{"inputs": "a", "parameters": {"temperature": -Infinity}}', 422, "the body holds -Infinity"),
    (b'{"inputs": "a", "parameters": {"temperature": 1e999}}', 422, "temperature is inf"),
    (body(top_p=0), 422, "top_p is 0"),
    (body(top_p=1.1), 422, "top_p is 1.1"),
    (body(top_k=-1), 422, "top_k is -1"),
    (body(repetition_penalty=0), 422, "repetition_penalty is 0"),
    (body(seed=-1), 422, "seed is -1"),
    (body(seed=2**63), 422, "seed is 9223372036854775808"),
    (body(k=0), 422, "k is 0, expected a number from 1 to 50"),
    (body(k=51), 422, "k is 51"),
    (body(stop="x"), 422, "'parameters.stop' is 'x'"),
    (body(stop=[1]), 422, "'parameters.stop.0' is 1"),
    (body(stop=[""]), 422, "stop word '' has 0 characters"),
    (body(stop=["x" * 257]), 422, "has 257 characters"),
    (body(stop=["x"] * 17), 422, "stop_words has 17 entries"),
    (b'{"inputs": "a", "parameters": {"stop": ["\\ud800"]}}', 422, "half a character, expected whole Unicode"),
    (body(session_id="short"), 422, "session_id is 'short', expected 8 to 128"),
    (body(session_id=""), 422, "session_id is ''"),
    (body(session_id="x" * 129), 422, "session_id is 'xxx"),
    (body(session_id="with space here"), 422, "session_id is 'with space here'"),
    (body(session_id="line\nbreak1"), 422, "session_id is 'line\\nbreak1'"),
    (body(request_id=""), 422, "request_id is ''"),
    (body(request_id="a/b/c/d/e"), 422, "request_id is 'a/b/c/d/e'"),
    (body(session_id="s-unknown-session"), 404, "session 's-unknown-session' does not exist"),
    (json.dumps({"inputs": "x " * 5000}).encode(), 413, "at most 1792 fit"),
    (json.dumps({"inputs": "x" * 100_001}).encode(), 413, "100001 characters"),
]


def one_line_error(answer, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    table = answer.json()
    assert list(table) == ["error"]
    assert sorted(table["error"]) == ["code", "message"]
    assert words in table["error"]["message"]
    assert "\n" not in table["error"]["message"]
    assert len(table["error"]["message"]) < 600
    assert "Traceback" not in answer.text
    assert "pydantic" not in answer.text


async def test_each_malformed_body_is_answered_in_one_line_and_nothing_is_stored(open_site) -> None:
    async with open_site(["Hi."], max_new_tokens=256) as site:
        for raw, status, words in BAD:
            for more in ({}, {"accept": "text/event-stream"}):
                answer = await site.client.post("/invocations", content=raw, headers=more)
                one_line_error(answer, status, words)
        assert site.stored_items() == 0
        assert site.model.prompts == []
        assert (await site.ask()).status_code == 200


@pytest.mark.parametrize("opening", [b"[", b'{"inputs":', b'{"inputs":"a","parameters":', b'{"inputs":"a","x":['])
async def test_no_depth_of_nesting_breaks_the_reader(open_site, opening) -> None:
    closing = {b"[": b"]", b"{": b"}"}
    async with open_site(["Hi."]) as site:
        for depth in (10, 300, 500, 700, 800, 850, 900, 930, 950, 960, 970, 980, 990, 1000, 5000, 100_000):
            for nest in (b"[", b'{"a":'):
                end = closing[nest[:1]] if nest == b"[" else b"}"
                tail = {b"[": b"]", b'{"inputs":': b"}", b'{"inputs":"a","parameters":': b"}"}.get(opening, b"]}")
                inner = b"1" if nest != b"[" else b""
                raw = opening + nest * depth + inner + end * depth + tail
                answer = await site.client.post("/invocations", content=raw[: 255 * 1024])
                assert answer.status_code == 422, (depth, nest, answer.text)
                assert "\n" not in answer.json()["error"]["message"]


async def test_a_body_over_the_cap_is_refused_with_and_without_its_length(open_site) -> None:
    async with open_site(["Hi."], max_body_kb=4) as site:
        just = json.dumps({"inputs": "x", "parameters": {}}).encode()
        padded = just + b" " * (4096 - len(just))
        assert (await site.client.post("/invocations", content=padded)).status_code == 200
        one_line_error(await site.client.post("/invocations", content=padded + b" "), 413, "over 4096 bytes")

        async def chunks():
            for _ in range(9):
                yield b"x" * 512

        one_line_error(await site.client.post("/invocations", content=chunks()), 413, "over 4096 bytes")
        assert site.stored_items() == 2 + 1  # the turn, its session's own item, its request


async def test_a_length_that_lies_reads_no_more_than_the_cap(open_site) -> None:
    async with open_site(["Hi."], max_body_kb=4) as site:
        reader, writer = await site.raw(
            b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000000\r\n\r\n" + b"x" * 5000
        )
        status = await asyncio.wait_for(reader.readline(), 5)
        assert status.startswith(b"HTTP/1.1 413 ")
        writer.close()
        assert (await site.ask()).status_code == 200


async def test_unknown_paths_and_methods_have_their_status_and_one_line(open_site) -> None:
    async with open_site(["Hi."]) as site:
        for method, path, status in (
            ("GET", "/", 404),
            ("POST", "/invocation", 404),
            ("GET", "/invocations", 405),
            ("POST", "/ping", 405),
            ("GET", "/a%0Ab", 404),
            ("GET", "/../../etc/passwd", 404),
        ):
            answer = await site.client.request(method, path)
            one_line_error(answer, status, "is not served here")


async def test_a_defect_shows_no_inner_words_over_http(open_site, caplog) -> None:
    async with open_site(["First sentence stands here. ", ValueError("inner secret at /path")]) as site:
        answer = await site.ask()
        assert answer.status_code == 503
        frames = await site.stream(request_id="request-2")
        assert [frame["event"] for frame in frames] == ["start", "delta", "error"]
        for text in (answer.text, json.dumps(frames)):
            assert "inner secret" not in text
            assert "ValueError" not in text
        assert "inner secret" in caplog.text


async def test_a_defect_outside_a_turn_is_a_500_without_words(open_site, monkeypatch, caplog) -> None:
    async with open_site(["Hi."]) as site:

        def broken(request, patient=False):
            raise ValueError("inner secret")

        monkeypatch.setattr(site.service, "start", broken)
        answer = await site.ask()
        assert answer.status_code == 500
        assert answer.json() == {"error": {"code": "internal", "message": "internal error"}}
        assert "inner secret" in caplog.text
