"""Saying it again over HTTP: an edited message, another answer, and what no prompt holds any more."""

import json
import re

import pytest

from chatkit.planning import ServiceOptions
from chatkit.testing import turn_with
from chatkit.types import Owner
from tests.serving import ROOT

pytestmark = pytest.mark.anyio


async def told(site, *texts) -> None:
    for text in texts:
        answer = await site.ask(text, session_id="my-session")
        assert answer.status_code == 200, answer.text


async def replaced(site, text, number, **more):
    return await site.ask(text, session_id="my-session", replaces=number, **more)


async def test_an_edited_message_hides_what_followed_and_the_model_sees_what_was_before(open_site) -> None:
    async with open_site(["One."], ["Two."], ["Three."], ["Four."], ["Five."]) as site:
        await told(site, "My name is Zebulon.", "I like the colour blue.", "And the number seven.")
        answer = await replaced(site, "I like the colour green.", 2)
        assert (answer.status_code, answer.json()["seq"], answer.json()["outputs"]) == (200, 4, "Four.")
        prompt = site.model.prompts[-1]
        assert "My name is Zebulon." in prompt
        assert "One." in prompt
        for hidden in ("colour blue", "Two.", "number seven", "Three."):
            assert hidden not in prompt
        await told(site, "What do you know?")
        prompt = site.model.prompts[-1]
        for shown in ("My name is Zebulon.", "I like the colour green.", "Four."):
            assert shown in prompt
        for hidden in ("colour blue", "Two.", "number seven", "Three."):
            assert hidden not in prompt
        assert [turn.seq for turn in await site.turns()] == [1, 4, 5]


async def test_another_answer_to_the_same_message_leaves_the_first_one_stored(open_site) -> None:
    async with open_site(["The first answer."], ["The second answer."]) as site:
        await told(site, "Tell me a story.")
        again = await replaced(site, "Tell me a story.", 1)
        assert (again.json()["outputs"], again.json()["seq"]) == ("The second answer.", 2)
        assert "The first answer." not in site.model.prompts[-1]
        rows = (await site.client.get("/sessions/my-session")).json()["turns"]
        assert [(row["seq"], row["assistant"], row["replaces"]) for row in rows] == [
            (1, "The first answer.", None), (2, "The second answer.", 1),
        ]  # fmt: skip
        lines = (await site.client.get("/sessions/my-session/export")).text.splitlines()
        assert [json.loads(line)["replaces"] for line in lines] == [None, 1]


@pytest.mark.parametrize("number", [190, 100, 5, 1])
async def test_however_old_the_replaced_turn_is_the_model_sees_as_many_from_before_it(open_site, number) -> None:
    most = ServiceOptions().history_turns

    def first_before(number: int) -> int:
        """The first turn of a whole block, a quarter of those that are read, among the newest before this one."""
        block = most // 4
        return -(-max(0, number - most - 1) // block) * block + 1

    async with open_site(["Hi."]) as site:
        turns = [turn_with(seq, f"Message-{seq}.", "Hi.") for seq in range(1, 201)]
        await site.store.restore(Owner(), "my-session", turns, expires_at=None)
        answer = await replaced(site, "Once more", number)
        assert (answer.status_code, answer.json()["dropped_turns"]) == (200, first_before(number) - 1)
        seen = [int(seq) for seq in re.findall(r"Message-(\d+)\.", site.model.prompts[-1])]
        assert seen == list(range(first_before(number), number))
        await told(site, "And now?")
        assert [turn.seq for turn in (await site.turns())[-2:]] == [201, 202]
        await replaced(site, "Once again", 202)
        await replaced(site, "And again", max(1, number - 2))
        seen = [int(seq) for seq in re.findall(r"Message-(\d+)\.", site.model.prompts[-1])]
        assert seen == list(range(first_before(number - 2), number - 2))


async def test_a_replacing_turn_that_is_blocked_shows_the_old_ones_again(open_site) -> None:
    async with open_site(["One."], ["Two."], ["A canary sings."], ["Four."], ["Five."]) as site:
        await told(site, "My name is Zebulon.", "I like the colour blue.")
        output = await replaced(site, "I like the colour green.", 2)
        given = await replaced(site, "I like the canary.", 1)
        assert [answer.json()["finish_reason"] for answer in (output, given)] == ["content_filter"] * 2
        await told(site, "What do you know?")
        prompt = site.model.prompts[-1]
        for shown in ("My name is Zebulon.", "I like the colour blue."):
            assert shown in prompt
        assert "green" not in prompt


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "replaces is 0, expected the number of a turn of this session; it has turns 1 to 2"),
        (-1, "replaces is -1, expected the number of a turn"),
        (3, "replaces is 3, expected the number of a turn of this session; it has turns 1 to 2"),
        (10**30, "expected the number of a turn of this session"),
        ("1", "'parameters.replaces' is '1', expected a valid integer"),
        (1.5, "'parameters.replaces' is 1.5"),
        (True, "'parameters.replaces' is True"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_number_that_is_no_turns_is_422_and_nothing_is_stored(open_site, number, words, stream) -> None:
    async with open_site(["Hi."]) as site:
        await told(site, "Hello", "Again")
        before = site.stored_items()
        body = {"inputs": "Once more", "parameters": {"session_id": "my-session", "replaces": number}}
        answer = await site.client.post("/invocations", json={**body, "stream": stream})
        assert answer.status_code == 422, answer.text
        assert words in answer.json()["error"]["message"]
        assert (site.stored_items(), len(site.model.prompts)) == (before, 2)


async def test_a_session_that_is_not_named_or_not_open_has_no_turn_to_replace(open_site) -> None:
    async with open_site(["Hi."]) as site:
        unnamed = await site.ask("Hello", replaces=1)
        assert (unnamed.status_code, unnamed.json()["error"]["message"]) == (
            422, "replaces is 1 and no session_id is given, expected both",
        )  # fmt: skip
        unopened = await replaced(site, "Hello", 1)
        assert (unopened.status_code, "it has none yet" in unopened.text) == (422, True)
        unknown = await site.ask("Hello", session_id="s-unknown-session", replaces=1)
        assert unknown.status_code == 404
        assert site.stored_items() == 0


async def test_a_repeat_of_a_replacing_request_is_replayed_and_the_same_id_elsewhere_is_409(open_site) -> None:
    async with open_site(["One."], ["Two."], ["Three."]) as site:
        await told(site, "Hello", "Again")
        first = await replaced(site, "Once more", 2, request_id="request-again")
        again = await replaced(site, "Once more", 2, request_id="request-again")
        other = await replaced(site, "Once more", 1, request_id="request-again")
        assert (first.json()["seq"], again.json()["seq"], again.json()["replayed"]) == (3, 3, True)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
        assert len(site.model.prompts) == 3


async def test_a_streamed_replacement_ends_with_its_number(open_site) -> None:
    async with open_site(["One."], ["Two."]) as site:
        await told(site, "Hello")
        frames = await site.stream("Hello again", session_id="my-session", replaces=1)
        assert [frame["event"] for frame in frames] == ["start", "delta", "done"]
        assert (frames[-1]["seq"], frames[-1]["outputs"]) == (2, "Two.")


async def test_the_rule_in_the_docs_says_which_turns_a_model_sees(open_site) -> None:
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    (source,) = [block for block in page.split("```python\n")[1:] if block.startswith("def visible")]
    names: dict = {}
    exec(source.split("```")[0], names)
    async with open_site(["Hi."], ["A canary sings."], ["Hello."]) as site:
        await told(site, "One")
        assert (await replaced(site, "Two", 1)).json()["finish_reason"] == "content_filter"
        await told(site, "Three", "Four", "Five")
        await replaced(site, "Six", 4)
        await replaced(site, "Seven", 5)
        await told(site, "Eight")
        rows = (await site.client.get("/sessions/my-session")).json()["turns"]
        assert len(rows) == 8
        shown = [row["seq"] for row in names["visible"](rows)]
        assert shown == [turn.seq for turn in await site.turns()] == [1, 2, 3, 7, 8]


async def test_the_openai_door_takes_it_too_and_tells_the_numbers(open_site) -> None:
    async with open_site(["The first."], ["The second."]) as site:
        body = {"messages": [{"role": "user", "content": "Which one?"}], "session_id": "my-session"}
        first = await site.client.post("/v1/chat/completions", json=body)
        assert first.json()["chatkit"]["seq"] == 1
        again = await site.client.post("/v1/chat/completions", json={**body, "replaces": 1})
        assert (again.status_code, again.json()["chatkit"]["seq"]) == (200, 2)
        assert "x-chatkit-ignored" not in again.headers
        assert "The first." not in site.model.prompts[-1]
        assert [(turn.seq, turn.assistant, turn.replaces) for turn in await site.turns()] == [(2, "The second.", 1)]
        unstored = await site.client.post("/v1/chat/completions", json={"messages": body["messages"]})
        assert unstored.json()["chatkit"]["seq"] is None
