"""Texts of a turn encrypted under the key of its session, each bound to its place. Knows no store."""

import base64
import json
from dataclasses import replace
from typing import Any

from chatkit.errors import MissingExtra
from chatkit.protocols import Outcome
from chatkit.sessions import items, references
from chatkit.sessions.attributes import size_of
from chatkit.types import FinishReason, Owner, Passage, Turn

# AES-256-SIV takes two keys of 256 bits, one for the digest and one for the text. Bytes; RFC 5297, §2.6.
KEY_BYTES = 64
# What an encrypted text begins with; the rest is base64.
MARK = "sealed-1:"
# Bytes that encryption adds: the synthetic initialization vector, and one so that no text is empty, which not every
# build of the library takes.
_ADDED = 17
_BEFORE = b"\x01"


class SessionKey:
    """One session's key, unwrapped: encrypts its texts, each for one place, and nothing else.

    The same text at the same place gives the same ciphertext, so that stores can compare texts they cannot read.

    Raises:
        MissingExtra: the library is not installed.
    """

    def __init__(self, owner: Owner, session_id: str, key: bytes) -> None:
        self._place = [items.owner_key(owner).encode(), session_id.encode()]
        self._cipher = _siv(key)

    def seal(self, text: str, request_id: str, field: str) -> str:
        """Return a text encrypted for one field of one turn; elsewhere it cannot be opened."""
        sealed = self._cipher.encrypt(_BEFORE + text.encode(), self._at(request_id, field))
        return MARK + base64.b64encode(sealed).decode()

    def unseal(self, sealed: str, request_id: str, field: str) -> str:
        """Return what `seal` was given.

        Raises:
            ValueError: it is damaged, or was encrypted under another key or for another place.
        """
        from cryptography.exceptions import InvalidTag

        cipher = base64.b64decode(sealed.removeprefix(MARK), validate=True)
        try:
            plain: bytes = self._cipher.decrypt(cipher, self._at(request_id, field))
        except InvalidTag:
            raise ValueError("not encrypted under this key for this place") from None
        return plain.removeprefix(_BEFORE).decode()

    def _at(self, request_id: str, field: str) -> list[bytes]:
        return [*self._place, request_id.encode(), field.encode()]


def _siv(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    except ImportError:
        raise MissingExtra("cryptography", "encryption") from None
    return AESSIV(key)


def most_in(characters: int) -> int:
    """Return how many bytes of text become at most `characters` when they are encrypted."""
    return (characters - len(MARK)) // 4 * 3 - _ADDED


def is_sealed(user: str, user_length: int) -> bool:
    """Whether the message of a turn is encrypted, and with it all its texts.

    A plain message has the length that is kept beside it, whatever it begins with; an encrypted one is longer.
    """
    return user.startswith(MARK) and len(user) != user_length


def sealed_message(key: SessionKey, text: str, request_id: str) -> str:
    """Return a message encrypted."""
    return key.seal(text, request_id, "user")


def sealed_outcome(key: SessionKey, request_id: str, outcome: Outcome) -> Outcome:
    """Return an outcome with its texts encrypted."""
    answer = _sealed_answer(key, request_id, outcome.assistant)
    return replace(outcome, assistant=answer, passages=_sealed_passages(key, request_id, outcome.passages))


def sealed_turn(key: SessionKey, turn: Turn) -> Turn:
    """Return a turn that has ended with its texts encrypted; a blocked one has none."""
    if turn.status == "blocked" and not turn.user:
        return turn
    return replace(
        turn,
        user=sealed_message(key, turn.user, turn.request_id),
        assistant=_sealed_answer(key, turn.request_id, turn.assistant),
        passages=_sealed_passages(key, turn.request_id, turn.passages),
    )


def unsealed_turn(key: SessionKey, turn: Turn) -> Turn:
    """Return a turn as it was before it was encrypted; a plain one as it is.

    Raises:
        ValueError: it is damaged, or was encrypted under another key or for another place.
    """
    if not is_sealed(turn.user, turn.user_length):
        return turn
    return replace(
        turn,
        user=key.unseal(turn.user, turn.request_id, "user"),
        assistant=key.unseal(turn.assistant, turn.request_id, "assistant") if turn.assistant else "",
        passages=_unsealed_passages(key, turn.request_id, turn.passages),
    )


def _sealed_answer(key: SessionKey, request_id: str, text: str) -> str:
    return key.seal(text, request_id, "assistant") if text else ""


def _sealed_passages(key: SessionKey, request_id: str, passages: tuple[Passage, ...]) -> tuple[Passage, ...]:
    """Return passages with all that names them encrypted, as the id of the first: ids and hashes too tell of what."""
    if not passages:
        return ()
    names = [
        [each.id, each.title, each.source, each.section, references.text_hash(each), each.page, each.document]
        for each in passages
    ]
    text = key.seal(json.dumps(names, ensure_ascii=False, separators=(",", ":")), request_id, "passages")
    bare = [Passage("", "", start=each.start, end=each.end, score=each.score, text_hash="-") for each in passages]
    return (replace(bare[0], id=text), *bare[1:])


def _unsealed_passages(key: SessionKey, request_id: str, passages: tuple[Passage, ...]) -> tuple[Passage, ...]:
    if not passages:
        return ()
    names = json.loads(key.unseal(passages[0].id, request_id, "passages"))
    fields = ("id", "title", "source", "section", "text_hash", "page", "document")  # rows of older versions end sooner
    return tuple(
        replace(each, **dict(zip(fields, row, strict=False))) for each, row in zip(passages, names, strict=True)
    )


def readable_turn(key: SessionKey, turn: Turn) -> Turn | None:
    """Return a turn as it was before it was encrypted, None for one that cannot be decrypted."""
    try:
        return unsealed_turn(key, turn)
    except ValueError:
        return None


def fitting_outcome(key: SessionKey, request_id: str, outcome: Outcome, room: int) -> tuple[Outcome, bool]:
    """Return an outcome encrypted, and whether it has room; a larger one is aborted, without sources, and cut."""
    sealed = sealed_outcome(key, request_id, outcome)
    if size_of(items.ended({}, sealed)) <= room:
        return sealed, True
    reason: FinishReason = "length" if outcome.status == "complete" else outcome.finish_reason
    bare = replace(outcome, status="aborted", finish_reason=reason, assistant="", passages=())
    most = most_in(room - size_of(items.ended({}, bare)))
    cut = outcome.assistant.encode()[:most].decode("utf-8", "ignore")
    return sealed_outcome(key, request_id, replace(bare, assistant=cut)), False
