"""The turn: input moderation, retrieval, prompt, language model, output moderation, stored turn. Read `_turn` first."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace

from chatkit import prompts, release, stopping
from chatkit.checking import Checks, context_of
from chatkit.citations import Attributor
from chatkit.errors import Conflict, NotSaved, StoreFailed
from chatkit.feedback import Feedback
from chatkit.observers import Observer, end_of
from chatkit.planning import Plan, Planner, ServiceOptions, Stopwatch
from chatkit.protocols import (
    Embedder,
    LanguageModel,
    Moderator,
    Outcome,
    Retriever,
    SessionStore,
    Ticket,
    TurnStore,
)
from chatkit.turns import LiveTurn, LiveTurns
from chatkit.types import (
    ChatRequest,
    Chunk,
    Citation,
    Direction,
    Event,
    ModerationResult,
    Owner,
    Replace,
    Reply,
    Retrieved,
    TextDelta,
    Turn,
    TurnStarted,
)
from chatkit.unstored import Unstored

# A pending turn's lease is 15 s (DESIGN §2.9); renewed at a third of that.
_RENEW_EVERY = 5.0


class OpenChatKitService:
    """Answers chat turns.

    Args:
        retriever: None answers from the model alone.
        attributor: attributes the sentences of an answer to its passages; None leaves that out.
        embedders: for those who ask for vectors, the first where they name none; a turn needs no one.
        archive: for those who read and remove sessions; a turn needs none.
        feedback: takes reports of wrong refusals; None takes none.

    Attributes:
        checks: what moderation said so far, counted.
        resources: closed with the service.
    """

    def __init__(
        self,
        model: LanguageModel,
        moderator: Moderator,
        store: TurnStore,
        *,
        retriever: Retriever | None = None,
        attributor: Attributor | None = None,
        embedders: Sequence[Embedder] = (),
        archive: SessionStore | None = None,
        options: ServiceOptions | None = None,
        feedback: Feedback | None = None,
        resources: AsyncExitStack | None = None,
    ) -> None:
        self.model = model
        self.embedders = tuple(embedders)
        self.archive = archive
        self.feedback = feedback
        self._store = store
        self._attributor = attributor
        self._options = options or ServiceOptions()
        self.checks = Checks(moderator, timeout=self._options.check_timeout_s, passages=self._options.passage_check)
        self._planner = Planner(model, self.checks, retriever, self._options)
        self._resources = resources or AsyncExitStack()
        self.turns = LiveTurns(self._ended)
        self._observer: Observer | None = None

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of every check and every turn from now on, and nobody else."""
        self._observer = self.checks.observer = observer

    def _ended(self, live: LiveTurn) -> None:
        if self._observer is not None:
            self._observer.ended(end_of(live.first, live.last, cancelled=live.cancelled))

    @property
    def ready(self) -> bool:
        """Whether a turn could be answered now."""
        return self.model.ready

    def start(self, request: ChatRequest, *, patient: bool = False) -> LiveTurn:
        """Start a turn, or join the one that the same request id is running; read its `events()` or its `result()`.

        Args:
            request: what to answer.
            patient: run to the end even when nobody listens any more; not where the answer is not stored.

        Raises:
            InvalidRequest: an id or the message is malformed; nothing was stored.
            Conflict: the request id is running with another message.
        """
        self._planner.validate(request)
        patient = patient and request.history is None
        key = (request.owner, request.request_id)
        what = (request.session_id, request.text, request.instructions, request.history, request.replaces)
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
        watch = Stopwatch()
        store = self._store if request.history is None else Unstored(request.history)
        plan = await self._planner.plan(request, store, watch)
        if live.cancelled:
            return
        accepted = await store.accept(plan.turn)
        watch.mark("accept")
        if accepted.repeat is not None:
            ending = self._replay(accepted.session_id, accepted.repeat, plan.verdict)
        elif accepted.ticket is None:
            raise AssertionError("accept returns a ticket or a repeat")
        elif plan.prompt is None:
            ending = self._refuse(request, accepted.ticket, plan.verdict, watch)
        else:
            ending = self._answer(request, live, store, accepted.ticket, plan, watch)
        async for event in ending:
            yield event

    async def _answer(
        self,
        request: ChatRequest,
        live: LiveTurn,
        store: TurnStore,
        ticket: Ticket,
        plan: Plan,
        watch: Stopwatch,
    ) -> AsyncIterator[Event]:
        """Generate, moderate and store the reply of an accepted turn."""
        self.checks.note("input", plan.verdict, session_hint(ticket))
        prompt = await self._planner.prompt_before(request, ticket, plan)
        lease = asyncio.create_task(_keep_lease(store, ticket))
        deadline = asyncio.get_running_loop().call_later(request.deadline_s or self._options.deadline_s, live.expire)
        sent = ""
        try:
            words = (*self.model.format.stop_words, *request.sampling.stop_words)
            sampling = replace(request.sampling, stop_words=words)
            generation = self.model.generate(prompt.text, sampling, session=session_hint(ticket))
            live.stop_with(generation.cancel)
            yield TurnStarted(ticket.session_id, ticket.request_id)  # not before the engine has taken the prompt
            if prompt.passages:
                yield Retrieved(prompt.passages)
            chunks = _ending_at_deadline(live, stopping.hold_back(generation, words))
            gate = self._gate(chunks, request, plan)
            async for text in gate.released():
                watch.first("first_delta")
                sent += text
                yield TextDelta(text)
            for text in self._notices(gate, plan, live):
                sent += text
                yield TextDelta(text)
            watch.at("first_token", gate.first_token_at)
            watch.at("first_window", gate.first_window_at)
            watch.mark("generation")
        except BaseException:
            lease.cancel()
            with suppress(StoreFailed, Conflict):  # the error that ended the generation is the one to tell
                await store.finish(ticket, Outcome("aborted", "aborted", sent, passages=prompt.passages))
            raise
        finally:
            deadline.cancel()
            lease.cancel()
        outcome = self._outcome(gate, prompt, live.sent_text() if live.cancelled else sent, live.cancelled)
        if gate.blocked or gate.finish_reason != "aborted":
            self.checks.note("output", gate.result, session_hint(ticket))
        if gate.blocked:
            yield Replace(self._refusal(gate.result), gate.result.label)
        await _finish(store, ticket, outcome)
        watch.mark("finish")
        citations = await self._cited(outcome, gate.text, watch)
        reply = self._reply(request, ticket, plan, prompt, gate, outcome)
        yield replace(reply, citations=citations, timings=watch.total())

    def _reply(
        self,
        request: ChatRequest,
        ticket: Ticket,
        plan: Plan,
        prompt: prompts.Prompt,
        gate: release.ReleaseGate,
        outcome: Outcome,
    ) -> Reply:
        return Reply(
            text=self._refusal(gate.result) if gate.blocked else outcome.assistant,
            session_id=ticket.session_id,
            request_id=ticket.request_id,
            seq=ticket.seq,
            finish_reason=outcome.finish_reason,
            passages=() if gate.blocked else prompt.passages,
            usage=gate.usage,
            moderation_input=plan.verdict,
            moderation_output=gate.result,
            dropped_turns=prompt.dropped_turns + min(plan.conversation.left_out, (request.replaces or ticket.seq) - 1),
            dropped_passages=prompt.dropped_passages,
            withheld=plan.withheld,
            feedback=self._token(gate.result, "output", request) if gate.blocked else "",
        )

    def _refusal(self, verdict: ModerationResult) -> str:
        """Return what stands in the place of a text: the policy's words, or the operator's."""
        return verdict.notice or self._options.refusal

    def _gate(self, chunks: AsyncIterator[Chunk], request: ChatRequest, plan: Plan) -> release.ReleaseGate:
        said = (*context_of(plan.conversation.context(before=request.replaces)), request.text)
        return release.ReleaseGate(
            chunks,
            self.checks.moderator,
            self._options.gate,
            history=said,
            timeout=self._options.check_timeout_s,
            observer=self.checks.observer,
        )

    def _notices(self, gate: release.ReleaseGate, plan: Plan, live: LiveTurn) -> list[str]:
        """Return what follows an answer that is let out softened, as deltas."""
        if gate.blocked or live.cancelled or gate.finish_reason == "aborted":
            return []
        asked = [plan.verdict.notice] if plan.verdict.action == "soften" and plan.verdict.notice else []
        return [f"\n\n{notice}" for notice in dict.fromkeys([*asked, *gate.notices])]

    def _token(self, verdict: ModerationResult, direction: Direction, request: ChatRequest) -> str:
        if self.feedback is None or not verdict.flagged:
            return ""
        return self.feedback.token(verdict, direction, request.text)

    async def _cited(self, outcome: Outcome, said: str, watch: Stopwatch) -> tuple[Citation, ...]:
        """Attribute what the model said in a complete answer to the passages of its prompt."""
        if self._attributor is None or outcome.status != "complete" or not outcome.passages:
            return ()
        cited = await self._attributor.cite(said, outcome.passages)
        watch.mark("citations")
        return cited

    def _outcome(self, gate: release.ReleaseGate, prompt: prompts.Prompt, sent: str, cancelled: bool) -> Outcome:
        """Return what is stored: complete is what was sent, aborted the prefix sent, blocked no text at all."""
        if gate.blocked:
            label = "unavailable" if gate.result.unavailable else gate.result.label
            return Outcome("blocked", "content_filter", label=label, usage=gate.usage)
        if cancelled or gate.finish_reason == "aborted":
            return Outcome("aborted", "aborted", sent, usage=gate.usage, passages=prompt.passages)
        return Outcome("complete", gate.finish_reason, sent, usage=gate.usage, passages=prompt.passages)

    async def _refuse(
        self, request: ChatRequest, ticket: Ticket, verdict: ModerationResult, watch: Stopwatch
    ) -> AsyncIterator[Event]:
        """Answer a refused message, stored by label and length."""
        self.checks.note("input", verdict, session_hint(ticket))
        refusal = self._refusal(verdict)
        yield TurnStarted(ticket.session_id, ticket.request_id)
        yield Replace(refusal, verdict.label)
        yield Reply(
            text=refusal,
            session_id=ticket.session_id,
            request_id=ticket.request_id,
            seq=ticket.seq,
            finish_reason="content_filter",
            timings=watch.total(),
            moderation_input=verdict,
            feedback=self._token(verdict, "input", request),
        )

    async def _replay(self, session_id: str, turn: Turn, verdict: ModerationResult) -> AsyncIterator[Event]:
        """Yield the events of a turn that is finished: the stored answer, not a second one.

        Args:
            verdict: of the message, checked again; words of a refusal are not stored.
        """
        blocked = turn.status == "blocked"
        stored = {turn.blocked: _stored_verdict(turn)} if blocked else {}
        notice = verdict.notice if verdict.flagged and turn.blocked == "input" else ""
        text = (notice or self._options.refusal) if blocked else turn.assistant
        yield TurnStarted(session_id, turn.request_id)
        if turn.passages:
            yield Retrieved(turn.passages)
        yield Replace(text, None if turn.label == "unavailable" else turn.label) if blocked else TextDelta(text)
        yield Reply(
            text=text,
            session_id=session_id,
            request_id=turn.request_id,
            seq=turn.seq,
            finish_reason=turn.finish_reason or "stop",
            passages=turn.passages,
            usage=turn.usage,
            moderation_input=stored.get("input"),
            moderation_output=stored.get("output"),
            replayed=True,
        )


def _stored_verdict(turn: Turn) -> ModerationResult:
    """Return what a blocked turn still knows of the verdict: its label, or that the check could not run."""
    if turn.label == "unavailable":
        return ModerationResult(flagged=False, label=None, unavailable=True)
    return ModerationResult(flagged=True, action="refuse", label=turn.label)


def new_request_id() -> str:
    """Return a request id for a caller that sent none."""
    return "r-" + secrets.token_urlsafe(16)


def session_hint(ticket: Ticket) -> str:
    """Return a hash that the turns of a stored session share, "" where nothing is stored; the id itself is a secret."""
    return hint_of(ticket.owner, ticket.session_id) if ticket.session_id else ""


def hint_of(owner: Owner, session_id: str = "") -> str:
    """Return a hash that stands for a session, or for an owner, where ids and names do not belong: in logs."""
    named = json.dumps([owner.tenant, owner.user, session_id])
    return hashlib.sha256(named.encode()).hexdigest()[:32]


async def _ending_at_deadline(live: LiveTurn, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """Name the end of a generation that the deadline stopped, so that its text counts as an answer."""
    async for chunk in chunks:
        if chunk.finish_reason == "aborted" and live.expired and not live.cancelled:
            chunk = replace(chunk, finish_reason="deadline")
        yield chunk


async def _finish(store: TurnStore, ticket: Ticket, outcome: Outcome) -> None:
    try:
        await store.finish(ticket, outcome)
    except StoreFailed as error:
        raise NotSaved(f"the answer was made but not stored: {error}") from error


async def _keep_lease(store: TurnStore, ticket: Ticket) -> None:
    with suppress(Conflict):  # another attempt has taken the turn over; finish will say so
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            with suppress(StoreFailed):  # the next renewal, or finish, will tell
                await store.renew(ticket)
