"""Sessions over HTTP: list, read, export and remove what is stored of the caller, or of a user that it acts for.

The owner is part of every key of a store, so what another owner has is not found in the same steps and words as what
nobody has.
"""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chatkit.errors import ChatkitError, InvalidRequest, NotFound, StoreFailed
from chatkit.protocols import SessionStore
from chatkit.server.callers import Caller
from chatkit.server.sse import JSON_LINES, EventStream
from chatkit.service import hint_of
from chatkit.session_lines import Line, fields_of, turn_fields
from chatkit.types import Owner, Turn, check_id

log = logging.getLogger(__name__)
Endpoint = Callable[[Request, Caller], Awaitable[Response]]

# Rows of a page where the request does not say, and the most it may ask for.
_PAGE, _MOST = 20, 100
_LAST_TURN = 10**10 - 2  # numbers of turns have ten digits in the keys
_PRIVATE = {"cache-control": "no-store"}


class SessionRoutes:
    """The endpoints of sessions.

    Args:
        archive: returns what reads and removes sessions; raises Unavailable while there is none yet.
    """

    def __init__(self, archive: Callable[[], SessionStore]) -> None:
        self._archive = archive
        self.table: Mapping[str, Mapping[str, Endpoint]] = {
            "/sessions": {"GET": self.list_, "DELETE": self.purge},
            "/sessions/{session_id}": {"GET": self.read, "DELETE": self.delete},
            "/sessions/{session_id}/export": {"GET": self.export},
        }

    async def list_(self, request: Request, caller: Caller) -> Response:
        """Answer with one page of a named owner's sessions, the one opened last first."""
        query = _query(request, "limit", "cursor", "user")
        caller = _acting(caller, query)
        caller.require_name("a list of sessions")
        limit = _number(query, "limit", _PAGE, 1, _MOST)
        page = await self._archive().sessions(caller.owner, limit=limit, cursor=query.get("cursor"))
        rows = [asdict(head) for head in page.sessions]
        return JSONResponse({"sessions": rows, "cursor": page.cursor}, headers=_PRIVATE)

    async def read(self, request: Request, caller: Caller) -> Response:
        """Answer with one page of a session's turns, oldest first."""
        query = _query(request, "limit", "after", "user")
        owner, session_id = _acting(caller, query).owner, _session_id(request)
        limit, after = _number(query, "limit", _PAGE, 1, _MOST), _number(query, "after", 0, 0, _LAST_TURN)
        turns = await _page(self._archive(), owner, session_id, limit=limit, after=after)
        last = turns[-1].seq if turns else None  # a page that is not full may still not be the last
        table = {"session_id": session_id, "turns": [turn_fields(turn) for turn in turns], "after": last}
        return JSONResponse(table, headers=_PRIVATE)

    async def export(self, request: Request, caller: Caller) -> Response:
        """Answer with every turn of a session as JSON lines, as `chatkit sessions export` writes them."""
        owner, session_id = _acting(caller, _query(request, "user")).owner, _session_id(request)
        archive = self._archive()
        first = await _page(archive, owner, session_id, limit=_MOST, after=0)
        conversation = await archive.load(owner, session_id, limit=1)
        total = max([conversation.total, conversation.newest, *(turn.seq for turn in first)])
        expires_at = None if conversation.expires_at is None else int(conversation.expires_at)
        lines = _lines(archive, owner, session_id, first, total, expires_at)
        return EventStream(lines, media_type=JSON_LINES, headers={})

    async def delete(self, request: Request, caller: Caller) -> Response:
        """Remove one session; 404 where there was none, what a removal that broke off has left is removed all the same.

        Looking first is what tells the two apart: removing says nothing, so that it can be run again.
        """
        owner, session_id = _acting(caller, _query(request, "user")).owner, _session_id(request)
        archive = self._archive()
        unknown: NotFound | None = None
        try:
            await _page(archive, owner, session_id, limit=1, after=0)
        except NotFound as error:
            unknown = error
        except StoreFailed as error:  # what cannot be read can still be removed; a store that is away says so now
            log.warning("session %s is removed without a look at it: %s", hint_of(owner, session_id), error.code)
        await archive.delete(owner, session_id)
        if unknown is not None:
            raise unknown
        log.info("session %s was removed", hint_of(owner, session_id))
        return Response(status_code=204)

    async def purge(self, request: Request, caller: Caller) -> Response:
        """Remove everything of a named owner; answer with how many sessions that was."""
        caller = _acting(caller, _query(request, "user"))
        caller.require_name("removing all sessions")
        removed = await self._archive().purge(caller.owner)
        log.info("all %d sessions of owner %s were removed", removed, hint_of(caller.owner))
        return JSONResponse({"removed": removed}, headers=_PRIVATE)


async def _page(archive: SessionStore, owner: Owner, session_id: str, *, limit: int, after: int) -> tuple[Turn, ...]:
    try:
        return await archive.page(owner, session_id, limit=limit, after=after)
    except NotFound:
        raise NotFound(f"there is no session {session_id!r}; GET /sessions lists those of a named user") from None


async def _lines(
    archive: SessionStore, owner: Owner, session_id: str, page: tuple[Turn, ...], total: int, expires_at: int | None
) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a session that begins with `page` and had so many turns when they were counted.

    Raises:
        ConnectionAbortedError: the rest cannot be read, or one of them. The answer then ends without its last chunk,
            which no client takes for the whole.
    """
    sent = 0
    while page:
        for turn in page:
            if turn.seq <= total:  # one above has come since they were counted
                sent += 1
                line = fields_of(Line(session_id, total, expires_at, turn))
                yield f"{json.dumps(line, ensure_ascii=False)}\n".encode()
        if turn.seq >= total:
            break
        try:
            page = await archive.page(owner, session_id, limit=_MOST, after=turn.seq)
        except ChatkitError as error:
            log.error("the export of session %s broke off: %s", hint_of(owner, session_id), error.code)
            raise ConnectionAbortedError("the export broke off") from error
    if sent != total:
        log.error("the export of session %s lacks turns: %d of %d", hint_of(owner, session_id), total - sent, total)
        raise ConnectionAbortedError("turns of the session cannot be read")


def _acting(caller: Caller, query: Mapping[str, str]) -> Caller:
    return caller.acting_for(query.get("user"), "user")


def _session_id(request: Request) -> str:
    session_id: str = request.path_params["session_id"]
    check_id("session_id", session_id)
    return session_id


def _query(request: Request, *known: str) -> dict[str, str]:
    """Return the parameters of the query.

    Raises:
        InvalidRequest: one is not known, or given twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise InvalidRequest(f"{name[:80]!r} is not known; known here: {', '.join(known)}")
        if name in found:
            raise InvalidRequest(f"{name!r} is given twice, expected it once")
        found[name] = value
    return found


def _number(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text: Any = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise InvalidRequest(f"{name!r} is {text[:40]!r}, expected a whole number from {low} to {high}")
    return int(text)
