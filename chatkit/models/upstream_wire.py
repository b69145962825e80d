"""What goes to an OpenAI-compatible server and what comes back, as plain values. Pure: knows no connection."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from chatkit.errors import ChatkitError, EngineFailed, InvalidRequest, Overloaded, TooLarge
from chatkit.types import Chunk, FinishReason, SamplingParams

# OpenAI takes four; the service cuts at all of them. POST /v1/chat/completions, "stop", in its API reference.
_MOST_STOPS = 4
# A chunk holds a token or more. Only a server that ignores the limit sends so many more chunks than tokens were wanted.
_CHUNKS_PER_TOKEN = 4
# How much of a refusal is logged, and the shortest piece of a message that counts as the prompt in it. Characters.
_LOGGED, _ECHO = 300, 20

_BUSY = "the language model's server is busy; try again shortly"
BROKEN = "the language model's server could not answer; try again shortly"
_TOO_LONG = (
    "the prompt and its answer are longer than the language model's server takes; send a shorter message or ask for "
    "fewer max_new_tokens"
)
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
_ENDS: Mapping[str, FinishReason] = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
_FAILED_ENDS = ("error", "abort")


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


class Answer:
    """One answer as its events come in.

    Attributes:
        finish_reason: set once the model has ended.
        complete: nothing more is wanted, the count of tokens has come or will not.
        begun: whether an event came.
        complaint: the server's own words about what went wrong, for the log.
    """

    def __init__(self, *, most_tokens: int, prompt_tokens: int) -> None:
        self.finish_reason: FinishReason | None = None
        self.complete = False
        self.begun = False
        self.complaint = ""
        self._most_chunks = most_tokens * _CHUNKS_PER_TOKEN
        self._prompt_tokens = prompt_tokens
        self._counted: tuple[int, int] | None = None
        self._made = 0
        self._half = ""

    def take(self, data: str) -> Chunk | None:
        """Read one event and return its text, if it has any.

        Raises:
            ChatkitError: what the server says went wrong.
            ValueError: it is not what such a server sends.
        """
        self.begun = True
        if data.strip() == "[DONE]":
            self.finish_reason = self.finish_reason or "stop"
            self.complete = True
            return None
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event is not an object")
        if event.get("error"):
            self.complaint = json.dumps(event["error"], ensure_ascii=False)
            raise failure_in(event, 500 if self._made else None)
        self._count(event.get("usage"))
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return None
        return self._choice(choices[0])

    def _choice(self, choice: Mapping[str, Any]) -> Chunk | None:
        if self.finish_reason:
            return None
        said = choice.get("delta") or choice.get("message") or {}
        text = said.get("content") if isinstance(said, dict) else None
        text = self._whole(text) if isinstance(text, str) else ""
        thought = isinstance(said, dict) and bool(said.get("reasoning_content") or said.get("reasoning"))
        reason = choice.get("finish_reason")
        if reason in _FAILED_ENDS:
            self.complaint = f"finish_reason {reason}"
            raise EngineFailed(BROKEN)
        if reason:
            self.finish_reason = _ENDS.get(str(reason), "stop")
        tokens = int(bool(text or self._half) or thought)
        self._made += tokens
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
            if isinstance(made, int) and isinstance(read, int) and min(made, read) >= 0:
                self._counted = made, read
                self.complete = self.finish_reason is not None

    def last(self) -> Chunk:
        """Return the chunk that ends the answer; with it the counts add up to the server's, where it counted."""
        made, read = self._counted or (self._made, self._prompt_tokens)
        text = "\ufffd" if self._half else ""
        return Chunk(text, max(made - self._made, 0), self.finish_reason, read)


def failure(status: int, text: str) -> ChatkitError:
    """Return the error that a status and what came with it stand for; none of the server's own words are in it."""
    if status == 413 or (status in (400, 422) and any(words in text.lower() for words in _TOO_LONG_WORDS)):
        return TooLarge(_TOO_LONG)
    if status in (400, 422):
        return InvalidRequest(_REFUSED)
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


def for_the_log(text: str, messages: Sequence[Mapping[str, str]], secret: str) -> str:
    """Return the beginning of a server's refusal on one line, without the key and without words of the prompt."""
    line = " ".join(text.split())[:_LOGGED]
    if secret and secret in text:
        return "(not shown: it repeats the key)"
    pieces = {line[at : at + _ECHO] for at in range(max(len(line) - _ECHO, 0) + 1)} if len(line) >= _ECHO else {line}
    for message in messages:
        content = " ".join(message["content"].split())
        if any(piece in content for piece in pieces if piece):
            return "(not shown: it repeats the prompt)"
    return line
