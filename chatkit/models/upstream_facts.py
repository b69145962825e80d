"""What an upstream server tells of itself: its model's name, how much that holds, and whether it answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

# Lists of models of public servers have some hundred kilobytes. Bytes.
_MOST_BYTES = 4 << 20
# Where the list of models has a model's context: vLLM and SGLang; others; llama.cpp. What a server was started with
# goes before what its model was trained on.
_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length", "n_ctx")
# Where else servers tell it, beside the folder of the API, and the path in the answer: llama.cpp, TGI.
_ELSEWHERE = (
    ("props", ("default_generation_settings", "n_ctx")),
    ("info", ("max_total_tokens",)),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the list of models says; 0 and "" where it does not."""

    model: str = ""
    context: int = 0


class Unanswered(Exception):
    """The server gave no list of models; `status` is 0 where it did not answer at all."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Untold(Unanswered):
    """The server lists its model and does not tell how many tokens it holds; one that still loads may, later."""


async def list_models(client: httpx.AsyncClient, headers: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Return the rows of the server's list of models.

    Raises:
        Unanswered: it does not answer, refuses, or sends something else.
    """
    table = await _get(client, "models", headers)
    rows = table.get("data") if isinstance(table, dict) else None
    if not isinstance(rows, list):
        raise Unanswered(200, "GET models does not answer with a list of models")
    return [row for row in rows if isinstance(row, dict)]


def lists(rows: Sequence[Mapping[str, Any]], model: str) -> bool:
    """Return whether the list has `model`, or any where it is empty."""
    return any(row.get("id") == model or not model for row in rows)


async def facts_of(
    client: httpx.AsyncClient,
    headers: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    model: str,
    *,
    elsewhere: bool,
) -> Facts:
    """Return what is known of `model`, or of the first in the list where it is empty.

    Args:
        elsewhere: ask other paths of the server too for a context that the list does not have.
    """
    named = [row for row in rows if row.get("id") == model] if model else list(rows)
    if not named:
        return Facts(model)
    row = named[0]
    meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}
    told = _first_int(row, _CONTEXT_KEYS) or _first_int(meta, _CONTEXT_KEYS)
    if elsewhere and not told:
        told = await _told_elsewhere(client, headers) or _first_int(meta, ("n_ctx_train",))
    return Facts(str(row.get("id") or model), told)


async def _told_elsewhere(client: httpx.AsyncClient, headers: Mapping[str, str]) -> int:
    for name, keys in _ELSEWHERE:
        try:
            found: Any = await _get(client, f"../{name}", headers)
        except Unanswered:
            continue
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if _is_context(found):
            return int(found)
    return 0


def _is_context(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _first_int(table: Any, keys: Sequence[str]) -> int:
    return next((table[key] for key in keys if _is_context(table.get(key))), 0)


def shown(error: Exception) -> str:
    """Return a failure for the log; of an answer that breaks the protocol its kind alone, for its words are in it."""
    return repr(error) if isinstance(error, httpx.NetworkError) else type(error).__name__


async def _get(client: httpx.AsyncClient, path: str, headers: Mapping[str, str]) -> Any:
    try:
        async with client.stream("GET", client.base_url.join(path), headers=dict(headers)) as answer:
            if answer.status_code != 200:
                raise Unanswered(answer.status_code, f"GET {answer.url} answers {answer.status_code}")
            body = bytearray()
            async for part in answer.aiter_raw():
                body += part
                if len(body) > _MOST_BYTES:
                    raise Unanswered(200, f"GET {answer.url} answers with more than {_MOST_BYTES} bytes")
            return json.loads(body)
    except httpx.HTTPError as error:
        raise Unanswered(0, f"GET {path}: {shown(error)}") from error
    except (ValueError, RecursionError) as error:  # nested without end
        raise Unanswered(200, f"GET {path} does not answer with JSON") from error
