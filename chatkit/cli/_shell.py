"""The interactive shell: lines in, turns and commands out. It knows neither its terminal nor where its service is."""

import difflib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from chatkit import errors
from chatkit.cli._hyperparameters import Hyperparameters
from chatkit.cli._interrupts import Interrupts, Stopped
from chatkit.cli._screens import Screen
from chatkit.cli._show import source_line, support_notes
from chatkit.cli._talkers import Question, Talker
from chatkit.service import new_request_id
from chatkit.types import Error, Passage, Replace, Reply, Retrieved, TextDelta, TurnStarted, check_id

HELP = {
    "/raw_say TEXT": "answer TEXT alone: no conversation, no retrieval, not stored; checked like any other",
    "/raw_prompt": "show the prompt that the model got last",
    "/sources": "show the sources of the last answer in full",
    "/again": "ask the last message again, as the same turn",
    "/regenerate": "ask for another answer to the last message, in the place of the one it has",
    "/edit TEXT": "answer TEXT in the place of the last message",
    "/report": "report the last refusal as wrong; the refused message is sent along and kept",
    "/hyperparameters [NAME=VALUE …]": "show, or set, how answers are sampled and what is looked up",
    "/session [ID]": "show the session, or go on with another",
    "/reset": "begin a new conversation",
    "/help, /?": "show this",
    "/quit": "leave; so does Ctrl-D",
    "//TEXT": "send a message that begins with a slash",
}
COMMANDS = tuple(usage.split()[0].strip(",") for usage in HELP if not usage.startswith("//"))
_KEY, _SHORTER = "start again with --api-key or CHATKIT_API_KEY", "send a shorter message"
# What to do next: where a person types the lines, and where a script does.
_NEXT: tuple[tuple[type[errors.ChatkitError], str, str], ...] = (
    (errors.Unauthorized, _KEY, _KEY),
    (errors.TooLarge, _SHORTER, _SHORTER),
    (errors.Conflict, "/again asks for the same turn a little later", "send it again a little later"),
    (errors.Unavailable, "/again asks for the same turn", "send it again later"),
)
_NEXT_SESSION = ("/reset begins a new conversation", "without --session a new conversation begins")
_NEXT_INDEX = ("/hyperparameters index= takes the service's own", "without --index the service's own is taken")


class Shell:
    """Talks until the lines end.

    Attributes:
        session: id of the conversation; None until its first message.
        failure: the first thing that went wrong.
    """

    def __init__(
        self,
        talker: Talker,
        screen: Screen,
        interrupts: Interrupts,
        hyperparameters: Hyperparameters,
        session: str | None = None,
    ) -> None:
        self.session = session
        self.failure: errors.ChatkitError | None = None
        self._accepted: str | None = None
        self._talker = talker
        self._screen = screen
        self._interrupts = interrupts
        self._hyperparameters = hyperparameters
        self._sources: tuple[Passage, ...] = ()
        self._last: tuple[Question, str] | None = None
        # The last message of the conversation, and the number of the turn that stands in its place once it is answered.
        self._asked: Question | None = None
        self._answered: int | None = None
        self._refused: tuple[str, str] | None = None  # token and message of the last refusal that may be reported
        self._leaving = False
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "/raw_say": self._raw_say,
            "/raw_prompt": self._raw_prompt,
            "/sources": self._show_sources,
            "/again": self._again,
            "/regenerate": self._regenerate,
            "/edit": self._edit,
            "/report": self._report,
            "/hyperparameters": self._set,
            "/session": self._go_on,
            "/reset": self._reset,
            "/help": self._help,
            "/?": self._help,
            "/quit": self._quit,
        }

    async def run(self) -> None:
        """Obey line after line.

        Raises:
            Stopped: Ctrl-C ended it, where that is what Ctrl-C does.
        """
        while not self._leaving:
            try:
                line = await self._screen.line()
                if line is None:
                    return
                await self._obey(line)
            except errors.ChatkitError as error:
                self.failure = self.failure or error
                self._screen.error(error, _next_step(error)[0 if self._screen.typed else 1])

    @property
    def lasting(self) -> str | None:
        """The session, once a turn of it was accepted: what can be gone on with."""
        return self.session if self.session == self._accepted else None

    async def _obey(self, line: str) -> None:
        if line.startswith("//"):
            await self._ask(self._question(line[1:]), line)
        elif not line.startswith("/"):
            await self._ask(self._question(line), line)
        else:
            name, *rest = line.split(maxsplit=1)
            command = self._commands.get(name)
            if command is None:
                raise errors.InvalidRequest(_unknown(name))
            await command(rest[0].strip() if rest else "")

    def _question(self, text: str, *, alone: bool = False, replaces: int | None = None) -> Question:
        return Question(text, new_request_id(), self.session, self._hyperparameters, alone, replaces)

    async def _ask(self, question: Question, line: str) -> None:
        """Run one turn, stoppable by Ctrl-C; its line is kept once the check has let it pass and the turn is stored."""
        self._last = (question, line)
        if not question.alone:
            self._asked, self._answered = question, None
        accepted: list[bool] = []
        try:
            await self._interrupts.stoppable(self._turn(question, accepted))
        except Stopped:
            self._screen.stopped()
        finally:
            if accepted and all(accepted) and not question.alone:
                self._screen.keep(line)

    async def _turn(self, question: Question, accepted: list[bool]) -> None:
        """Show a turn; `accepted` gets True for what only an accepted message brings, False for a refusal."""
        self._sources = ()
        async with aclosing(self._talker.say(question)) as events:
            async for event in events:
                match event:
                    case TurnStarted(session_id) if not question.alone:
                        self.session = self._accepted = session_id
                    case Retrieved():
                        accepted.append(True)
                    case TextDelta(text):
                        accepted.append(True)
                        self._screen.piece(text)
                    case Replace():
                        accepted.append(False)
                        self._screen.withdraw(event)
                    case Reply():
                        accepted.append(event.finish_reason != "content_filter")
                        self._sources = event.passages
                        self._refused = (event.feedback, question.text) if event.feedback else None
                        self._screen.answered(event, self._notes(event, question))
                        if not question.alone:
                            self._answered = _standing(question, event)
                    case Error(error):
                        raise error

    def _notes(self, reply: Reply, question: Question) -> list[str]:
        """Return what there is to say about an answer: why it ends early, then its sources."""
        notes = []
        if not reply.text:
            notes.append("[an empty answer]")
        match reply.finish_reason:
            case "length":
                most = question.hyperparameters.chosen.get("max_new_tokens", reply.usage.completion_tokens)
                notes.append(f"[cut at {most} tokens; /hyperparameters max_new_tokens=… allows more]")
            case "deadline":
                notes.append("[cut at the service's deadline]")
            case "aborted":
                notes.append("[stopped by the service; /again asks for the same turn]")
        if reply.dropped_turns:
            notes.append(f"[the oldest messages no longer fit the prompt: {reply.dropped_turns} left out]")
        if reply.feedback:
            notes.append("[/report says that this refusal is wrong, and sends your message along]")
        notes += [
            f"[a source was {one.action}: {one.category or one.label or 'not checked'}]" for one in reply.withheld
        ]
        notes += support_notes(reply)
        return notes + [source_line(number, passage) for number, passage in enumerate(reply.passages, 1)]

    async def _raw_say(self, text: str) -> None:
        if not text:
            raise errors.InvalidRequest("/raw_say is without a text, expected /raw_say TEXT")
        await self._ask(self._question(text, alone=True), text)

    async def _raw_prompt(self, rest: str) -> None:
        _require_nothing("/raw_prompt", rest)
        self._screen.tell(self._talker.last_prompt() or "the model has got no prompt yet; send a message first")

    async def _show_sources(self, rest: str) -> None:
        _require_nothing("/sources", rest)
        if not self._sources:
            self._screen.tell("the last answer has no sources")
        for number, passage in enumerate(self._sources, 1):
            text = passage.text or "(the text was not kept with the stored answer)"
            self._screen.tell(f"{source_line(number, passage)}\n{text}\n")

    async def _again(self, rest: str) -> None:
        _require_nothing("/again", rest)
        if self._last is None:
            raise errors.InvalidRequest("there is no message to ask again; send one first")
        await self._ask(*self._last)

    async def _report(self, rest: str) -> None:
        _require_nothing("/report", rest)
        if self._refused is None:
            raise errors.InvalidRequest("there is no refusal that could be reported here")
        await self._talker.report(*self._refused)
        self._refused = None
        self._screen.tell("reported; thank you")

    async def _regenerate(self, rest: str) -> None:
        _require_nothing("/regenerate", rest)
        asked, replaces = self._newest()
        if replaces is None:
            raise errors.InvalidRequest("the last message has no answer to replace; /again asks for one")
        values, note = self._hyperparameters.varied()
        self._screen.tell(note)
        again = replace(self._question(asked.text, replaces=replaces), hyperparameters=values)
        await self._ask(again, "/regenerate")

    async def _edit(self, text: str) -> None:
        if not text:
            raise errors.InvalidRequest("/edit is without a text, expected /edit TEXT")
        _, replaces = self._newest()
        await self._ask(self._question(text, replaces=replaces), f"/edit {text}")

    def _newest(self) -> tuple[Question, int | None]:
        """Return the last message and the number of the turn that one in its place replaces; None without an answer."""
        if self._asked is None:
            raise errors.InvalidRequest("nothing was said in this conversation here yet; send a message first")
        if self._answered == 0:
            raise errors.InvalidRequest("this service does not number its answers, so none can be replaced; update it")
        # What was stopped or failed hides nothing, not even what it was to replace.
        return self._asked, self._answered or self._asked.replaces

    async def _set(self, words: str) -> None:
        self._hyperparameters = self._hyperparameters.changed(words)
        self._screen.tell("\n".join(self._hyperparameters.rows()))

    async def _go_on(self, session: str) -> None:
        if session:
            check_id("the session", session)
            self._turn_to(session)
        self._screen.tell(f"session {self.session}" if self.session else "no session yet; the next message opens one")

    async def _reset(self, rest: str) -> None:
        _require_nothing("/reset", rest)
        self._turn_to(None)
        self._screen.tell("a new conversation begins with the next message")

    def _turn_to(self, session: str | None) -> None:
        self.session, self._sources, self._last = session, (), None
        self._asked = self._answered = None

    async def _help(self, rest: str) -> None:
        width = max(map(len, HELP)) + 2
        self._screen.tell("\n".join(f"{usage:<{width}}{text}" for usage, text in HELP.items()))

    async def _quit(self, rest: str) -> None:
        self._leaving = True


def _standing(question: Question, reply: Reply) -> int:
    """Return the number of the turn to replace next: what is refused or stopped takes the place of none."""
    if question.replaces is not None and reply.finish_reason in ("content_filter", "aborted"):
        return question.replaces
    return reply.seq


def _require_nothing(command: str, rest: str) -> None:
    if rest:
        raise errors.InvalidRequest(f"{command} is followed by {rest!r:.40}, expected nothing; nothing was done")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "/help lists the commands;"
    return f"{name!r:.60} is no command, {hint} nothing was sent; //… sends a message that begins with a slash"


def _next_step(error: errors.ChatkitError) -> tuple[str, str]:
    """Return what to do next, as the screen of a person and that of a script are told it."""
    if not isinstance(error, errors.NotFound):
        return next(((typed, piped) for kind, typed, piped in _NEXT if isinstance(error, kind)), ("", ""))
    for word, steps in (("session", _NEXT_SESSION), ("index", _NEXT_INDEX)):
        if f"{word} '" in str(error):
            return steps
    return ("check --url", "check --url")
