"""One module a door: each reads its own wire schema into a ChatRequest and writes a turn's events in its own frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from chatkit.server.callers import Caller
from chatkit.types import ChatRequest, Event, Reply


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a door takes where a request is silent, and the name of the model that answers."""

    model: str
    max_new_tokens: int
    k: int


class Call(Protocol):
    """One parsed call.

    Attributes:
        request: the turn asked for.
        stream: whether the answer is to be streamed, and `media_type` how.
        headers: of the answer, beside those of its form.
    """

    request: ChatRequest
    stream: bool
    media_type: str
    headers: Mapping[str, str]

    def answer(self, reply: Reply) -> dict[str, Any]:
        """Return the JSON answer of a turn."""
        ...

    def frames(self, event: Event) -> bytes:
        """Return an event of a turn as the stream sends it, b"" where this door has no frame for it."""
        ...


class Door(Protocol):
    """Reads one call.

    Raises:
        InvalidRequest: the body or a value of it is wrong, naming it.
        Forbidden: the body names a user that the caller may not act for.
    """

    def __call__(self, raw: bytes, caller: Caller, headers: Mapping[str, str], defaults: Defaults) -> Call:
        """Parse a body; the headers' names are lower-case."""
        ...
