"""How models want their messages written: one class a format, and `chosen`, which finds the one of a model.

A system message stands where the format has a place for it, and otherwise in front of the next message of the user,
parted by an empty line; what to do with passages is one after the history and follows the same rule. Whatever is
written by others has the format's markers broken first (`neutralise`), in every spelling that `markers` names.

Plain words such as "USER:" or "### Instruction:" are broken only where the model's own template marks its roles with
them. Elsewhere they open no turn, and breaking them would falsify the logs, transcripts and headings that passages
quote. What a text asks for in plain language no escaping removes; that is left to moderation.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Any, Final

from chatkit.errors import BrokenModel
from chatkit.markers import Markers
from chatkit.protocols import PromptFormat
from chatkit.types import Message

if TYPE_CHECKING:
    from jinja2 import Environment

# What a template writes around messages, where it looks like a marker: <|user|>, [INST], <<SYS>>.
_MARKER = re.compile(r"<<[^<>\s]+>>|<[^<>\s]+>|\[[^\[\]\s]+\]")
# Words that mark a role, just before a message: "USER: ", "### Response:\n".
_SPOKEN_MARKER = re.compile(r"((?:#+ ?)?\w(?:[\w ]{0,30}\w)?[:：])\s*$")
# Of what a template says about its failure. Characters.
_MOST_WORDS = 200


class OpenChatKitFormat:
    """`<human>: …` and `<bot>: …` lines, as GPT-NeoXT-Chat-Base and its kin were tuned on.

    Source: inference/conversation.py of togethercomputer/OpenChatKit. It has no system message; ours opens the prompt.
    """

    stop_words: tuple[str, ...] = ("<human>", "\n<bot>:")

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        self._markers = Markers(["<human>", "<bot>", *special_tokens])

    def neutralise(self, text: str) -> str:
        """Return `text` with the markers broken, `<human>` as `<human >`."""
        return self._markers.broken(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt, ending in `<bot>:` without a space."""
        lines = []
        for message in messages:
            match message.role:
                case "system":
                    lines.append(f"{message.content}\n\n")
                case "user":
                    lines.append(f"<human>: {message.content}\n")
                case "assistant":
                    lines.append(f"<bot>: {message.content}\n")
        return "".join(lines) + "<bot>:"


class BlueLMFormat:
    """`[|Human|]:…[|AI|]:…</s>`, as BlueLM-7B-Chat was tuned on.

    Source: cli_demo.py and openai_api_demo/api_server.py of vivo-ai-lab/BlueLM; the latter also ends an answer at
    `[|Human|]:`. The tokenizer puts BOS in front, so it is written here. Its `[|SYSTEM|]:` serves tools and is not in
    the chat demos, so a system message opens the user's.
    """

    stop_words: tuple[str, ...] = ("[|Human|]", "[|AI|]")

    def __init__(self, special_tokens: Sequence[str] = (), *, bos_token: str = "<s>", eos_token: str = "</s>") -> None:
        self._bos, self._eos = bos_token, eos_token
        own = ("[|Human|]", "[|AI|]", "[|SYSTEM|]", "[|Function|]", bos_token, eos_token)
        self._markers = Markers([*own, *special_tokens])

    def neutralise(self, text: str) -> str:
        """Return `text` with the markers broken, `[|AI|]` as `[|AI| ]`."""
        return self._markers.broken(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt, ending in `[|AI|]:`."""
        rounds = (
            f"[|Human|]:{user}[|AI|]:" + ("" if answer is None else f"{answer}{self._eos}")
            for user, answer in _rounds(messages)
        )
        return self._bos + "".join(rounds)


class ChatGLM2Format:
    """Numbered rounds, `[Round 1]`, `问：…` and `答：…` with an empty line after each, as ChatGLM2-6B was tuned on.

    Source: build_prompt and get_prefix_tokens of tokenization_chatglm.py in THUDM/chatglm2-6b. It has no system
    message; ours opens the user's. The prefix tokens `[gMASK]` and `sop` are written where the tokenizer reads them
    from text, as `special_tokens` tells. `sop` and `eop` are not broken in text: they open no round, and whole words
    hold them.
    """

    stop_words: tuple[str, ...] = ("[Round ",)

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        start = next((token for token in ("<sop>", "sop") if token in special_tokens), "")
        self._prefix = f"[gMASK]{start}" if "[gMASK]" in special_tokens else ""
        pieces = {"sop", "eop"}
        self._markers = Markers(["[Round", "问：", "答：", *(t for t in special_tokens if t not in pieces)])

    def neutralise(self, text: str) -> str:
        """Return `text` with the markers broken, `问：` as `问 ：`."""
        return self._markers.broken(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt, ending in `答：`."""
        rounds = (
            f"[Round {number}]\n\n问：{user}\n\n答：" + ("" if answer is None else f"{answer}\n\n")
            for number, (user, answer) in enumerate(_rounds(messages), 1)
        )
        return self._prefix + "".join(rounds)


class Llama2Format:
    """`<s>[INST] <<SYS>> … <</SYS>> … [/INST] … </s>`, as Llama-2-chat was tuned on.

    Source: chat_completion in llama/generation.py of meta-llama/llama, which adds BOS and EOS to each round as ids and
    strips each message; here they are text that the tokenizer reads as the control tokens.
    """

    stop_words: tuple[str, ...] = ("[INST]",)

    def __init__(self, special_tokens: Sequence[str] = (), *, bos_token: str = "<s>", eos_token: str = "</s>") -> None:
        self._bos, self._eos = bos_token, eos_token
        own = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", bos_token, eos_token)
        self._markers = Markers([*own, *special_tokens])

    def neutralise(self, text: str) -> str:
        """Return `text` with the markers broken, `[INST]` as `[INST ]`."""
        return self._markers.broken(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt, ending in `[/INST]`."""
        system = ""
        if messages and messages[0].role == "system":
            system = f"<<SYS>>\n{messages[0].content.strip()}\n<</SYS>>\n\n"
            messages = messages[1:]
        prompt = ""
        for user, answer in _rounds(messages) or [("", None)]:
            prompt += f"{self._bos}[INST] {system}{user.strip()} [/INST]"
            prompt += "" if answer is None else f" {answer.strip()} {self._eos}"
            system = ""
        return prompt


class ChatTemplateFormat:
    """A model's own chat template, in Jinja, run in a sandbox.

    Args:
        template: the template's source.
        special_tokens: every string that the tokenizer reads as a control token.
        bos_token, eos_token: given to the template, which may print them.

    Raises:
        BrokenModel: the template cannot be read, or cannot write a message of the user and an exchange before it.
    """

    def __init__(
        self, template: str, *, special_tokens: Sequence[str] = (), bos_token: str = "", eos_token: str = ""
    ) -> None:
        with _named("cannot be read"):
            self._template = _environment().from_string(template)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self.stop_words: tuple[str, ...] = ()
        exchange = [Message("user", "u1"), Message("assistant", "a1")]
        if "u1" not in self._run(exchange[:1]):
            raise BrokenModel(
                "the model's chat template leaves out what a user writes; name a model with a template for plain text, "
                "or set prompt_format (CHATKIT_PROMPT_FORMAT)"
            )
        plain = self._run([*exchange, Message("user", "u2")])
        opened = self._probe([Message("system", "s1"), *exchange, Message("user", "u2")])
        mixed = self._probe([Message("system", "s1"), *exchange, Message("system", "s2"), Message("user", "u2")])
        self._system_first = _in_order(opened, "s1", "u1", "a1", "u2")
        self._system_anywhere = self._system_first and _in_order(mixed, "s1", "u1", "a1", "s2", "u2")
        greeted = self._probe([Message("assistant", "a0"), *exchange])
        both = self._probe([Message("system", "s1"), Message("assistant", "a0"), *exchange])
        self._greeting_first = _in_order(greeted, "a0", "u1", "a1") and _in_order(both, "s1", "a0", "u1", "a1")
        written = {marker for text in (plain, opened, mixed) for marker in _MARKER.findall(text)}
        self._markers = Markers([*written, *_spoken_markers(plain), *special_tokens])

    def neutralise(self, text: str) -> str:
        """Return `text` with every control token and role marker of the template broken."""
        return self._markers.broken(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt.

        A system message that the template does not take where it stands opens the next message, and an answer that it
        does not take as the first message is told in the first system message.
        """
        if not self._greeting_first:
            messages = fold_greeting(messages)
        if not self._system_anywhere:
            messages = fold_systems(messages, keep_first=self._system_first)
        return self._run(messages)

    def _run(self, messages: Sequence[Message]) -> str:
        entries = [{"role": m.role, "content": m.content} for m in messages]
        # As apply_chat_template has them; templates ask whether they are none.
        nothing = {"tools": None, "documents": None}
        with _named("refused the messages"):
            return self._template.render(messages=entries, add_generation_prompt=True, **nothing, **self._tokens)
        raise AssertionError  # never: _named lets no error by

    def _probe(self, messages: Sequence[Message]) -> str:
        """Return what the template makes of the messages; nothing where it refuses them."""
        try:
            return self._run(messages)
        except BrokenModel:
            return ""


_NAMED: Final[dict[str, Callable[[Sequence[str], str, str], PromptFormat]]] = {
    "openchatkit": lambda special, bos, eos: OpenChatKitFormat(special),
    "bluelm": lambda special, bos, eos: BlueLMFormat(special, bos_token=bos or "<s>", eos_token=eos or "</s>"),
    "chatglm2": lambda special, bos, eos: ChatGLM2Format(special),
    "llama2": lambda special, bos, eos: Llama2Format(special, bos_token=bos or "<s>", eos_token=eos or "</s>"),
}
# Models that were tuned on a format before templates were kept with the tokenizer, by what their names say.
_TUNED_ON = (
    (re.compile(r"gpt-?neoxt-?chat|pythia-chat-base|redpajama-incite-.*chat", re.IGNORECASE), "openchatkit"),
    (re.compile(r"bluelm", re.IGNORECASE), "bluelm"),
    (re.compile(r"chatglm2", re.IGNORECASE), "chatglm2"),
)
_LLAMA2_CHAT = re.compile(r"llama[-_ ]?v?2.*chat", re.IGNORECASE)


def chosen(
    setting: str,
    *,
    name: str,
    chat_template: str | None = None,
    special_tokens: Sequence[str] = (),
    bos_token: str | None = None,
    eos_token: str | None = None,
) -> PromptFormat:
    """Return the prompt format of a model.

    Args:
        setting: the setting `prompt_format`: a format's name, `template`, or `auto` to go by the model.
        name: what the model is called, all its names in one string: repository, file, the name in its config.
        chat_template: the tokenizer's own.
        special_tokens: every string that the tokenizer reads as a control token.
        bos_token, eos_token: as text.

    Raises:
        BrokenModel: the template cannot be used, or there is none and the name says nothing.
    """
    kind = setting
    if kind == "auto":
        kind = next((kind for pattern, kind in _TUNED_ON if pattern.search(name)), "template")
        if kind == "template" and not chat_template and _LLAMA2_CHAT.search(name):
            kind = "llama2"
    if kind in _NAMED:
        return _NAMED[kind](special_tokens, bos_token or "", eos_token or "")
    if not chat_template:
        raise BrokenModel(
            f"{name!r} has no chat template, and its name tells of none of the formats {', '.join(_NAMED)}; name an "
            "instruction-tuned model, or set prompt_format (CHATKIT_PROMPT_FORMAT) to the format it was tuned on"
        )
    return ChatTemplateFormat(
        chat_template, special_tokens=special_tokens, bos_token=bos_token or "", eos_token=eos_token or ""
    )


def _rounds(messages: Sequence[Message]) -> list[tuple[str, str | None]]:
    """Return messages as rounds of a user's words and the answer, None where it is still to come."""
    rounds: list[tuple[str, str | None]] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "assistant":
            rounds.append(("\n\n".join(waiting), message.content))
            waiting = []
        else:
            waiting.append(message.content)
    return [*rounds, ("\n\n".join(waiting), None)] if waiting else rounds


def _in_order(text: str, *words: str) -> bool:
    places = [text.find(word) for word in words]
    return places == sorted(places) and min(places) >= 0


def _spoken_markers(probe: str) -> list[str]:
    """Return the plain words with which a template marks a role; `probe` holds the messages u1, a1 and u2."""
    parts = re.fullmatch(r".*?u1(.*)a1(.*)u2.*", probe, re.DOTALL)
    found = [_SPOKEN_MARKER.search(part) for part in parts.groups()] if parts else []
    return [match[1] for match in found if match]


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Turn whatever a template raises into one line; a template is a program, and any error may come of it.

    Raises:
        BrokenModel: with the template's own words or those of Jinja, but of any other error its type alone: its words
            may be the prompt's.
    """
    from jinja2 import TemplateError

    try:
        yield
    except Exception as error:
        words = str(error) if isinstance(error, TemplateError) else type(error).__name__
        raise BrokenModel(f"the model's chat template {what}: {' '.join(words.split())[:_MOST_WORDS]}") from error


def _environment() -> "Environment":
    """Return what apply_chat_template of transformers runs templates in, but for the clock: it knows the day alone."""
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.nodes import Node, Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an answer for training; here it only holds what is in it."""

        tags = {"generation"}  # noqa: RUF012  (Jinja declares it as an attribute of the object)

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _day
    return environment


def _refuse(reason: str) -> Any:
    from jinja2 import TemplateError

    raise TemplateError(reason)


def _day(form: str) -> str:
    """Return the day at midnight, UTC: a prompt with a clock in it would have no prefix in common with any other."""
    return datetime.combine(datetime.now(UTC).date(), time()).strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers' filter does; Jinja's own would write HTML's escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def fold_systems(messages: Sequence[Message], *, keep_first: bool) -> list[Message]:
    """Put every system message, or every one but the first, in front of the message that follows it.

    One that nothing follows becomes the user's.
    """
    folded: list[Message] = []
    waiting: list[str] = []
    for at, message in enumerate(messages):
        if message.role == "system" and not (keep_first and at == 0):
            waiting.append(message.content)
        else:
            folded.append(Message(message.role, "\n\n".join([*waiting, message.content])))
            waiting = []
    return [*folded, Message("user", "\n\n".join(waiting))] if waiting else folded


def fold_greeting(messages: Sequence[Message]) -> list[Message]:
    """Make an answer that comes before anything was asked a part of the first system message, told as a fact."""
    opening = [message.content for message in messages[:1] if message.role == "system"]
    greeting, *rest = messages[len(opening) :] or [Message("user", "")]
    if greeting.role != "assistant":
        return list(messages)
    told = "\n\n".join([*opening, f"You began this conversation with the words:\n{greeting.content}"])
    return [Message("system", told), *rest]
