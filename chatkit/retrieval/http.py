"""`HttpRetriever`: any search API that answers JSON, as a retriever. What to send and what to read is a TOML file."""

import hashlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from chatkit.errors import ConfigError, InvalidRequest, NotFound, Unavailable
from chatkit.retrieval.guard import Guard, Limits, Refused, Unreachable
from chatkit.types import Passage

_log = logging.getLogger(__name__)

# Characters of one passage that are read: what a prompt has room for, many times over; of its title and section, and
# of an id and a link, which are of no use cut.
MAX_PASSAGE, _MAX_TITLE, _MAX_NAME = 20_000, 500, 2_000
_LARGEST = 1e300  # of a number: beyond it floats end, and JSON has no end
_PLACEHOLDER = re.compile(r"\{(query|k|env:[A-Za-z_][A-Za-z0-9_]*)\}")
_FIELDS = ("id", "title", "text", "url", "section", "score")


@dataclass(frozen=True, slots=True)
class HttpSearch:
    """What to ask a search API, and where in its answer the passages are.

    In `url`, `body` and `headers`, `{query}` and `{k}` stand for what is looked for and how many are wanted, and
    `{env:NAME}` for a variable, so that no key has to stand in the file.

    Attributes:
        url: address; placeholders only after the host, where they are escaped.
        body: sent as JSON with POST; a string that is `{k}` alone becomes a number.
        hits: path to the list of hits, as in `hits.hits`; empty where the answer is the list.
        fields: paths within a hit to `text`, and to `id`, `title`, `url`, `section` and `score` where it has them.
        private_hosts: hosts, as `host` or `host:port`, that may be asked though they are private or on another port
            than 80 and 443.
        min_score: least score of a passage that is used, where hits have one.
        timeout_s: seconds for one search, everything included.
        max_bytes: of the answer.
    """

    url: str
    fields: Mapping[str, str]
    hits: str = ""
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    private_hosts: Collection[str] = ()
    min_score: float | None = None
    timeout_s: float = 5.0
    max_bytes: int = 4 << 20
    name: str = "http"

    def __post_init__(self) -> None:
        """Check what is wrong whatever is asked.

        Raises:
            ConfigError: naming it.
        """
        _require("url", self.url, isinstance(self.url, str), "an address")
        kinds = (("fields", Mapping), ("headers", Mapping), ("private_hosts", list | tuple | set | frozenset))
        for name, kind in kinds:
            value = getattr(self, name)
            words = [*value, *value.values()] if isinstance(value, Mapping) else value
            ok = isinstance(value, kind) and all(isinstance(word, str) for word in words)
            _require(name, value, ok, "a table of strings" if kind is Mapping else "a list of hosts")
        _require("fields", dict(self.fields), "text" in self.fields, "at least `text`")
        unknown = sorted(set(self.fields) - set(_FIELDS))
        _require("fields", unknown, not unknown, "only " + ", ".join(_FIELDS))
        _require("hits", self.hits, isinstance(self.hits, str), "a path such as hits.hits")
        _require("body", self.body, self.body is None or isinstance(self.body, Mapping), "a table")
        for name, most in (("timeout_s", 300), ("max_bytes", 1 << 30)):
            value = getattr(self, name)
            _require(name, value, _is_number(value) and 0 < value <= most, f"a number above 0, at most {most}")
        _require("min_score", self.min_score, self.min_score is None or _is_number(self.min_score), "a number")
        host = re.match(r"[^/]*//[^/?#]*", self.url)
        _require("url", self.url, host is not None and "{" not in host[0], "placeholders only after the host")
        try:
            self.guard.check(_PLACEHOLDER.sub("0", self.url))
        except Refused as error:
            raise ConfigError(f"url cannot be asked: {error}; name a host that is meant in private_hosts") from None
        self.filled("x", 1)

    @property
    def guard(self) -> Guard:
        """The rules that its requests go under."""
        return Guard(private=frozenset(self.private_hosts))

    def filled(self, query: str, k: int) -> tuple[str, dict[str, str], bytes]:
        """Return address, headers and body of one search.

        Raises:
            ConfigError: a variable is not set, or a header cannot be sent.
        """
        url = _fill(self.url, query, k, escape=True)
        headers = {name: _fill(value, query, k) for name, value in self.headers.items()}
        for name, value in headers.items():
            ok = re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) and value.isascii() and value.isprintable()
            _require(f"headers.{name}", "a value", bool(ok), "a name and value of printable ASCII")
        if self.body is None:
            return url, headers, b""
        body = json.dumps(_filled_tree(self.body, query, k), ensure_ascii=False).encode("utf-8", "replace")
        return url, {"Content-Type": "application/json", **headers}, body


def read_search(file: Path) -> HttpSearch:
    """Read an `HttpSearch` from a TOML file; its name is the file's unless it says another.

    Raises:
        ConfigError: it cannot be read, or a key is unknown, missing or wrong.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the search API's file {str(file)!r} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the search API's file {str(file)!r} is not valid TOML: {error}") from None
    known = [spec.name for spec in fields(HttpSearch)]
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(f"{str(file)!r} has {unknown[0]!r}, expected only {', '.join(known)}")
    if missing := [name for name in ("url", "fields") if name not in table]:
        raise ConfigError(f"{str(file)!r} has no {missing[0]!r}; docs/retrievers.md has an example")
    try:
        return HttpSearch(**{"name": file.stem, **table})
    except ConfigError as error:
        raise ConfigError(f"{str(file)!r}: {error}") from None


class HttpRetriever:
    """A search API behind the guard of `guard.py`; implements `protocols.Retriever`.

    Every search opens a connection of its own, to an address that was checked for it.
    """

    def __init__(self, search: HttpSearch) -> None:
        self._search = search
        self._guard = search.guard

    async def search(
        self, query: str, *, k: int, index: str | None = None, where: Mapping[str, str] | None = None
    ) -> tuple[Passage, ...]:
        """Return at most `k` passages, best first; none for a blank query.

        Those with a score are ordered by it, as the API gives it; without one they stay in the API's order and the
        score is 1, 1/2, 1/3 and so on. Of those with one id the first is taken.

        Raises:
            NotFound: another index is named.
            InvalidRequest: a filter is given.
            Unavailable: the API does not answer in time, or with something else than what was configured.
        """
        search = self._search
        if index not in (None, search.name):
            raise NotFound(f"there is no index {index!r} here, expected {search.name!r}")
        if where:
            raise InvalidRequest(f"the search API {search.name!r} takes no filters; ask without {sorted(where)[0]!r}")
        if not query.strip():
            return ()
        url, headers, body = search.filled(query, k)
        method = "GET" if search.body is None else "POST"
        limits = Limits(seconds=search.timeout_s, bytes=search.max_bytes)
        try:
            answer = await self._guard.fetch(url, method=method, headers=headers, content=body, limits=limits)
        except (Refused, Unreachable) as error:
            _log.warning("search API %r: %s", search.name, error)
            raise Unavailable(f"the search API {search.name!r} cannot be asked now; the log says why") from error
        if answer.status != 200:
            raise Unavailable(f"the search API {search.name!r} answered with status {answer.status}, expected 200")
        return self._passages(answer.body)[:k]

    def close(self) -> None:
        """Nothing is held."""

    def _passages(self, body: bytes) -> tuple[Passage, ...]:
        name = self._search.name
        try:
            tree = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise Unavailable(f"the search API {name!r} did not answer JSON") from None
        hits = at(tree, self._search.hits)
        if not isinstance(hits, list):
            raise Unavailable(f"the answer of the search API {name!r} has no list at {self._search.hits!r}")
        found = [passage for rank, hit in enumerate(hits) if (passage := self._passage(hit, rank)) is not None]
        least = self._search.min_score
        if "score" in self._search.fields:
            found = sorted(found, key=lambda passage: -passage.score)
            found = [passage for passage in found if least is None or passage.score >= least]
        first: dict[str, Passage] = {}
        for passage in found:  # an id stands for one passage, in a reply and where it is stored
            first.setdefault(passage.id, passage)
        return tuple(first.values())

    def _passage(self, hit: Any, rank: int) -> Passage | None:
        """Return one hit, None where it has no text or lacks the score that it should have."""
        got = {name: at(hit, path) for name, path in self._search.fields.items()}
        text = _words(got.get("text")).strip()[:MAX_PASSAGE]
        score = 1 / (1 + rank) if "score" not in self._search.fields else got["score"]
        if not text or not _is_number(score):
            return None
        title, section = (_words(got.get(name))[:_MAX_TITLE] for name in ("title", "section"))
        link, told = _words(got.get("url")), _words(got.get("id"))
        # A link is shown to be followed, so it is one of the web or none.
        followed = len(link) <= _MAX_NAME and re.match(r"https?://[^\s]+\Z", link)
        source = link if followed else self._search.name
        key = hashlib.sha256("\0".join((source, title, text)).encode("utf-8", "replace")).hexdigest()[:20]
        return Passage(
            id=told if 0 < len(told) <= _MAX_NAME else key,
            text=text,
            title=title,
            source=source,
            section=section,
            end=len(text),
            score=float(score),
        )


def at(tree: Any, path: str) -> Any:
    """Return what a dotted path leads to, None where it leads nowhere; a number is a place in a list."""
    for step in path.split(".") if path else ():
        if isinstance(tree, Mapping):
            tree = tree.get(step)
        elif isinstance(tree, list) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        else:
            return None
    return tree


def _words(value: Any) -> str:
    """Return a string or number as text without half characters, "" for anything else."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return str(value) if _is_number(value) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _no_constant(word: str) -> Any:
    raise ValueError(word)


def _fill(template: str, query: str, k: int, *, escape: bool = False) -> str:
    def value(match: re.Match[str]) -> str:
        word = match[1]
        if word.startswith("env:"):
            held = os.environ.get(word[4:])
            if not held:
                raise ConfigError(f"the variable {word[4:]!r}, which a search API needs, is not set")
            text = held
        else:
            text = query if word == "query" else str(k)
        return quote(text, safe="", errors="replace") if escape else text

    return _PLACEHOLDER.sub(value, template)


def _filled_tree(tree: Any, query: str, k: int) -> Any:
    if isinstance(tree, Mapping):
        return {name: _filled_tree(value, query, k) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_filled_tree(value, query, k) for value in tree]
    if isinstance(tree, str):
        return k if tree == "{k}" else _fill(tree, query, k)
    return tree


def _require(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r:.200}, expected {expected}")
