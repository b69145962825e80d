"""The shell's terminal: line editing and history by prompt_toolkit, answers written as they come."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, WordCompleter
from prompt_toolkit.history import History
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from chatkit.cli._interrupts import Interrupts, Stopped
from chatkit.cli._screens import error_line, refusal_line
from chatkit.cli._show import plain
from chatkit.errors import ChatkitError
from chatkit.types import Replace, Reply

_PROMPT = ">>> "
# Lines of earlier runs that are read.
_REMEMBERED = 1000


class KeptHistory(History):
    """Lines for the arrow keys and Ctrl-R; of those of this run only what `keep` is given reaches the file.

    prompt_toolkit's own history writes a line before it is sent, which would put refused text on the disk.

    Args:
        file: one JSON string a line; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        super().__init__()
        self._file = file

    def load_history_strings(self) -> Iterable[str]:
        """Return the lines of earlier runs, newest first."""
        try:
            rows = self._file.read_text(encoding="utf-8").split("\n") if self._file else []
        except (OSError, UnicodeDecodeError):
            return []
        return [line for row in reversed(rows[-_REMEMBERED:]) if (line := _line_in(row))]

    def store_string(self, string: str) -> None:
        """Write nothing: the line is not answered yet."""

    def keep(self, line: str) -> None:
        """Append a line to the file, which its owner alone may read.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "a", encoding="utf-8") as out:
            os.chmod(self._file, 0o600)
            out.write(json.dumps(line) + "\n")


def _line_in(row: str) -> str:
    try:
        line = json.loads(row)
    except ValueError:
        return ""
    return line if isinstance(line, str) else ""


class TerminalScreen:
    """A terminal that a person sits at."""

    typed = True

    def __init__(self, history: KeptHistory, commands: Sequence[str], interrupts: Interrupts) -> None:
        self._history = history
        self._interrupts = interrupts
        self._session: PromptSession[str] = PromptSession(
            _PROMPT,
            history=history,
            completer=_command_completer(commands),
            complete_while_typing=False,
            key_bindings=_keys(),
            prompt_continuation="... ",
            interrupt_exception=Stopped,
        )
        self._styled = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._shown = False
        self._open_line = False

    async def line(self) -> str | None:
        """Read a line; Ctrl-C empties it, and where it is empty says how to leave."""
        self._interrupts.forget()  # one that came after the last answer does not mean this line
        while True:
            try:
                # Without prompt_toolkit's own handler, which would lose a signal that comes while it goes.
                text = await self._interrupts.stoppable(self._session.prompt_async(handle_sigint=False))
            except Stopped:
                if not self._session.default_buffer.text:
                    self._dim("Ctrl-D or /quit leaves")
                continue
            except EOFError:
                return None
            if text.strip():
                self._obey_typed_ahead()
                return text

    def _obey_typed_ahead(self) -> None:
        """Let a Ctrl-C typed behind Enter stop the answer: while keys are read it is one of them and no signal.

        Like the signal it takes back what was typed before it.
        """
        given = self._session.input
        keys = [*get_typeahead(given), *given.read_keys()]
        typed = [key.key for key in keys]
        if Keys.ControlC in typed:
            self._interrupts.stop_next()
            keys = keys[len(typed) - typed[::-1].index(Keys.ControlC) :]
        store_typeahead(given, keys)

    def piece(self, text: str) -> None:
        """Write it at once."""
        self._shown = True
        self._write(plain(text))

    def withdraw(self, refusal: Replace) -> None:
        """Say so below what was shown, which a terminal cannot take back."""
        if self._shown:
            self._end_line()
            self._dim("[withdrawn: the text above was refused by the check and does not count]")
        self._shown = True
        self._write(refusal_line(refusal.text, refusal.label) + "\n")

    def answered(self, reply: Reply, notes: Sequence[str]) -> None:
        """Write the notes below the answer."""
        self._end_line()
        for note in notes:
            self._dim(note)
        self._write("\n")
        self._shown = False

    def stopped(self) -> None:
        """Say that the answer ends here."""
        self._end_line()
        self._dim("[stopped]")
        self._shown = False

    def error(self, error: ChatkitError, step: str) -> None:
        """Write it in red."""
        self._end_line()
        self._write(self._style(error_line(error, step), "31") + "\n")
        self._shown = False

    def tell(self, text: str) -> None:
        """Write it as it is."""
        self._end_line()
        self._write(plain(text) + "\n")

    def keep(self, line: str) -> None:
        """Add a line to the history file."""
        try:
            self._history.keep(line)
        except OSError as error:
            self._dim(f"[the line is not in the history file: {error.strerror}]")

    def _dim(self, line: str) -> None:
        self._write(self._style(plain(line), "2") + "\n")

    def _style(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._styled else text

    def _end_line(self) -> None:
        if self._open_line:
            self._write("\n")

    def _write(self, text: str) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
        self._open_line = not text.endswith("\n") if text else self._open_line


def _command_completer(commands: Sequence[str]) -> Completer:
    return WordCompleter(list(commands), sentence=True)


def _keys() -> KeyBindings:
    """Let Alt-Enter begin a new line; Enter sends."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
