"""Whom the shell talks to: a service in this process, or one behind an address. The shell does not know which."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from chatkit.cli._hyperparameters import Hyperparameters
from chatkit.errors import ChatkitError, InvalidRequest
from chatkit.protocols import Generation, LanguageModel, PromptFormat
from chatkit.service import OpenChatKitService
from chatkit.types import ChatRequest, Event, Owner, RetrievalOptions, SamplingParams

if TYPE_CHECKING:
    from chatkit.client.native import NativeClient


@dataclass(frozen=True, slots=True)
class Question:
    """One message as the shell sends it.

    Attributes:
        session_id: None opens a session.
        alone: answered without the conversation and without retrieval, and not stored.
        replaces: number of the turn whose place this one takes.
    """

    text: str
    request_id: str
    session_id: str | None
    hyperparameters: Hyperparameters
    alone: bool = False
    replaces: int | None = None


class Talker(Protocol):
    """Answers questions."""

    @property
    def name(self) -> str:
        """What answers, in words for the first line of the shell."""
        ...

    def say(self, question: Question) -> AsyncGenerator[Event, None]:
        """Yield the turn's events; closing the generator stops the turn, which ends aborted with what was taken.

        Raises (while iterating):
            ChatkitError: why there is no answer; an `Error` event says the same of a turn that had begun.
        """
        ...

    async def report(self, token: str, text: str) -> None:
        """Report a refusal as wrong, with the message that was refused.

        Raises:
            ChatkitError: it was not kept.
        """
        ...

    def last_prompt(self) -> str:
        """Return the prompt that the model got last, empty before the first.

        Raises:
            InvalidRequest: it is not to be had here.
        """
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class LocalTalker:
    """Talks to a service in this process as one of its owners, and closes it."""

    def __init__(self, service: OpenChatKitService, owner: Owner) -> None:
        self._service, self._owner = service, owner
        self._heard = service.model = _Overheard(service.model)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._service.model.name

    async def say(self, question: Question) -> AsyncGenerator[Event, None]:
        """Yield the turn's events; returns, also when closed early, after the turn was stored."""
        settings = question.hyperparameters
        live = self._service.start(
            ChatRequest(
                text=question.text,
                request_id=question.request_id,
                owner=self._owner,
                client_request_id=True,
                session_id=None if question.alone else question.session_id,
                sampling=settings.sampling(),
                retrieval=RetrievalOptions(enabled=False) if question.alone else settings.retrieval(),
                history=() if question.alone else None,
                replaces=question.replaces,
            )
        )
        try:
            async with aclosing(live.events()) as events:
                async for event in events:
                    yield event
        finally:
            await live.ended()

    async def report(self, token: str, text: str) -> None:
        """Keep the report beside the sessions."""
        if self._service.feedback is None:
            raise InvalidRequest("no reports are taken here; start again with --feedback true")
        self._service.feedback.report(token, text)

    def last_prompt(self) -> str:
        """Return the prompt that the model got last, empty before the first."""
        return self._heard.last

    async def close(self) -> None:
        """Close the service."""
        await self._service.close(0)


class RemoteTalker:
    """Talks to a running service through its native door."""

    def __init__(self, client: "NativeClient") -> None:
        self._client = client

    @property
    def name(self) -> str:
        """The service's address."""
        return self._client.address

    async def say(self, question: Question) -> AsyncGenerator[Event, None]:
        """Yield the turn's events; closing the generator closes the connection, upon which the service stops the turn.

        Raises:
            InvalidRequest: the question is to be answered alone, which this door does not do.
        """
        if question.alone:
            raise InvalidRequest(
                f"{self._client.address} stores every turn; /raw_say needs the model here, in a shell without --url"
            )
        place = {} if question.replaces is None else {"replaces": question.replaces}
        events = self._client.stream(
            question.text,
            request_id=question.request_id,
            session_id=question.session_id,
            parameters=question.hyperparameters.parameters() | place,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def report(self, token: str, text: str) -> None:
        """Send the report."""
        await self._client.report(token, text)

    def last_prompt(self) -> str:
        """Refuse: a service does not reveal its prompts."""
        raise InvalidRequest(f"{self._client.address} does not show its prompts; /raw_prompt works without --url")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def remote_talker(url: str, api_key: str | None, told: Callable[[ChatkitError], None]) -> RemoteTalker:
    """Return a talker to the service at `url`; `told` hears why a request is sent a second time."""
    from chatkit.client.native import NativeClient

    return RemoteTalker(NativeClient(url, api_key=api_key, on_retry=told))


class _Overheard:
    """A language model that remembers the last prompt it was given."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.last = ""

    @property
    def name(self) -> str:
        """The model's own."""
        return self._model.name

    @property
    def context_window(self) -> int:
        """The model's own."""
        return self._model.context_window

    @property
    def format(self) -> PromptFormat:
        """The model's own."""
        return self._model.format

    @property
    def ready(self) -> bool:
        """The model's own."""
        return self._model.ready

    def count_tokens(self, text: str) -> int:
        """Return what the model counts."""
        return self._model.count_tokens(text)

    def generate(self, prompt: str, sampling: SamplingParams, *, session: str = "") -> Generation:
        """Start generating, the prompt noted."""
        self.last = prompt
        return self._model.generate(prompt, sampling, session=session)
