"""Reads events out of bytes that arrive cut anywhere: server-sent events, or JSON one object a line. Knows no model.

The format is that of the HTML standard, "Server-sent events", section "Interpreting an event stream"; the fields other
than `data` say nothing here and are left out.
"""

import re

# One token makes an event of some 300 bytes; a whole answer in one stays below this too. Bytes.
MAX_EVENT = 1 << 20

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """An event is longer than any real one."""


class LineSplitter:
    """Cuts bytes into lines that end with CR, LF or both, wherever the pieces end; holds at most `most` bytes."""

    def __init__(self, most: int = MAX_EVENT) -> None:
        self._most = most
        self._held = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends.

        Raises:
            EventTooLong: a line is longer than an event may be.
        """
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        first, *rest = _LINE_END.split(data)
        self._held += first
        lines = []
        for part in rest:
            self._check()
            lines.append(bytes(self._held))
            self._held[:] = part
        self._check()
        return lines

    def _check(self) -> None:
        if len(self._held) > self._most:
            raise EventTooLong(f"an event is longer than {self._most} bytes")


class EventReader:
    """Turns the bytes of an event stream into the data of its events.

    Args:
        most: longest event, bytes.
        by_line: every line that is not empty is an event of its own, without field names.
        whole: all of it is one event, however many lines that has.
    """

    def __init__(self, *, most: int = MAX_EVENT, by_line: bool = False, whole: bool = False) -> None:
        self._lines = LineSplitter(most)
        self._most = most
        self._by_line = by_line
        self._whole = whole
        self._data: list[bytes] = []
        self._size = 0
        self._fresh = True

    def feed(self, data: bytes) -> list[str]:
        """Return the data of the events that are whole now.

        Raises:
            EventTooLong: an event is too long.
        """
        if self._whole:
            self._keep(data, len(data))
            return []
        events = []
        for line in self._lines.feed(data):
            if self._fresh:
                line = line.removeprefix(_BOM)
                self._fresh = False
            if self._by_line:
                if line.strip():
                    events.append(_text(line))
            elif line:
                self._take(line)
            elif self._data:
                events.append(self._event())
        return events

    def end(self) -> list[str]:
        """Return the event whose lines are whole but which no empty line ends: some servers leave the last one out."""
        if self._whole:
            text = _text(b"".join(self._data).removeprefix(_BOM))
            self._data.clear()
            return [text] if text.strip() else []
        if self._by_line:
            return [text for line in self._lines.feed(b"\n") if (text := _text(line).strip())]
        return [self._event()] if self._data else []

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name != b"data":
            return  # a comment, another field, or garbage
        value = value.removeprefix(b" ")
        self._keep(value, len(value) + 1)

    def _keep(self, value: bytes, size: int) -> None:
        self._size += size
        if self._size > self._most:
            raise EventTooLong(f"an event is longer than {self._most} bytes")
        self._data.append(value)

    def _event(self) -> str:
        text = _text(b"\n".join(self._data))
        self._data.clear()
        self._size = 0
        return text


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")
