"""Reports of wrong refusals over HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from chatkit.errors import NotFound
from chatkit.feedback import Feedback
from chatkit.server.protocols import bodies

_EXAMPLE = '{"token": "…", "text": "what was refused"}'


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    token: str
    text: str | None = None


async def report(raw: bytes, feedback: Callable[[], Feedback | None]) -> tuple[dict[str, Any], bool]:
    """Keep the report in a body; return what the answer says of it, and whether the refusal was not reported before.

    Raises:
        NotFound: this service takes no reports.
        InvalidRequest: the body or its token is wrong.
    """
    given = bodies.read(raw, _Report, example=_EXAMPLE)
    taken = feedback()
    if taken is None:
        raise NotFound("this service takes no reports; its operator turns them on with the setting feedback")
    kept = await asyncio.to_thread(taken.report, given.token, given.text)
    return {"id": kept.id, "text_kept": kept.verified is True, "verified": kept.verified}, kept.new
