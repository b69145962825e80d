"""What removed rows leave behind in a SQLite file, beside where they lay: it goes after the write that removed them."""

import contextlib
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chatkit.sessions.sqlite_file import BUSY_MS

log = logging.getLogger(__name__)

# Emptying the log needs the file without readers, and holds up writers while it waits for that. Milliseconds.
_WAIT_MS = 50
# A file of up to this size is written anew when something is removed, which takes some 20 ms for each MB. Bytes.
_REWRITTEN = 16 * 1024 * 1024
# One above this size is left alone after that for so many times as long as it took: others want to write too.
_LARGE, _REST = 1024 * 1024, 20
# What could not be done is tried again at each so many-th write, the first one of a process among them.
_AGAIN_EVERY = 16


class Erasing:
    """Follows the writes of one connection and erases what those left that removed something.

    That something is to be erased is noted in the file, as its `application_id`, which is 0 when nothing is. So whoever
    writes to it next goes on where a process has ended. What was committed stays so whatever happens here: a full disk
    is no error of whoever committed.

    Args:
        file: for the log; None is memory.
        what: what is erased, in words.
    """

    def __init__(self, connection: sqlite3.Connection, file: Path | None, what: str) -> None:
        self._connection = connection
        self._file = file
        self._what = what
        self._writes = 0
        self._wanted = False
        self._seen = 0  # the note that is worked on
        self._rests_until = 0.0
        self._left: tuple[Callable[[], bool], ...] = ()  # what is to be done yet

    def note(self) -> None:
        """Note in the file, in the transaction that removes something, that it is to be erased."""
        self._connection.execute(f"PRAGMA application_id = {random.randrange(1, 2**31)}")
        self._left = (self._rewrite, self._empty_log)
        self._wanted = True

    def want(self) -> None:
        """Have what is left of earlier removals tried again after this write, though it removed nothing."""
        self._wanted = bool(self._left)

    def after_write(self) -> None:
        """Erase what this write has left, or now and then what an earlier one has; nothing is in a transaction."""
        self._writes += 1
        rested = 0 < self._rests_until <= time.monotonic()
        if self._wanted or rested or self._writes % _AGAIN_EVERY == 1:
            self._wanted = False
            self._erase()

    def close(self) -> None:
        """Try once more what is left, for nobody else may write for a long time."""
        self._rests_until = 0.0
        if self._left:
            self._erase()

    def _erase(self) -> None:
        try:
            note = self._note_in_file()
            if note and note != self._seen:  # perhaps of another process, which may have ended
                self._left = (self._rewrite, self._empty_log)
            self._seen = note
            if not self._left:
                return
            with self._impatient():
                self._left = tuple(work for work in self._left if not work())
                if note and not self._left:
                    self._left = (self._empty_log,)  # if another writes now, to come here again
                    self._end(note)
                    self._left = ()
        except sqlite3.Error as error:
            log.warning("the file %s cannot be looked after (%s), %s may be in it", self._file, error, self._what)

    @contextlib.contextmanager
    def _impatient(self) -> Iterator[None]:
        """Do not wait for others as long as a writer does: nobody can write beside what is done here."""
        self._connection.execute(f"PRAGMA busy_timeout = {_WAIT_MS}")
        try:
            yield
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def _rewrite(self) -> bool:
        """Write a small file anew; a larger one stays as it is. False where that is to be tried again.

        A removed row is overwritten with zeros where it lies, and not where it lay before SQLite moved it to another
        page: what was there is in the unused part of a page.
        """
        started = time.monotonic()
        if started < self._rests_until:
            return False
        self._rests_until, size = 0.0, 0
        try:
            sizes = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
            size = self._connection.execute(sizes).fetchone()[0]
            if size <= _REWRITTEN:
                self._connection.execute("PRAGMA temp_store = MEMORY")  # else the text lies in a file of its own then
                self._connection.execute("VACUUM")
        except sqlite3.Error as error:
            log.warning("%s cannot be written anew (%s), %s may be in it", self._file, error, self._what)
            # A damaged file never can, and to try takes long.
            return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        finally:
            if _LARGE < size <= _REWRITTEN:
                now = time.monotonic()
                self._rests_until = now + _REST * (now - started)
        return True

    def _empty_log(self) -> bool:
        """Write the log into the file and empty it: it still has what was removed. False while a reader keeps it."""
        try:
            emptied = not self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            why = "is in use"
        except sqlite3.Error as error:
            emptied, why = False, f"cannot be emptied ({error})"
        if not emptied:
            log.warning("the write-ahead log of %s %s, %s stays in it for now", self._file, why, self._what)
        return emptied

    def _note_in_file(self) -> int:
        return int(self._connection.execute("PRAGMA application_id").fetchone()[0])

    def _end(self, note: int) -> None:
        """Take the note out of the file, unless another removal has written its own meanwhile."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            if self._note_in_file() == note:
                self._connection.execute("PRAGMA application_id = 0")
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
