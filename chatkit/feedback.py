"""Reports of wrong refusals: a signed token in each refusal, and what is kept of a report. No text unless it is sent.

A token says what was decided and when, and holds a keyed hash of the message: whoever has no key can neither make
one nor learn the message from it. A text is kept only where it is the one that was judged, and once: whoever has a
token can store nothing else with it, however often it is sent.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatkit.errors import ConfigError, InvalidRequest
from chatkit.types import Direction, ModerationResult

# A refusal may be reported for so long. Seconds.
TOKEN_LIFE = 7 * 86400.0
# A token is about 400 characters.
_LONGEST_TOKEN = 2048
_KEY_BYTES = 32
_BROKEN = "the token is none of this service's, expected the one of a refusal, as it was sent"


@dataclass(frozen=True, slots=True)
class Kept:
    """What was kept of a report.

    Attributes:
        id: of the refusal; the same one reported twice is one row.
        verified: the text is the one that was judged, and kept; None where none was sent.
        new: nobody reported this refusal before.
    """

    id: str
    verified: bool | None
    new: bool = True


class Feedback:
    """Makes tokens and takes reports into a file of JSON lines.

    Args:
        file: is made with the first report; the key is beside it, made with the first token.

    Raises:
        ConfigError: the key can neither be read nor made.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._key = _key(file.with_suffix(".key"))
        self._lock = threading.Lock()
        self._texts: dict[str, bool] = {}  # id of a reported refusal → whether its text was kept
        self._read = 0  # bytes of the file that these are of

    def token(self, verdict: ModerationResult, direction: Direction, message: str) -> str:
        """Return a token for a refusal.

        Args:
            message: of the user, also where the answer was refused.
        """
        told = {
            "i": binascii.hexlify(os.urandom(8)).decode(),
            "t": int(time.time()),
            "d": direction,
            "a": verdict.action,
            "l": verdict.label,
            "c": verdict.category,
            "m": verdict.model,
            "v": verdict.version[:16],
            "h": self._hash(message),
        }
        body = _packed(json.dumps(told, separators=(",", ":")).encode())
        return f"{body}.{self._signature(body)}"

    def report(self, token: str, text: str | None = None) -> Kept:
        """Keep a report that a refusal was wrong.

        Args:
            text: the user's message, where the user wants it to be looked at; nothing of it is kept otherwise, nor
                where it is another one than was refused.

        Raises:
            InvalidRequest: the token is not one of these, or too old, or the text has half a character.
            ConfigError: the file cannot be read or written.
        """
        told = self._opened(token)
        verified = None if text is None else hmac.compare_digest(told["h"], self._hash(text))
        row = {
            "id": told["i"],
            "at": int(time.time()),
            "refused_at": told["t"],
            "direction": told["d"],
            "action": told["a"],
            "label": told["l"],
            "category": told["c"],
            "model": told["m"],
            "version": told["v"],
            "text": text if verified else None,
            "verified": verified,
        }
        with self._lock:
            new = self._keep(row)
        return Kept(row["id"], verified, new)

    def _keep(self, row: dict[str, Any]) -> bool:
        """Append a row, unless it says no more than one that is there; return whether it is the refusal's first."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        try:
            self._catch_up()
            known = self._texts.get(row["id"])
            if known or (known is not None and not row["verified"]):
                return False
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line.encode())  # one write, so that lines of two processes do not mix
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ConfigError(f"reports cannot be written to {str(self._file)!r}: {error.strerror}") from error
        self._texts[row["id"]] = bool(row["verified"])
        return known is None

    def _catch_up(self) -> None:
        """Read what this and other processes have added since the last report."""
        if not self._file.exists():
            self._read = 0
            return
        with self._file.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) < self._read:  # somebody made it shorter
                self._read = 0
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # another process is writing it
                self._read += len(line)
                with suppress(ValueError, KeyError, TypeError):  # a damaged one is named when it is exported
                    row = json.loads(line)
                    self._texts[row["id"]] = self._texts.get(row["id"], False) or bool(row["verified"])

    def _opened(self, token: str) -> dict[str, Any]:
        body, _, signature = token.partition(".")
        if (
            len(token) > _LONGEST_TOKEN
            or not token.isascii()
            or not hmac.compare_digest(signature, self._signature(body))
        ):
            raise InvalidRequest(_BROKEN)
        told: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if time.time() - told["t"] > TOKEN_LIFE:
            raise InvalidRequest(f"the refusal is older than {TOKEN_LIFE / 86400:.0f} days, expected a newer one")
        return told

    def _signature(self, body: str) -> str:
        return _packed(hmac.digest(self._key, b"token\0" + body.encode(), "sha256"))

    def _hash(self, text: str) -> str:
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text has half a character at {error.start}, expected whole Unicode") from None
        return hmac.digest(self._key, b"text\0" + encoded, "sha256").hex()[:32]


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _key(file: Path) -> bytes:
    """Return the key in a file, which only the owner may read; made where there is none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "wb") as made:
                made.write(os.urandom(_KEY_BYTES))
        key = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key of reports {str(file)!r} cannot be read: {error.strerror}") from error
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"the key of reports {str(file)!r} has {len(key)} bytes, expected {_KEY_BYTES}; remove it")
    return hashlib.sha256(key).digest()


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the reports in a file as rows of an evaluation: harmless by their users' word, one of each refusal.

    That is the last, but none goes before one whose text is the refused one. Each has "text" (None where the user sent
    none), "flagged": 0, "direction", and what was decided.

    Raises:
        ConfigError: the file cannot be read, or a line of it is damaged.
    """
    try:
        # At line ends alone: a text may have characters that Python takes for more of them.
        lines = file.read_bytes().split(b"\n") if file.exists() else []
    except OSError as error:
        raise ConfigError(f"the reports {str(file)!r} cannot be read: {error.strerror}") from error
    if lines and not lines[-1]:
        lines.pop()
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["verified"] or not found.get(row["id"], {}).get("verified"):
                found[row["id"]] = {"text": row.pop("text"), "flagged": 0, **row}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"line {number} of {str(file)!r} is no report; remove it") from None
    yield from found.values()
