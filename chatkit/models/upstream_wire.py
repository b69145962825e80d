"""What goes to an OpenAI-compatible server and what comes back, as plain values. Pure: knows no connection."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeGuard

from chatkit.errors import ChatkitError, EngineFailed, InvalidRequest, Overloaded, TooLarge
from chatkit.types import Chunk, FinishReason, SamplingParams

# OpenAI takes four; the service cuts at all of them. POST /v1/chat/completions, "stop", in its API reference.
_MOST_STOPS = 4
# A chunk holds a token or more. Only a server that ignores the limit sends so many more chunks than tokens were wanted.
_CHUNKS_PER_TOKEN = 4
# More tokens of an answer than were asked for are believed by so many: some servers count the marker at its end.
_SLACK = 16
# What the log shows of an error: its type and code where they are such.
_NAME = re.compile(r"[A-Za-z_.]{1,60}|\d{1,6}")

_BUSY = "the language model's server is busy; try again shortly"
BROKEN = "the language model's server could not answer; try again shortly"
_TOO_LONG = (
    "the prompt and its answer are longer than the language model's server takes; send a shorter message or ask for "
    "fewer max_new_tokens"
)
_NOT_SET_UP = "the operator has to look at the settings of the language model's server"
_TOOL = "the language model's server answers with a tool call ({}), and no tools are used here; ask in other words"
_REFUSED = "the language model's server refuses this request or its sampling parameters; change them"

# Words in which servers say that prompt and answer do not fit: vLLM and SGLang, llama.cpp, TGI, OpenAI, chatkit.
_TOO_LONG_WORDS = (
    "context length",
    "context_length",
    "context size",
    "context_size",
    "context window",
    "longer than the model",
    "maximum input length",
    "max_new_tokens` must be",
    "too long",
    "too_large",
    "tokens, at most",
)
# OpenAI's reasons, and those that servers invented. Anything else reads as a stop.
_ENDS: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    **dict.fromkeys(("content_filter", "safety", "recitation", "blocklist", "prohibited_content"), "content_filter"),
}
_FAILED_ENDS = ("error", "abort")
_TOOLS = ("tool_calls", "function_call")


def request_body(
    model: str, messages: Sequence[Mapping[str, str]], sampling: SamplingParams, *, fields: Collection[str], usage: bool
) -> dict[str, Any]:
    """Return the body of a streamed request.

    Args:
        fields: names beyond the common ones that the server takes.
        usage: ask for the count of tokens.
    """
    length = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "stream": True,
        length: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if usage:
        body["stream_options"] = {"include_usage": True}
    if sampling.stop_words:
        body["stop"] = list(sampling.stop_words[:_MOST_STOPS])
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.top_k and "top_k" in fields:
        body["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1.0:
        for name in ("repetition_penalty", "repeat_penalty"):  # the second is llama.cpp's
            if name in fields:
                body[name] = sampling.repetition_penalty
    return body


class ToolCalled(EngineFailed):
    """The model answers with the call of a tool; the server is well."""


class Answer:
    """One answer as its events come in.

    Attributes:
        finish_reason: set once the model has ended.
        complete: nothing more is wanted, the count of tokens has come or will not.
        begun: whether a token came; some servers send an event without any as soon as they have the request.
        complaint: what the server says went wrong, for the log, without its words.
    """

    def __init__(self, *, most_tokens: int, prompt_tokens: Callable[[], int], context: int) -> None:
        self.finish_reason: FinishReason | None = None
        self.complete = False
        self.begun = False
        self.complaint = ""
        self._most_chunks = most_tokens * _CHUNKS_PER_TOKEN
        self._prompt_tokens = prompt_tokens
        self._most_counted = most_tokens + _SLACK
        self._context = context
        self._counted: tuple[int, int] | None = None
        self._made = 0
        self._half = ""

    def take(self, data: str) -> Chunk | None:
        """Read one event and return its text, if it has any.

        Raises:
            ChatkitError: what the server says went wrong.
            ValueError: it is not what such a server sends.
        """
        if data.strip() == "[DONE]":
            self.finish_reason = self.finish_reason or "stop"
            self.complete = True
            return None
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event is not an object")
        if event.get("error"):
            self.complaint = for_the_log(data)
            raise failure_in(event, 500 if self._made else None)
        self._count(event.get("usage"))
        choices = event.get("choices")
        rows = [row for row in choices if isinstance(row, dict)] if isinstance(choices, list) else []
        first = next((row for row in rows if row.get("index") in (0, None)), None)
        return self._choice(first) if first is not None else None

    def _choice(self, choice: Mapping[str, Any]) -> Chunk | None:
        if self.finish_reason:
            return None
        said = choice.get("delta") or choice.get("message") or {}
        said = said if isinstance(said, dict) else {}
        text = self._whole(_text_in(said.get("content")) + _text_in(said.get("refusal")))
        thought = bool(said.get("reasoning_content") or said.get("reasoning"))
        reason = choice.get("finish_reason")
        tool = next((name for name in _TOOLS if said.get(name) or reason == name), None)
        if tool or reason in _FAILED_ENDS:
            self.complaint = tool or f"finish_reason {reason}"
            raise ToolCalled(_TOOL.format(tool)) if tool else EngineFailed(BROKEN)
        if reason:
            self.finish_reason = _ENDS.get(str(reason).lower(), "stop")
        tokens = int(bool(text or self._half) or thought)
        self._made += tokens
        self.begun = self.begun or tokens > 0
        if self._made > self._most_chunks and not self.finish_reason:
            self.finish_reason, self.complete = "length", True
        return Chunk(text, tokens) if tokens else None

    def _whole(self, text: str) -> str:
        """Return whole characters: one outside the basic plane may come as two halves, in two events even."""
        text, self._half = self._half + text, ""
        if not any("\ud800" <= character <= "\udfff" for character in text):
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            made, read = usage.get("completion_tokens"), usage.get("prompt_tokens")
            if _is_count(made, self._most_counted) and _is_count(read, self._context):
                self._counted = made, read
                self.complete = self.finish_reason is not None

    def last(self) -> Chunk:
        """Return the chunk that ends the answer; with it the counts add up to the server's, where it counted."""
        made, read = self._counted or (self._made, self._prompt_tokens())
        text = "\ufffd" if self._half else ""
        return Chunk(text, max(made - self._made, 0), self.finish_reason, read)


def _text_in(content: Any) -> str:
    """Return the text of a message's content: a text, or parts of which some are text."""
    if isinstance(content, list):
        return "".join(_text_in(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _is_count(value: Any, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def failure(status: int, text: str) -> ChatkitError:
    """Return the error that a status and what came with it stand for; none of the server's own words are in it."""
    if status == 413 or (status in (400, 422) and any(words in text.lower() for words in _TOO_LONG_WORDS)):
        return TooLarge(_TOO_LONG)
    if status in (400, 422):
        return InvalidRequest(_REFUSED)
    if status in (401, 403, 404) or 300 <= status < 400:
        return EngineFailed(_NOT_SET_UP)
    return Overloaded(_BUSY) if status == 429 else EngineFailed(BROKEN)


def failure_in(event: Mapping[str, Any], status: int | None) -> ChatkitError:
    """Return the error that an event under status 200 stands for.

    Args:
        status: taken for the server's unless None; after some text nothing can be the request's fault.
    """
    error = event["error"]
    table = error if isinstance(error, dict) else {"message": str(error)}
    code = table.get("code")
    words = f"{code} {table.get('type')} {table.get('message')}"
    if status is None:
        status = code if isinstance(code, int) and not isinstance(code, bool) else _status_of(words.lower())
    return failure(status, words)


def _status_of(words: str) -> int:
    """Return the status that an error's code or type, given in words, stands for."""
    if any(word in words for word in ("overloaded", "rate_limit", "too many requests")):
        return 429
    if any(word in words for word in ("too_large", "context_length", "exceed_context_size")):
        return 413
    return 400 if any(word in words for word in ("invalid_request", "badrequest", "validation")) else 500


def for_the_log(text: str) -> str:
    """Return what a server's refusal is, without its words: they may be the prompt's, or the key."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):  # nested without end
        body = None
    found: Any = body.get("error", body) if isinstance(body, dict) else None
    table = found if isinstance(found, dict) else {"message": found}
    named = [f"{name} {table[name]}" for name in ("type", "code") if _is_name(table.get(name))]
    words = table.get("message")
    return ", ".join([*named, f"a message of {len(words if isinstance(words, str) else text)} characters"])


def _is_name(value: Any) -> bool:
    """Return whether a value is a kind of error; keys have digits in them, and prompts more than a word."""
    return isinstance(value, str | int) and not isinstance(value, bool) and _NAME.fullmatch(str(value)) is not None
