"""The turn: input moderation, retrieval, prompt, language model, output moderation, stored turn. Read `_turn` first."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from chatkit import prompts, release, stopping
from chatkit.conversation import Conversation
from chatkit.errors import Conflict, InvalidRequest, NotSaved, StoreFailed, TooLarge
from chatkit.protocols import LanguageModel, Moderator, NewTurn, Outcome, Retriever, Ticket, TurnStore
from chatkit.turns import LiveTurn, LiveTurns
from chatkit.types import (
    ChatRequest,
    Chunk,
    Event,
    ModerationResult,
    Passage,
    Replace,
    Reply,
    Retrieved,
    TextDelta,
    Turn,
    TurnStarted,
)

# What a client may call a session or a request; ids that begin with `s-` are the server's own. DESIGN §2.15.
_CLIENT_ID = re.compile(r"[A-Za-z0-9._~:@-]{8,128}")
# A pending turn's lease is 15 s (DESIGN §2.9); renewed at a third of that.
_RENEW_EVERY = 5.0
# A message this short is likely to lean on the one before it. Words.
_SHORT_MESSAGE = 6


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the operator decides about every turn; see settings.Settings for each."""

    system_prompt: str = ""
    refusal: str = "I cannot help with that."
    gate: release.GateMode = "check_first"
    refuse_unchecked_input: bool = True
    deadline_s: float = 120.0
    history_turns: int = 64
    max_message_chars: int = 100_000


class OpenChatKitService:
    """Answers chat turns.

    Args:
        retriever: None answers from the model alone.
        resources: closed with the service.
    """

    def __init__(
        self,
        model: LanguageModel,
        moderator: Moderator,
        store: TurnStore,
        *,
        retriever: Retriever | None = None,
        options: ServiceOptions | None = None,
        resources: AsyncExitStack | None = None,
    ) -> None:
        self.model = model
        self._moderator = moderator
        self._store = store
        self._retriever = retriever
        self._options = options or ServiceOptions()
        self._resources = resources or AsyncExitStack()
        self.turns = LiveTurns()

    @property
    def ready(self) -> bool:
        """Whether a turn could be answered now."""
        return self.model.ready

    def start(self, request: ChatRequest, *, patient: bool = False) -> LiveTurn:
        """Start a turn, or join the one that the same request id is running; read its `events()` or its `result()`.

        Args:
            request: what to answer.
            patient: run to the end even when nobody listens any more.

        Raises:
            InvalidRequest: an id or the message is malformed; nothing was stored.
            Conflict: the request id is running with another message.
        """
        self._validate(request)
        key, what = (request.owner, request.request_id), request.text
        live = self.turns.find(key)
        if live is None:
            return self.turns.start(key, lambda live: self._turn(request, live), what=what, patient=patient)
        if live.what != what:
            raise Conflict(f"request_id {request.request_id!r} is being answered for another message; use a new one")
        live.patient = live.patient or patient
        return live

    async def stream(self, request: ChatRequest) -> AsyncIterator[Event]:
        """Yield the turn's events; a consumer that stops iterating cancels the turn."""
        async with aclosing(self.start(request).events()) as events:
            async for event in events:
                yield event

    async def reply(self, request: ChatRequest) -> Reply:
        """Return the turn's result.

        Raises:
            ChatkitError: the error that ended the turn.
        """
        return await self.start(request, patient=request.client_request_id).result()

    async def close(self, grace: float) -> None:
        """Let running turns end, cancel those that do not within `grace` seconds, and close what the service uses."""
        await self.turns.drain(grace)
        await self._resources.aclose()

    async def _turn(self, request: ChatRequest, live: LiveTurn) -> AsyncIterator[Event]:
        """One chat turn, from message to stored reply."""
        watch = _Stopwatch()
        plan = await self._plan(request, watch)
        if live.cancelled:
            return
        accepted = await self._store.accept(plan.turn)
        watch.mark("accept")
        if accepted.repeat is not None:
            ending = self._replay(accepted.session_id, accepted.repeat)
        elif accepted.ticket is None:
            raise AssertionError("accept returns a ticket or a repeat")
        elif plan.prompt is None:
            ending = self._refuse(accepted.ticket, plan.verdict, watch)
        else:
            ending = self._answer(request, live, accepted.ticket, plan, watch)
        async for event in ending:
            yield event

    async def _plan(self, request: ChatRequest, watch: "_Stopwatch") -> "_Plan":
        """Load the session and check the message side by side, search beside the check, and build the prompt."""
        opens = request.session_id is None
        session_id = request.session_id or new_session_id()
        new = NewTurn(
            request.owner, session_id, request.request_id, request.text, len(request.text), opens_session=opens
        )
        check = asyncio.create_task(self._check_input(request.text, watch))
        search: asyncio.Task[tuple[Passage, ...]] | None = None
        try:
            conversation = Conversation() if opens else await self._load(request, session_id)
            search = asyncio.create_task(self._search(request, conversation, watch))
            verdict = await check
            if verdict.flagged or (verdict.unavailable and self._options.refuse_unchecked_input):
                label = "unavailable" if verdict.unavailable else verdict.label
                refused = replace(new, status="blocked", label=label)
                return _Plan(refused, verdict, conversation)
            passages = await search
        finally:
            for task in (check, search):
                if task:
                    task.cancel()
        prompt = self._prompt(request, conversation.context(), passages)
        return _Plan(new, verdict, conversation, passages, prompt)

    async def _answer(
        self,
        request: ChatRequest,
        live: LiveTurn,
        ticket: Ticket,
        plan: "_Plan",
        watch: "_Stopwatch",
    ) -> AsyncIterator[Event]:
        """Generate, moderate and store the reply of an accepted turn."""
        prompt = self._prompt_before(request, ticket, plan)
        lease = asyncio.create_task(self._keep_lease(ticket))
        deadline = asyncio.get_running_loop().call_later(request.deadline_s or self._options.deadline_s, live.expire)
        sent = ""
        try:
            words = (*self.model.format.stop_words, *request.sampling.stop_words)
            generation = self.model.generate(prompt.text, replace(request.sampling, stop_words=words))
            live.stop_with(generation.cancel)
            yield TurnStarted(ticket.session_id, ticket.request_id)  # not before the engine has taken the prompt
            if prompt.passages:
                yield Retrieved(prompt.passages)
            chunks = _ending_at_deadline(live, stopping.hold_back(generation, words))
            gate = release.ReleaseGate(chunks, self._moderator, self._options.gate)
            async for text in gate.released():
                watch.first("first_delta")
                sent += text
                yield TextDelta(text)
            watch.at("first_token", gate.first_token_at)
            watch.at("first_window", gate.first_window_at)
            watch.mark("generation")
        except BaseException:
            lease.cancel()
            with suppress(StoreFailed, Conflict):  # the error that ended the generation is the one to tell
                await self._store.finish(ticket, Outcome("aborted", "aborted", sent, passages=prompt.passages))
            raise
        finally:
            deadline.cancel()
            lease.cancel()
        outcome = self._outcome(gate, prompt, live.sent_text() if live.cancelled else sent, live.cancelled)
        if gate.blocked:
            yield Replace(self._options.refusal, gate.result.label)
        await self._finish(ticket, outcome)
        watch.mark("finish")
        yield Reply(
            text=self._options.refusal if gate.blocked else outcome.assistant,
            session_id=ticket.session_id,
            request_id=ticket.request_id,
            seq=ticket.seq,
            finish_reason=outcome.finish_reason,
            passages=() if gate.blocked else prompt.passages,
            usage=gate.usage,
            timings=watch.total(),
            moderation_input=plan.verdict,
            moderation_output=gate.result,
            dropped_turns=prompt.dropped_turns,
        )

    def _outcome(self, gate: release.ReleaseGate, prompt: prompts.Prompt, sent: str, cancelled: bool) -> Outcome:
        """Return what is stored: complete is what was sent, aborted the prefix sent, blocked no text at all."""
        if gate.blocked:
            label = "unavailable" if gate.result.unavailable else gate.result.label
            return Outcome("blocked", "content_filter", label=label, usage=gate.usage)
        if cancelled or gate.finish_reason == "aborted":
            return Outcome("aborted", "aborted", sent, usage=gate.usage, passages=prompt.passages)
        return Outcome("complete", gate.finish_reason, sent, usage=gate.usage, passages=prompt.passages)

    async def _finish(self, ticket: Ticket, outcome: Outcome) -> None:
        try:
            await self._store.finish(ticket, outcome)
        except StoreFailed as error:
            raise NotSaved(f"the answer was made but not stored: {error}") from error

    async def _keep_lease(self, ticket: Ticket) -> None:
        with suppress(Conflict):  # another attempt has taken the turn over; finish will say so
            while True:
                await asyncio.sleep(_RENEW_EVERY)
                with suppress(StoreFailed):  # the next renewal, or finish, will tell
                    await self._store.renew(ticket)

    async def _load(self, request: ChatRequest, session_id: str) -> Conversation:
        return await self._store.load(request.owner, session_id, limit=self._options.history_turns)

    async def _check_input(self, text: str, watch: "_Stopwatch") -> ModerationResult:
        verdict = await release.checked(self._moderator, text, direction="input")
        watch.mark("moderation_input")
        return verdict

    async def _search(
        self, request: ChatRequest, conversation: Conversation, watch: "_Stopwatch"
    ) -> tuple[Passage, ...]:
        if self._retriever is None or not request.retrieval.enabled:
            return ()
        query = search_query(conversation, request.text)
        passages = await self._retriever.search(query, k=request.retrieval.k)
        watch.mark("retrieval")
        return passages

    def _prompt(self, request: ChatRequest, turns: tuple[Turn, ...], passages: tuple[Passage, ...]) -> prompts.Prompt:
        reserve, window = request.sampling.max_new_tokens, self.model.context_window
        if reserve >= window:
            raise InvalidRequest(
                f"max_new_tokens is {reserve}, but {self.model.name} holds {window} tokens of prompt and answer"
            )
        today = datetime.now(UTC).strftime("%A, %d %B %Y")  # the day, no clock: the prefix holds until midnight
        system = f"{self._options.system_prompt} Today is {today}." if self._options.system_prompt else ""
        return prompts.build_prompt(
            self.model.format,
            self.model.count_tokens,
            system=system,
            turns=turns,
            passages=passages,
            text=request.text,
            window=window,
            reserve=reserve,
        )

    def _prompt_before(self, request: ChatRequest, ticket: Ticket, plan: "_Plan") -> prompts.Prompt:
        """Return the planned prompt, built again where an aborted turn runs under its old number before later ones."""
        if plan.prompt is None:
            raise AssertionError("a refused message has no prompt")
        context = plan.conversation.context(before=ticket.seq)
        if context == plan.conversation.context():
            return plan.prompt
        return self._prompt(request, context, plan.passages)

    async def _refuse(self, ticket: Ticket, verdict: ModerationResult, watch: "_Stopwatch") -> AsyncIterator[Event]:
        """Answer a refused message, stored by label and length."""
        yield TurnStarted(ticket.session_id, ticket.request_id)
        yield Replace(self._options.refusal, verdict.label)
        yield Reply(
            text=self._options.refusal,
            session_id=ticket.session_id,
            request_id=ticket.request_id,
            seq=ticket.seq,
            finish_reason="content_filter",
            timings=watch.total(),
            moderation_input=verdict,
        )

    async def _replay(self, session_id: str, turn: Turn) -> AsyncIterator[Event]:
        """Yield the events of a turn that is finished: the stored answer, not a second one."""
        blocked = turn.status == "blocked"
        text = self._options.refusal if blocked else turn.assistant
        yield TurnStarted(session_id, turn.request_id)
        if turn.passages:
            yield Retrieved(turn.passages)
        yield Replace(text, turn.label) if blocked else TextDelta(text)
        yield Reply(
            text=text,
            session_id=session_id,
            request_id=turn.request_id,
            seq=turn.seq,
            finish_reason=turn.finish_reason or "stop",
            passages=turn.passages,
            usage=turn.usage,
            replayed=True,
        )

    def _validate(self, request: ChatRequest) -> None:
        if not request.text.strip():
            raise InvalidRequest("the message is empty, expected text")
        try:
            request.text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the message has half a character at {error.start}, expected whole Unicode") from None
        if len(request.text) > self._options.max_message_chars:
            raise TooLarge(
                f"the message has {len(request.text)} characters, at most {self._options.max_message_chars} are taken"
            )
        for name, value in (("session_id", request.session_id), ("request_id", request.request_id)):
            if value is not None and not _CLIENT_ID.fullmatch(value):
                raise InvalidRequest(f"{name} is {value[:140]!r}, expected 8 to 128 letters, digits or any of ._~:@-")


def new_session_id() -> str:
    """Return a session id of the server's own: 128 random bits."""
    return "s-" + secrets.token_urlsafe(16)


def new_request_id() -> str:
    """Return a request id for a caller that sent none."""
    return "r-" + secrets.token_urlsafe(16)


def search_query(conversation: Conversation, text: str) -> str:
    """Return what to search for: a short message is read together with the one before it."""
    past = conversation.context()
    if past and len(text.split()) < _SHORT_MESSAGE:
        return f"{past[-1].user}\n{text}"
    return text


async def _ending_at_deadline(live: LiveTurn, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """Name the end of a generation that the deadline stopped, so that its text counts as an answer."""
    async for chunk in chunks:
        if chunk.finish_reason == "aborted" and live.expired and not live.cancelled:
            chunk = replace(chunk, finish_reason="deadline")
        yield chunk


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known before a turn is accepted; a refused message has no prompt."""

    turn: NewTurn
    verdict: ModerationResult
    conversation: Conversation
    passages: tuple[Passage, ...] = ()
    prompt: prompts.Prompt | None = None


class _Stopwatch:
    """Seconds since the turn began, by stage."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._loop_start = asyncio.get_running_loop().time()
        self._marks: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        self._marks[stage] = round(time.perf_counter() - self._start, 4)

    def first(self, stage: str) -> None:
        if stage not in self._marks:
            self.mark(stage)

    def at(self, stage: str, loop_time: float | None) -> None:
        if loop_time is not None:
            self._marks[stage] = round(loop_time - self._loop_start, 4)

    def total(self) -> dict[str, float]:
        self.mark("total")
        return dict(self._marks)
