"""Before a turn is accepted: the session is loaded, then the message checked beside the search, then the prompt."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from chatkit import prompts, release
from chatkit.checking import Checks, PassageCheck
from chatkit.conversation import Conversation
from chatkit.errors import InvalidRequest, NotFound, TooLarge
from chatkit.protocols import LanguageModel, NewTurn, PartsRetriever, Retriever, Ticket, TurnStore
from chatkit.retrievers import in_one
from chatkit.types import ChatRequest, ModerationResult, Passage, QueryPart, Turn, Withheld, check_id

# Earlier messages that a search goes by beside the newest, what the last of them counts, and what each before it
# counts of the one after it. On mtrag-un (377 last questions of long conversations) that finds .96 of the passages
# among ten, the last question alone .91, all messages as one text .88; from .4 to .6, .5 to .8, and three to eight
# messages it is .95 to .96. What the assistant said adds nothing that is worth encoding it.
_EARLIER = 4
_EARLIER_WEIGHT = 0.4
_EARLIER_DECAY = 0.6
# A prompt of more characters is built and counted in a thread, so that nobody else waits for the milliseconds that
# takes. A shorter one takes about one; the way there and back takes a twentieth of that, and more on a busy machine.
_LONG_PROMPT = 2_000
# Messages of a conversation that the caller keeps; each is checked, so their number is bounded.
_MAX_HISTORY = 1024


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the operator decides about every turn; see settings.Settings for each."""

    system_prompt: str = ""
    source_prompt: str = prompts.PASSAGE_HEADER
    min_ratio: float = 0.0
    refusal: str = "I cannot help with that."
    gate: release.GateMode = "check_first"
    refuse_unchecked_input: bool = True
    check_timeout_s: float = release.CHECK_TIMEOUT
    passage_check: PassageCheck = "all"
    deadline_s: float = 120.0
    history_turns: int = 64
    max_message_chars: int = 100_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before a turn is accepted; a refused message has no prompt."""

    turn: NewTurn
    verdict: ModerationResult
    conversation: Conversation
    passages: tuple[Passage, ...] = ()
    prompt: prompts.Prompt | None = None
    withheld: tuple[Withheld, ...] = ()


class Planner:
    """Turns requests into plans; see OpenChatKitService for the parts."""

    def __init__(
        self, model: LanguageModel, checks: Checks, retriever: Retriever | None, options: ServiceOptions
    ) -> None:
        self._model = model
        self._checks = checks
        self._retriever = retriever
        self._options = options

    def validate(self, request: ChatRequest) -> None:
        """Refuse what no turn can be made of.

        Raises:
            InvalidRequest: naming it.
        """
        if not request.text.strip():
            raise InvalidRequest("the message is empty, expected text")
        for what, text in (("the message", request.text), ("the system message", request.instructions)):
            _check_text(what, text, self._options.max_message_chars)
        for name, value in (("session_id", request.session_id), ("request_id", request.request_id)):
            if value is not None:
                check_id(name, value)
        if request.replaces is not None and request.session_id is None:
            raise InvalidRequest(f"replaces is {request.replaces} and no session_id is given, expected both")
        if request.history is not None:
            _validate_history(request, self._options.max_message_chars)

    async def plan(self, request: ChatRequest, store: TurnStore, watch: "Stopwatch") -> Plan:
        """Load the session, check the message and search side by side, and build the prompt."""
        new, conversation = await self._load(request, store)
        turns = conversation.context(before=request.replaces)
        check = asyncio.create_task(self._check_input(request, turns, watch))
        search = asyncio.create_task(self._search(request, Conversation(turns), watch))
        try:
            verdict = await check
            if verdict.flagged or (verdict.unavailable and self._options.refuse_unchecked_input):
                label = "unavailable" if verdict.unavailable else verdict.label
                refused = replace(new, status="blocked", label=label)
                return Plan(refused, verdict, conversation)
            passages, withheld = await search
        finally:
            for task in (check, search):
                task.cancel()
        plan = Plan(new, verdict, conversation, passages, withheld=withheld)
        return replace(plan, prompt=await self._prompt(request, turns, plan))

    async def prompt_before(self, request: ChatRequest, ticket: Ticket, plan: Plan) -> prompts.Prompt:
        """Return the planned prompt, built again where an aborted turn runs under its old number before later ones."""
        if plan.prompt is None:
            raise AssertionError("a refused message has no prompt")
        context = plan.conversation.context(before=min(ticket.seq, request.replaces or ticket.seq))
        if context == plan.conversation.context(before=request.replaces):
            return plan.prompt
        return await self._prompt(request, context, plan)

    async def _load(self, request: ChatRequest, store: TurnStore) -> tuple[NewTurn, Conversation]:
        opens = request.session_id is None and request.history is None
        session_id = new_session_id() if opens else request.session_id or ""
        conversation = Conversation()
        if not opens:
            conversation = await self._conversation(request, session_id, store)
        new = NewTurn(
            request.owner,
            session_id,
            request.request_id,
            request.text,
            len(request.text),
            opens_session=opens,
            after=conversation.newest,
            expires_at=conversation.expires_at,
            opened_at=conversation.opened_at,
            replaces=request.replaces,
        )
        return new, conversation

    async def _conversation(self, request: ChatRequest, session_id: str, store: TurnStore) -> Conversation:
        """Load the newest turns, and where an old one is replaced as many from before it."""
        limit = self._options.history_turns
        conversation = await store.load(request.owner, session_id, limit=limit)
        replaces = request.replaces or 0
        if len(conversation) < limit or not 1 <= replaces <= conversation.newest:
            return conversation.in_blocks(limit)
        since = conversation.newest - replaces + 1  # at most so many of the newest are replaced; some may be hidden
        conversation = await store.load(request.owner, session_id, limit=limit + since)
        before = sum(turn.seq < replaces for turn in conversation)
        return replace(conversation, turns=conversation.turns[max(0, before - limit) :]).in_blocks(limit)

    async def _check_input(self, request: ChatRequest, turns: tuple[Turn, ...], watch: "Stopwatch") -> ModerationResult:
        verdict = await self._checks.message(request, turns)
        watch.mark("moderation_input")
        return verdict

    async def _search(
        self, request: ChatRequest, conversation: Conversation, watch: "Stopwatch"
    ) -> tuple[tuple[Passage, ...], tuple[Withheld, ...]]:
        """Return the passages that may be used, and what moderation says of others."""
        passages = near_best(await self._found(request, conversation, watch), self._options.min_ratio)
        if not passages:
            return (), ()
        allowed, withheld = await self._checks.passages(passages)
        watch.mark("moderation_passages")
        return allowed, withheld

    async def _found(self, request: ChatRequest, conversation: Conversation, watch: "Stopwatch") -> tuple[Passage, ...]:
        asked = request.retrieval
        if not asked.enabled:
            if asked.index is not None:
                raise InvalidRequest(f"the index {asked.index!r} is named and retrieval is turned off, expected one")
            return ()
        if self._retriever is None:
            if asked.index is not None:
                raise NotFound(f"there is no index {asked.index!r}: this service answers without any")
            return ()
        parts = query_parts(conversation, request.text)
        where = dict(asked.where)
        if isinstance(self._retriever, PartsRetriever):
            passages = await self._retriever.search_parts(
                parts,
                k=asked.k,
                index=asked.index,
                where=where or None,
                rerank=asked.rerank,
                neighbours=asked.neighbours,
            )
        else:
            filters = {"where": where} if where else {}
            passages = await self._retriever.search(in_one(parts), k=asked.k, index=asked.index, **filters)
        watch.mark("retrieval")
        return passages

    async def _prompt(self, request: ChatRequest, turns: tuple[Turn, ...], plan: Plan) -> prompts.Prompt:
        form, reserve, window = self._model.format, request.sampling.max_new_tokens, self._model.context_window
        if reserve >= window:
            raise InvalidRequest(
                f"max_new_tokens is {reserve}, but {self._model.name} holds {window} tokens of prompt and answer"
            )
        passages = plan.passages
        quoted = {one.passage_id for one in plan.withheld if one.action == "quoted"}
        today = datetime.now(UTC).strftime("%A, %d %B %Y")  # the day, no clock: the prefix holds until midnight
        own = f"{self._options.system_prompt} Today is {today}." if self._options.system_prompt else ""

        def build() -> prompts.Prompt:
            return prompts.build_prompt(
                form,
                self._model.count_tokens,
                system="\n\n".join(part for part in (own, form.neutralise(request.instructions)) if part),
                turns=turns,
                passages=passages,
                text=request.text,
                window=window,
                reserve=reserve,
                header=self._options.source_prompt,
                quoted=quoted,
            )

        size = len(request.text) + len(request.instructions) + sum(len(passage.text) for passage in passages)
        size += sum(len(turn.user) + len(turn.assistant) for turn in turns)
        return await asyncio.to_thread(build) if size > _LONG_PROMPT else build()


def _check_text(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise TooLarge(f"{what} has {len(text)} characters, at most {most} are taken")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what} has half a character at {error.start}, expected whole Unicode") from None


def _validate_history(request: ChatRequest, most: int) -> None:
    history = request.history or ()
    if request.session_id is not None:
        raise InvalidRequest("a session and a history are both given, expected one of them")
    if len(history) > _MAX_HISTORY:
        raise TooLarge(f"the history has {len(history)} messages, at most {_MAX_HISTORY} are taken")
    roles = [message.role for message in history]
    if "system" in roles or (roles and roles[-1] != "assistant"):
        raise InvalidRequest(f"the history ends with {roles[-1:]}, expected messages of both sides, an answer last")
    for message in history:
        _check_text("a message of the history", message.content, most)


def new_session_id() -> str:
    """Return a session id of the server's own: 128 random bits."""
    return "s-" + secrets.token_urlsafe(16)


def query_parts(conversation: Conversation, text: str) -> tuple[QueryPart, ...]:
    """Return what to search by: the message, and what the user said before it, the older the less it counts."""
    said = [turn.user for turn in conversation.context() if turn.user.strip()]
    return weighed(text, said)


def weighed(text: str, earlier: Sequence[str]) -> tuple[QueryPart, ...]:
    """Return the parts of a query from the newest message and those before it, oldest first."""
    newest_first = list(reversed(earlier[-_EARLIER:]))
    weights = (_EARLIER_WEIGHT * _EARLIER_DECAY**age for age in range(len(newest_first)))
    return QueryPart(text), *(QueryPart(said, weight) for said, weight in zip(newest_first, weights, strict=True))


def near_best(passages: tuple[Passage, ...], ratio: float) -> tuple[Passage, ...]:
    """Return the passages with at least that part of the best one's score; all where the best has none above 0.

    A passage that is far worse than the best takes a small model away from it more often than it has the answer.
    """
    best = max((passage.score for passage in passages), default=0.0)
    return passages if best <= 0 else tuple(passage for passage in passages if passage.score >= best * ratio)


class Stopwatch:
    """Seconds since the turn began, by stage."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._loop_start = asyncio.get_running_loop().time()
        self._marks: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """Note that a stage is done."""
        self._marks[stage] = round(time.perf_counter() - self._start, 4)

    def first(self, stage: str) -> None:
        """Note a stage the first time only."""
        if stage not in self._marks:
            self.mark(stage)

    def at(self, stage: str, loop_time: float | None) -> None:
        """Note a stage that was done at a time of the event loop's clock."""
        if loop_time is not None:
            self._marks[stage] = round(loop_time - self._loop_start, 4)

    def total(self) -> dict[str, float]:
        """Return every stage, and the total until now."""
        self.mark("total")
        return dict(self._marks)
