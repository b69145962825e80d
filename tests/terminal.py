"""A command at a terminal of its own, driven by pexpect.

The child is started by `subprocess` through a launcher and never by a bare fork: the process that runs the tests has
threads of native libraries in it, and what runs between such a fork and the exec can end the child before it says a
word.
"""

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

import pexpect
from pexpect.fdpexpect import fdspawn

# Takes stdin as the controlling terminal, so that Ctrl-C on it is a signal, and becomes the command.
_LAUNCHER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal(fdspawn):
    """`python …arguments` at a terminal of `size` (rows, columns); `expect` waits at most `timeout` seconds."""

    def __init__(
        self,
        *arguments: str,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (24, 80),
        timeout: float = 60,
    ) -> None:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, size)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, sys.executable, *arguments],
            cwd=cwd,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        super().__init__(master, timeout=timeout, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __str__(self) -> str:
        return f"{self.process.args}: code {self.process.poll()}, shown last {self.before!r} {self.buffer!r}"

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.send("\x03")

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the command from outside."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Read until the command has left the terminal and return its code, negative for a signal."""
        self.expect(pexpect.EOF)
        code = self.process.wait(60)
        self.close()
        return code

    def end(self) -> None:
        """Leave nothing behind, whatever state the command is in."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        if not self.closed:
            self.close()
