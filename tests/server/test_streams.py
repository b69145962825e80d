"""Streams: frames, errors before and within them, and clients that leave."""

import asyncio
import json

import pytest

from chatkit.errors import EngineFailed, Overloaded

pytestmark = pytest.mark.anyio


def request_bytes(**parameters) -> bytes:
    body = json.dumps({"inputs": "Hello there", "stream": True, "parameters": parameters}).encode()
    return b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def frames_until(reader, kind: str, count: int = 1) -> list[dict]:
    """Read lines of a chunked answer until `count` frames of a kind have come."""
    frames = []
    while sum(frame["event"] == kind for frame in frames) < count:
        line = (await asyncio.wait_for(reader.readline(), 5)).strip()
        if line.startswith(b'{"event"'):
            frames.append(json.loads(line))
    return frames


async def test_json_lines_hold_the_events_in_order(open_site) -> None:
    async with open_site(["It listens on ", "port 8080."]) as site:
        frames = await site.stream("Which port does chatkit use here", session_id="my-session", request_id="request-1")
        assert [frame["event"] for frame in frames] == ["start", "sources", "delta", "done"]
        assert (frames[0]["session_id"], frames[0]["request_id"]) == ("my-session", "request-1")
        assert frames[1]["sources"][0]["source"] == "serving.md"
        assert frames[3]["outputs"] == frames[2]["text"] == "It listens on port 8080."
        assert frames[3]["finish_reason"] == "stop"
        plain = (
            await site.ask("Which port does chatkit use here", session_id="my-session", request_id="request-1")
        ).json()
        assert plain["replayed"]
        assert {k: plain[k] for k in ("outputs", "session_id", "finish_reason", "usage")} == {
            k: frames[3][k] for k in ("outputs", "session_id", "finish_reason", "usage")
        }


async def test_server_sent_events_name_each_event_and_hold_one_line_of_data(open_site) -> None:
    async with open_site(["Line one.\n", "Line “two” 漢字 🙂."]) as site:
        body = {"inputs": "Hello", "stream": True}
        async with site.client.stream(
            "POST", "/invocations", json=body, headers={"accept": "text/event-stream"}
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            text = (await answer.aread()).decode()
    events = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
    assert all(len(lines) == 2 for lines in events)
    assert [lines[0] for lines in events] == ["event: start", "event: delta", "event: done"]
    tables = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
    assert tables[1]["text"] == "Line one.\nLine “two” 漢字 🙂."


async def test_a_blocked_answer_is_a_replace_frame_before_done(open_site) -> None:
    async with open_site(["The first sentence is here. ", "Now a canary sings to us."]) as site:
        frames = await site.stream()
        assert [frame["event"] for frame in frames] == ["start", "delta", "replace", "done"]
        assert frames[2] == {"event": "replace", "text": "I cannot help with that.", "label": "needs intervention"}
        assert frames[3]["finish_reason"] == "content_filter"
        assert frames[3]["moderation"]["flagged"]
        assert "canary" not in json.dumps(frames)


async def test_errors_before_the_first_event_keep_their_status(open_site, monkeypatch) -> None:
    async with open_site(["Hi."]) as site:
        body = {"inputs": "Hello", "stream": True}
        for error in (Overloaded("queue full"), EngineFailed("gone")):

            def refuse(prompt, sampling, *, session, error=error):
                raise error

            monkeypatch.setattr(site.model, "generate", refuse)
            answer = await site.client.post("/invocations", json=body)
            assert answer.status_code == 503
            assert answer.json() == {"error": {"code": error.code, "message": str(error)}}
            assert answer.headers["retry-after"] == str(error.retry_after)


async def test_an_error_after_the_first_event_is_a_frame(open_site) -> None:
    async with open_site(["The first sentence is here. ", EngineFailed("the engine stopped")]) as site:
        frames = await site.stream()
        assert [frame["event"] for frame in frames] == ["start", "delta", "error"]
        assert frames[-1]["error"] == {"code": "engine_failed", "message": "the engine stopped"}


async def test_a_client_that_leaves_after_a_delta_stops_the_engine_and_the_turn_is_what_it_got(
    open_site, site_parts, until
) -> None:
    async with open_site(site_parts.long, ["The full answer."], delay=0.01) as site:
        reader, writer = await site.raw(request_bytes(session_id="my-session", request_id="request-1"))
        frames = await frames_until(reader, "delta")
        writer.close()
        await until(lambda: len(site.service.turns) == 0, 0.3)
        made = site.model.tokens_made
        await asyncio.sleep(0.05)
        assert site.model.tokens_made == made < 100
        (turn,) = await site.turns()
        assert (turn.status, turn.attempt) == ("aborted", 1)
        assert turn.assistant == "".join(f["text"] for f in frames if f["event"] == "delta")

        again = (await site.ask(session_id="my-session", request_id="request-1")).json()
        assert (again["outputs"], again["finish_reason"], again["replayed"]) == ("The full answer.", "stop", False)
        (turn,) = await site.turns()
        assert (turn.seq, turn.status, turn.attempt, turn.assistant) == (1, "complete", 2, "The full answer.")


async def test_a_client_that_leaves_before_the_first_token_stops_the_engine_too(open_site, site_parts, until) -> None:
    async with open_site(site_parts.long, delay=0.2) as site:
        reader, writer = await site.raw(request_bytes(session_id="my-session"))
        await frames_until(reader, "start")
        writer.close()
        await until(lambda: len(site.service.turns) == 0, 0.3)
        assert site.model.tokens_made <= 1
        (turn,) = await site.turns()
        assert (turn.status, turn.assistant) == ("aborted", "")


async def test_a_plain_client_that_leaves_is_waited_for_only_with_a_request_id_of_its_own(open_site, until) -> None:
    async with open_site(["word "] * 40, delay=0.005) as site:
        for session, parameters, status in (
            ("session-1", {"request_id": "request-1"}, "complete"),
            ("session-2", {}, "aborted"),
        ):
            body = json.dumps({"inputs": "Hello", "parameters": {"session_id": session, **parameters}}).encode()
            made = site.model.tokens_made
            _, writer = await site.raw(
                b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            await until(lambda made=made: site.model.tokens_made > made + 2)
            writer.close()
            await until(lambda: len(site.service.turns) == 0)
            assert [turn.status for turn in await site.turns(session)] == [status]


async def test_a_client_that_reads_nothing_does_not_hold_the_others_up(open_site, site_parts) -> None:
    async with open_site(site_parts.long) as site:
        _, writer = await site.raw(request_bytes())
        answers = await asyncio.gather(*(site.ask(max_new_tokens=3) for _ in range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        writer.close()


async def test_the_same_request_twice_at_once_is_one_answer(open_site) -> None:
    async with open_site(["Only ", "once."], ["Twice."], delay=0.02) as site:
        both = await asyncio.gather(site.ask(request_id="request-1"), site.stream(request_id="request-1"))
        assert both[0].json()["outputs"] == both[1][-1]["outputs"] == "Only once."
        assert len(site.model.prompts) == 1
        conflict = await site.ask("Something else", request_id="request-1")
        assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "conflict")
