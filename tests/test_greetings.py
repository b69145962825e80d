"""A conversation that the assistant opened: no template fails on it, and what was said is not lost."""

import json

import pytest

from chatkit.models.upstream_format import MessagesFormat, TokenCounter
from chatkit.prompt_formats import ChatTemplateFormat, fold_greeting
from chatkit.prompts import build_prompt
from chatkit.protocols import PromptFormat
from chatkit.service import OpenChatKitService
from chatkit.testing import KeywordModerator, MemoryStore, ScriptedModel
from chatkit.types import ChatRequest, Message, Turn

# As Mistral's are: the two sides in turns after an optional system message, which stands before the last message.
STRICT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('conversation roles must alternate user and assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ said if loop.last else '' }}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# As Mistral's first was: without a system message.
STRICTER = "{% if messages[0]['role'] == 'system' %}{{ no_such_role() }}{% endif %}" + STRICT
FREE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}<|assistant|>"
GREETING, QUESTION = Message("assistant", "Ahoy!"), Message("user", "Who are you?")
TOLD = "You began this conversation with the words:\nAhoy!"


def strict(template: str = STRICT) -> ChatTemplateFormat:
    return ChatTemplateFormat(template, special_tokens=("<s>", "</s>"), bos_token="<s>", eos_token="</s>")


def test_a_template_that_wants_the_sides_in_turns_gets_the_greeting_in_the_system_message() -> None:
    opened = [Message("system", "Be brief."), GREETING, QUESTION]
    assert strict().render(opened) == f"<s>[INST] Be brief.\n\n{TOLD}\n\nWho are you?[/INST]"
    assert strict().render(opened[1:]) == f"<s>[INST] {TOLD}\n\nWho are you?[/INST]"


def test_a_template_without_a_system_message_gets_both_in_the_first_message() -> None:
    answered = [Message("system", "Be brief."), GREETING, QUESTION, Message("assistant", "Me."), QUESTION]
    assert strict(STRICTER).render(answered) == (
        f"<s>[INST] Be brief.\n\n{TOLD}\n\nWho are you?[/INST] Me.</s>[INST] Who are you?[/INST]"
    )


def test_a_template_that_takes_a_greeting_gets_it_as_it_is() -> None:
    prompt = ChatTemplateFormat(FREE).render([GREETING, QUESTION])
    assert prompt == "<|assistant|>Ahoy!</s><|user|>Who are you?</s><|assistant|>"


@pytest.mark.parametrize(
    ("systems", "roles"),
    [("first", ["system", "user"]), ("none", ["user"]), ("any", ["system", "assistant", "user"])],
)
def test_an_upstream_whose_template_is_not_known_gets_the_sides_in_turns(systems, roles) -> None:
    rows = json.loads(MessagesFormat(systems).render([Message("system", "Be brief."), GREETING, QUESTION]))
    assert [row["role"] for row in rows] == roles
    assert all(text in json.dumps(rows) for text in ("Be brief.", "Ahoy!", "Who are you?"))


def test_folding_changes_nothing_where_nobody_was_greeted() -> None:
    for messages in ([], [QUESTION], [Message("system", "S")], [Message("system", "S"), QUESTION, GREETING]):
        assert fold_greeting(messages) == messages


@pytest.mark.parametrize("form", [strict(), strict(STRICTER), MessagesFormat(), MessagesFormat("none")])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_prompt_of_a_greeted_conversation_holds_every_turn(form: PromptFormat, system: str) -> None:
    turns = [
        Turn(1, "kept-1", 1, "complete", "", "Ahoy!", "stop"),
        Turn(2, "kept-2", 1, "complete", "Hello?", "Yes.", "stop"),
    ]
    made = build_prompt(
        form, TokenCounter(), system=system, turns=turns, passages=(), text="Who are you?", window=999, reserve=9
    )
    assert made.dropped_turns == 0
    places = [made.text.index(text) for text in ("Ahoy!", "Hello?", "Yes.", "Who are you?") if text in made.text]
    assert len(places) == 4


@pytest.mark.anyio
async def test_a_turn_after_a_greeting_is_answered_by_a_model_with_such_a_template() -> None:
    model = ScriptedModel(["Me."])
    model.format = strict()
    service = OpenChatKitService(model, KeywordModerator([]), MemoryStore())
    reply = await service.reply(ChatRequest("Who are you?", "request-1", history=(GREETING,)))
    assert reply.text == "Me."
    assert model.prompts == [f"<s>[INST] {TOLD}\n\nWho are you?[/INST]"]
