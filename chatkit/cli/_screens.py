"""Where the shell's lines come from and its answers go: pipes here, the terminal in `_terminal.py`."""

import asyncio
import errno
import os
import sys
import threading
from collections.abc import Sequence
from typing import Protocol

import click

from chatkit.cli._interrupts import Interrupts, Stopped
from chatkit.cli._show import as_json, one_line, plain
from chatkit.errors import ChatkitError, InvalidRequest
from chatkit.types import Replace, Reply

_CHUNK = 65536


class Screen(Protocol):
    """What the shell reads from and shows on. Whatever it is given may hold control characters; it shows none.

    Attributes:
        typed: a person types the lines, who may be told a command to go on with.
    """

    typed: bool

    async def line(self) -> str | None:
        """Return the next line that is not blank; None at the end.

        Raises:
            Stopped: Ctrl-C means the end here.
            InvalidRequest: the line cannot be read; the next one may be.
        """
        ...

    def piece(self, text: str) -> None:
        """Show a piece of an answer as it comes."""
        ...

    def withdraw(self, refusal: Replace) -> None:
        """Say that what was shown of this answer does not count, and show the refusal in its place."""
        ...

    def answered(self, reply: Reply, notes: Sequence[str]) -> None:
        """End an answer: what there is to say about it, then its sources."""
        ...

    def stopped(self) -> None:
        """End an answer that Ctrl-C stopped.

        Raises:
            Stopped: Ctrl-C means the end here.
        """
        ...

    def error(self, error: ChatkitError, step: str) -> None:
        """End an answer, or a command, with what went wrong and what to do next, which may be empty."""
        ...

    def tell(self, text: str) -> None:
        """Show what a command has to say."""
        ...

    def keep(self, line: str) -> None:
        """Remember a line for the next runs of the shell."""
        ...


def refusal_line(text: str, label: str | None) -> str:
    """Return a refusal with why."""
    why = "the check could not run" if label in (None, "unavailable") else label
    return plain(f"{text} [refused: {why}]")


def error_line(error: ChatkitError, step: str) -> str:
    """Return what went wrong, and what to do next where the error itself does not say it."""
    line = one_line(str(error))
    return f"error: {line}; {step}" if step and step not in line else f"error: {line}"


def echo(text: str, *, err: bool = False) -> None:
    """Print text as far as the stream's encoding can hold it, at once."""
    stream = sys.stderr if err else sys.stdout
    encoding = (stream and stream.encoding) or "utf-8"
    click.echo(text.encode(encoding, "replace").decode(encoding), err=err)


class PipeScreen:
    """Lines from stdin, answers on stdout, each whole; the rest on stderr, and no escape codes anywhere.

    An answer is held until its turn is stored, so that no reader gets text that is withdrawn later.
    """

    typed = False

    def __init__(self, interrupts: Interrupts, show_json: bool) -> None:
        self._interrupts = interrupts
        self._json = show_json
        self._lines = _StdinLines()
        self._refusal: Replace | None = None

    async def line(self) -> str | None:
        """Return the next line."""
        while (line := await self._interrupts.stoppable(self._lines.next())) is not None:
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                at = f"line {self._lines.number} is not UTF-8: byte {line[error.start]:#04x}"
                raise InvalidRequest(f"{at}; nothing was sent") from None
            if text.strip():
                return text
        return None

    def piece(self, text: str) -> None:
        """Wait for the whole."""

    def withdraw(self, refusal: Replace) -> None:
        """Note the refusal."""
        self._refusal = refusal

    def answered(self, reply: Reply, notes: Sequence[str]) -> None:
        """Print the answer on stdout and the notes on stderr."""
        refusal, self._refusal = self._refusal, None
        if self._json:
            from chatkit.server.protocols.native import answer

            echo(as_json(answer(reply)))
            return
        echo(refusal_line(refusal.text, refusal.label) if refusal else plain(reply.text))
        for note in notes:
            echo(plain(note), err=True)

    def stopped(self) -> None:
        """End the shell."""
        raise Stopped

    def error(self, error: ChatkitError, step: str) -> None:
        """Print it on stderr, and for programs as an object of its own."""
        self._refusal = None
        if self._json:
            echo(as_json({"error": {"code": error.code, "message": str(error)}}))
        echo(error_line(error, step), err=True)

    def tell(self, text: str) -> None:
        """Print it on stderr: stdout has answers only."""
        echo(plain(text), err=True)

    def keep(self, line: str) -> None:
        """Keep nothing: a script has its lines."""


class _StdinLines:
    """The lines of stdin as bytes.

    Each read is a system call in a daemon thread: a terminal or pipe that says nothing must not keep the process from
    leaving, and a thread that waits in `sys.stdin` would hold its lock while the interpreter ends.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._ended = False
        self.number = 0

    async def next(self) -> bytes | None:
        while b"\n" not in self._rest and not self._ended:
            part = await _read(sys.stdin.fileno())
            self._ended = not part
            self._rest += part
        if not self._rest:
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        self.number += 1
        return line


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[bytes] = loop.create_future()

    def deliver(part: bytes | OSError) -> None:
        if result.done():
            return
        if isinstance(part, OSError):
            result.set_exception(part)
        else:
            result.set_result(part)

    def read() -> None:
        part: bytes | OSError
        try:
            part = os.read(descriptor, _CHUNK)
        except OSError as error:
            part = b"" if error.errno == errno.EIO else error  # a terminal that is gone is an end
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, part)

    threading.Thread(target=read, daemon=True).start()
    return await result
