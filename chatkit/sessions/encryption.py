"""A store around another that encrypts what people and models said, under a key of each session.

The other store sees ciphertext in the place of texts, and compares it where it would compare texts. A session whose key
was forgotten is gone, wherever copies of its turns may lie.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, TypeVar

from chatkit.conversation import Conversation
from chatkit.errors import ConfigError, Conflict, InvalidRequest, NotFound, StoreFailed, TooLarge
from chatkit.protocols import CLOSED_S, Accepted, NewTurn, Outcome, SessionList, SessionStore, Ticket
from chatkit.sessions import items, sealing, whole
from chatkit.sessions.attributes import size_of
from chatkit.sessions.session_keys import KeyRing, WrappedKey
from chatkit.types import Owner, Turn

log = logging.getLogger(__name__)
T = TypeVar("T")

# Bytes of UTF-8 of a message that are stored: encrypted, it is as long as the longest that the other store takes.
MAX_MESSAGE = sealing.most_in(items.MAX_MESSAGE)
# What DynamoDB takes of a turn, and what of that is for its keys, numbers and names. The same for every store, so that
# a session can move from one to another. Bytes.
_MAX_ITEM, _BESIDE = 400 * 1024, 4096
# Turns of a session that are looked at to tell whether it is encrypted.
_SOME = 64
# What a call of the keys may take, seconds; removing everything of an owner takes many.
_BUDGET_S, _PURGE_S = 5.0, 600.0
# Keys that were made while a purge ran go too, where its owner is shut out for long enough to find them. Seconds.
_SURELY_CLOSED_S = 60.0
_THREADS = 16
_NO_KEY = WrappedKey(b"-")


class OpenStore(SessionStore, Protocol):
    """A store that has been opened."""

    async def withdraw(self, ticket: Ticket) -> bool:
        """Remove a session that has the ticket's turn alone, where that waits to be finished; whether it did."""
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...


@dataclass(frozen=True, slots=True)
class _Ticket(Ticket):
    """A ticket that remembers how its message was stored.

    Attributes:
        wrapped: the key that it was encrypted under, None where it is plain.
        size: bytes of it as it is stored.
    """

    wrapped: bytes | None = field(default=None, repr=False, compare=False)
    size: int = field(default=items.MAX_MESSAGE, repr=False, compare=False)


class EncryptedStore:
    """A TurnStore and SessionArchive around another. What it stored before it was encrypted stays plain and readable.

    Args:
        store: what holds the turns; closed with this one.
        keys: the keys of its sessions; closed with this one.
        clock: that of `store`.
        retention_s: that of `store`.
    """

    def __init__(
        self,
        store: OpenStore,
        keys: KeyRing,
        *,
        clock: Callable[[], float] = time.time,
        retention_s: float | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._retention_s = retention_s
        self._executor = ThreadPoolExecutor(_THREADS, "session-keys")

    async def load(self, owner: Owner, session_id: str, *, limit: int) -> Conversation:
        """Return the newest turns; see protocols.TurnStore."""
        found = await self._store.load(owner, session_id, limit=limit)
        turns = await self._unsealed(owner, session_id, found.turns)
        if turns is not None:
            return replace(found, turns=turns)
        if session_id.startswith("s-"):
            raise items.unknown_session(session_id)
        return Conversation()

    async def accept(self, turn: NewTurn) -> Accepted:
        """Number the turn durably; see protocols.TurnStore.

        Raises:
            TooLarge: the message leaves no room for an answer, or for its own encryption.
        """
        _check_message(turn.user, "the message")
        if turn.status == "blocked":  # its text is not stored, so a new one needs no key
            return await self._accept(replace(turn, user=""), turn, None)
        ends = turn.expires_at
        if ends is None and not turn.after and self._retention_s is not None:
            ends = self._clock() + self._retention_s
        kept, key, made = await self._key(turn, ends, look=not turn.opens_session)
        sealed = replace(turn, user=sealing.sealed_message(key, turn.user, turn.request_id))
        unused = made and turn.opens_session  # an id that nobody else can know
        try:
            accepted = await self._accept(sealed, turn, kept.wrapped)
        except (Conflict, InvalidRequest, NotFound):
            if unused:
                await self._discard(turn, kept)
            raise
        if unused and accepted.session_id != turn.session_id:
            await self._discard(turn, kept)
        if isinstance(accepted.ticket, _Ticket) and turn.opened_at is None and not turn.opens_session:
            await self._check_key(accepted.ticket)  # else the store asks for the session that the key was looked up of
        return accepted

    async def _check_key(self, ticket: _Ticket) -> None:
        """Take a message back whose key was forgotten while it was on its way: nobody could read it.

        Where it opened its session, that goes with it, for nobody could open another of its name. Else it stays as a
        turn that was refused, of which no text is stored. The store asks for this very attempt in both.

        Raises:
            NotFound: it was.
        """
        if ticket.wrapped is None:
            return
        kept, _ = await self._run(self._keys.fresh, ticket.owner, ticket.session_id)
        if kept is not None and kept.wrapped == ticket.wrapped:
            return
        step = "send it again"
        if not await self._store.withdraw(ticket):
            step = "send it again with a new request_id"
            with suppress(Conflict):  # it was removed with its session
                await self._store.finish(ticket, Outcome("blocked", "content_filter"))
        raise NotFound(f"session {ticket.session_id!r} was removed while this message was on its way; {step}")

    async def renew(self, ticket: Ticket) -> None:
        """Extend the lease of a pending turn."""
        await self._store.renew(ticket)

    async def finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Store how the turn ended; see protocols.TurnStore.

        Raises:
            TooLarge: message, answer and sources are more than is stored of a turn: it is aborted and cut to fit.
        """
        used, size = (ticket.wrapped, ticket.size) if isinstance(ticket, _Ticket) else (b"", items.MAX_MESSAGE)
        if used is None:
            await self._store.finish(ticket, outcome)
            return
        kept, key = await self._run(self._keys.fresh, ticket.owner, ticket.session_id)
        # A message under a key that is forgotten by now cannot be read again: its session was removed meanwhile.
        if kept is None or key is None or (used and kept.wrapped != used):
            raise items.not_owned(ticket)
        if outcome.status == "blocked":
            await self._store.finish(ticket, replace(outcome, assistant="", passages=()))
            return
        sealed, fits = sealing.fitting_outcome(key, ticket.request_id, outcome, _MAX_ITEM - _BESIDE - size)
        await self._store.finish(ticket, sealed)
        if not fits and outcome.status == "complete":
            raise TooLarge(
                f"message, answer and sources have, encrypted, more than the {_MAX_ITEM} bytes that are stored of a "
                "turn, so it is stored as aborted and its answer cut; send a shorter message or lower max_new_tokens"
            )

    async def sessions(self, owner: Owner, *, limit: int, cursor: str | None = None) -> SessionList:
        """List the owner's sessions; see protocols.SessionArchive."""
        return await self._store.sessions(owner, limit=limit, cursor=cursor)

    async def page(self, owner: Owner, session_id: str, *, limit: int, after: int = 0) -> tuple[Turn, ...]:
        """Return turns, oldest first; see protocols.SessionArchive."""
        while found := await self._store.page(owner, session_id, limit=limit, after=after):
            turns = await self._unsealed(owner, session_id, found)
            if turns is None:
                raise items.unknown_session(session_id)
            if turns:
                return turns
            if found[-1].seq <= after:
                break
            after = found[-1].seq  # none of them can be read, and no turns would mean that this is the end
        return ()

    async def delete(self, owner: Owner, session_id: str) -> None:
        """Forget the key of a session, then remove it; see protocols.SessionArchive."""
        mark = await self._run(self._keys.forget, owner, session_id)
        await self._store.delete(owner, session_id)
        await self._run(self._keys.unmake, owner, session_id, mark)

    async def purge(self, owner: Owner, *, closed_s: float = CLOSED_S) -> int:
        """Forget the keys of an owner, then remove everything; see protocols.SessionArchive."""
        await self._run(self._keys.forget_all, owner, seconds=_PURGE_S)
        removed = await self._store.purge(owner, closed_s=closed_s)
        if closed_s >= _SURELY_CLOSED_S:
            await self._run(self._keys.forget_all, owner, seconds=_PURGE_S)
        return removed

    async def restore(self, owner: Owner, session_id: str, turns: Sequence[Turn], *, expires_at: float | None) -> None:
        """Write a session encrypted; see protocols.SessionArchive.

        Raises:
            TooLarge: a turn is more than is stored of one when it is encrypted.
            Conflict: a session of this name is there, or is being removed, or was when that broke off.
        """
        whole.check_restorable(session_id, turns)
        for turn in turns:
            _check_message(turn.user, f"the message of turn {turn.seq} of session {session_id!r}")
        opening = NewTurn(owner, session_id, "", "", 0, opens_session=True)
        try:
            kept, key, _ = await self._key(opening, expires_at, look=True)
        except NotFound as error:  # in the way, to whoever restores
            raise Conflict(str(error)) from None
        sealed = await asyncio.to_thread(lambda: [sealing.sealed_turn(key, turn) for turn in turns])
        for turn in sealed:
            size = size_of(items.restored(turn, expires_at)) + _BESIDE
            if size > _MAX_ITEM:
                raise TooLarge(
                    f"turn {turn.seq} of session {session_id!r} has, encrypted, {size} bytes, at most {_MAX_ITEM} are "
                    "stored; keep this session in a store without session_keys"
                )
        await self._store.restore(owner, session_id, sealed, expires_at=expires_at)
        if (await self._run(self._keys.fresh, owner, session_id))[0] != kept:
            raise Conflict(
                f"session {session_id!r} was removed while it was restored; remove it, then restore it again"
            )

    async def check(self) -> tuple[str, ...]:
        """Return what the other store finds wrong with its file; nothing where it has none."""
        check = getattr(self._store, "check", None)
        found: tuple[str, ...] = () if check is None else await check()
        return found

    async def check_owner(self, owner: Owner) -> tuple[str, ...]:
        """Return what the other store finds wrong with an owner's sessions; nothing where it has no such check."""
        check = getattr(self._store, "check_owner", None)
        found: tuple[str, ...] = () if check is None else await check(owner)
        return found

    def close(self) -> None:
        """Wait for what runs and close the store and the keys."""
        self._executor.shutdown()
        self._store.close()
        self._keys.close()

    async def _run(self, work: Callable[..., T], *arguments: object, seconds: float = _BUDGET_S) -> T:
        """Run one call of the keys in a thread; one that takes too long goes on there."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        except ConfigError as error:
            # A setting that is wrong now was right when the store was opened, and may be again.
            log.error("%s", error)
            raise StoreFailed("the keys of sessions are not set up; the operator's log says why") from error
        except TimeoutError as error:
            log.error("a call of the keys of sessions took more than %g s", seconds)
            raise StoreFailed("the keys of sessions did not answer in time; send the request again later") from error

    async def _key(
        self, turn: NewTurn, ends: float | None, *, look: bool
    ) -> tuple[WrappedKey, sealing.SessionKey, bool]:
        """Return the key to write a turn's session with, and whether it was made just now.

        Args:
            ends: when the session ends, if this turn opens it too.
            look: whether there may be such a session; not where its id was made for this turn.

        Raises:
            NotFound: the session is being removed, so that its key is forgotten.
        """
        owner, session_id, mine = turn.owner, turn.session_id, None
        for _ in range(5):
            kept, key = await self._run(self._keys.fresh, owner, session_id)
            if kept is not None and key is not None and kept.outlives(ends):
                return kept, key, kept == mine
            found = await self._found(owner, session_id) if look or kept is not None else None
            if found is None and not _may_open(turn):
                # The other store is to say why. If the session is opened meanwhile, nobody can finish this turn.
                return _NO_KEY, sealing.SessionKey(owner, session_id, secrets.token_bytes(sealing.KEY_BYTES)), False
            if found is not None and kept is not None and key is not None:
                return kept, key, kept == mine
            if found is not None and (kept is not None or any(map(_is_sealed, found.turns))):
                raise NotFound(
                    f"session {session_id!r} is being removed, or was when that broke off; name another one, or have "
                    "it removed again"
                )
            if found is not None:  # it was opened before sessions were encrypted
                ends = found.expires_at
            mine = await self._run(self._keys.make, owner, session_id, kept, ends)
        raise StoreFailed("the keys of sessions are busy; send the request again later")

    async def _discard(self, turn: NewTurn, kept: WrappedKey) -> None:
        with suppress(StoreFailed):  # one that stays is of no session, and does no harm
            await self._run(self._keys.unmake, turn.owner, turn.session_id, kept)

    async def _found(self, owner: Owner, session_id: str) -> Conversation | None:
        """Return the newest turns of a session as they are stored; None where it is not open."""
        try:
            found = await self._store.load(owner, session_id, limit=_SOME)
        except NotFound:
            return None
        return found if found.turns else None

    async def _accept(self, stored: NewTurn, turn: NewTurn, wrapped: bytes | None) -> Accepted:
        """Accept a turn as `stored`; a repeat of what was stored in another form in the form of that."""
        try:
            accepted = await self._store.accept(stored)
        except items.OtherMessage as other:
            stored, wrapped = await self._as_before(turn, other)
            accepted = await self._store.accept(stored)
        if accepted.repeat is not None:
            turns = await self._unsealed(turn.owner, accepted.session_id, (accepted.repeat,))
            if turns is None:
                raise items.removed_session(turn.request_id)
            if not turns:
                raise StoreFailed(f"the turn of request_id {turn.request_id!r} is damaged; send a new request_id")
            return replace(accepted, repeat=turns[0])
        if accepted.ticket is None:
            raise AssertionError("accept returns a ticket or a repeat")
        own = accepted.ticket
        told = {name.name: getattr(own, name.name) for name in fields(own)}
        return replace(accepted, ticket=_Ticket(**told, wrapped=wrapped, size=len(stored.user.encode())))

    async def _as_before(self, turn: NewTurn, other: items.OtherMessage) -> tuple[NewTurn, bytes | None]:
        """Return a turn in the form in which its request is stored, and the key of that.

        It is stored under another key when it opened another session when it was first sent, and plain when that was
        before sessions were encrypted.

        Raises:
            OtherMessage: its text is another one.
        """
        was, wrapped = str(other.item["user"]), None
        text = turn.user
        if _is_sealed_item(was, other.item["user_length"]):
            kept, key = await self._run(self._keys.fresh, turn.owner, other.session_id)
            if kept is None or key is None:
                raise items.removed_session(turn.request_id) from None
            wrapped, text = kept.wrapped, sealing.sealed_message(key, turn.user, turn.request_id)
        if text != was or not items.is_same_session(turn, other.session_id, other.item):
            raise other
        # It must not open a session: its text is in the form of this one.
        same = replace(turn, user=text, session_id=other.session_id, opens_session=False, after=int(other.item["seq"]))
        return same, wrapped

    async def _unsealed(self, owner: Owner, session_id: str, turns: Sequence[Turn]) -> tuple[Turn, ...] | None:
        """Return turns as they were before they were encrypted, damaged ones left out; None without their key."""
        if not any(map(_is_sealed, turns)):
            return tuple(turns)
        return await self._run(self._unseal, owner, session_id, turns)

    def _unseal(self, owner: Owner, session_id: str, turns: Sequence[Turn]) -> tuple[Turn, ...] | None:
        key = self._keys.held(owner, session_id)
        opened = None if key is None else [sealing.readable_turn(key, turn) for turn in turns]
        if key is not None and opened is not None and None in opened:
            # Another process may have removed the session, and opened it again, since the key was last asked for.
            asked = self._keys.fresh(owner, session_id)[1]
            if asked is not key:
                opened = None if asked is None else [sealing.readable_turn(asked, turn) for turn in turns]
        if opened is None:
            log.warning("the key of a session is forgotten: the session counts as gone")
            return None
        for turn, plain in zip(turns, opened, strict=True):
            if plain is None:
                log.error("turn %d of a session cannot be decrypted and is left out", turn.seq)
        return tuple(turn for turn in opened if turn is not None)


def _is_sealed(turn: Turn) -> bool:
    return sealing.is_sealed(turn.user, turn.user_length)


def _is_sealed_item(user: str, user_length: object) -> bool:
    return isinstance(user_length, int) and sealing.is_sealed(user, user_length)


def _may_open(turn: NewTurn) -> bool:
    try:
        items.check_may_open(turn)
    except NotFound:
        return False
    return True


def _check_message(text: str, name: str) -> None:
    size = len(text.encode())
    if size > MAX_MESSAGE:
        raise TooLarge(f"{name} has {size} bytes, at most {MAX_MESSAGE} are stored encrypted; send a shorter one")
