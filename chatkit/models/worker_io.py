"""What the workers share: a clean stream of events, commands from stdin, signals left alone, a sign of life."""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

Commands = queue.SimpleQueue[dict[str, Any] | None]

# Below this the most likely token is certain, and a single precision may read 0. A temperature.
LEAST_TEMPERATURE = 1e-4
# How often a worker says that it is alive. Seconds.
_ALIVE = 1.0


class Events:
    """The stream of events to the service; any thread may send."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._one = threading.Lock()

    def send(self, event: dict[str, Any]) -> None:
        """Write an event's line.

        Raises:
            BrokenPipeError: the service is gone.
        """
        line = json.dumps(event, separators=(",", ":")) + "\n"
        with self._one:
            self._stream.write(line)
            self._stream.flush()

    def fatal(self, why: str, code: str = "") -> None:
        """Say in one line why this is the end, with the code of the error where it has one."""
        self.send({"fatal": why, "code": code})


def opened() -> tuple[dict[str, Any], Events]:
    """Return the worker's options and the stream of its events; what libraries print goes to stderr from here on.

    The service alone decides about the end, and closes stdin for it: Ctrl-C and a signal to the whole process group
    are its to handle, and running generations are its to wait for.
    """
    options: dict[str, Any] = json.loads(sys.argv[1])
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)  # the threads here should not wait long for a turn
    return options, events


def commands(stream: TextIO) -> Commands:
    """Return the queue of what comes on a stream, read by a thread; None is its end."""
    made: Commands = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in stream:
                made.put(json.loads(line))
        except ValueError:
            pass  # the service was ended within a line
        finally:
            made.put(None)

    threading.Thread(target=read, name="commands", daemon=True).start()
    return made


def keep_saying_alive(events: Events, hangs: Callable[[], str] = str) -> None:
    """Send a sign of life every second from a thread, whatever the worker does meanwhile.

    Args:
        hangs: returns why the worker has to be given up, "" while all is well; the process ends with it.
    """
    over = threading.Event()

    def run() -> None:
        while not over.wait(_ALIVE):
            why = hangs()
            if why:
                try:
                    events.fatal(why)
                finally:
                    os._exit(1)
            with contextlib.suppress(OSError):  # the service is gone: commands end too, unless this process hangs
                events.send({"alive": True})

    threading.Thread(target=run, name="alive", daemon=True).start()


def message(error: Exception, *, last: bool = False) -> str:
    """Return the first line of an error, or the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if last else 0][:600] if lines else "unknown"
