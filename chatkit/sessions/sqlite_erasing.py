"""What removed rows leave behind in a SQLite file, beside where they lay: it goes after the write that removed them."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from chatkit.sessions.sqlite_file import BUSY_MS

log = logging.getLogger(__name__)

# Emptying the log needs the file without readers, and holds up writers while it waits for that. Milliseconds.
_WAIT_MS = 50
# A file of up to this size is written anew when something is removed, which takes some 20 ms for each MB. Bytes.
_REWRITTEN = 16 * 1024 * 1024
# What could not be done is tried again at each so many-th write.
_AGAIN_EVERY = 16


class Erasing:
    """Follows the writes of one connection and erases what those left that removed something.

    What was committed stays so whatever happens here: a full disk is no error of whoever committed.

    Args:
        file: for the log; None is memory.
        what: what is erased, in words.
    """

    def __init__(self, connection: sqlite3.Connection, file: Path | None, what: str) -> None:
        self._connection = connection
        self._file = file
        self._what = what
        self._writes = 0
        self._left: tuple[Callable[[], bool], ...] = ()  # what is to be done yet

    def after_write(self, *, erases: bool) -> None:
        """Erase what this write has left, or now and then what an earlier one has; nothing is in a transaction."""
        self._writes += 1
        if erases:
            self._left = (self._rewrite, self._empty_log)
        elif self._writes % _AGAIN_EVERY:
            return
        while self._left and self._done(self._left[0]):
            self._left = self._left[1:]

    def _done(self, work: Callable[[], bool]) -> bool:
        """Do what nobody can write beside, without waiting for it as long as a writer does; whether it was done."""
        self._connection.execute(f"PRAGMA busy_timeout = {_WAIT_MS}")
        try:
            done, why = work(), "is in use"
        except sqlite3.Error as error:
            done, why = False, f"cannot be emptied ({error})"
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        if not done:
            log.warning("the write-ahead log of %s %s, %s stays in it for now", self._file, why, self._what)
        return done

    def _rewrite(self) -> bool:
        """Write a small file anew; a larger one stays as it is.

        A removed row is overwritten with zeros where it lies, and not where it lay before SQLite moved it to another
        page: what was there is in the unused part of a page.
        """
        sizes = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        if self._connection.execute(sizes).fetchone()[0] <= _REWRITTEN:
            self._connection.execute("PRAGMA temp_store = MEMORY")  # else the text lies in a file of its own meanwhile
            self._connection.execute("VACUUM")
        return True

    def _empty_log(self) -> bool:
        """Write the log into the file and empty it: it still has what was removed. False while a reader keeps it."""
        return not self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
