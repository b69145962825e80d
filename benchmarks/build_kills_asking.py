"""Those who search an index while it is built: threads that count what is wrong with the answers (`build_kills.py`)."""

import asyncio
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chatkit.retrieval.index import SearchOptions
from chatkit.retrieval.layout import IndexFolder
from chatkit.retrieval.live import LiveIndexes

NAME = "docs"
THREADS = 4
_PAUSE_S = 0.05
_RELEASE = re.compile(r"release (\d+)")


def question(number: int) -> str:
    """Return a question about a passage of every release."""
    return f"What does shelf {number} hold?"


def releases(text: str) -> list[int]:
    """Return the releases that a passage says it is of; none where it never changes."""
    return [int(number) for number in _RELEASE.findall(text)]


class _Remembering:
    """An encoder that encodes each query once: what is measured is the index."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._known: dict[tuple[str, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    async def encode(self, texts: Sequence[str]) -> Any:
        if tuple(texts) not in self._known:
            self._known[tuple(texts)] = await self._encoder.encode(texts)
        return self._known[tuple(texts)]


class Asking:
    """Threads that ask what a service would, all the time, and count what is wrong with the answers."""

    def __init__(self, indexes: Path, encoder: Any) -> None:
        self._folder = IndexFolder(indexes, NAME)
        options = SearchOptions(min_score=-1)
        self._live = LiveIndexes(
            indexes, _Remembering(encoder), default=NAME, named=(), options=options, check_every_s=0.05
        )
        self._lock = threading.Lock()
        self._versions: dict[str, int] = {}
        self._allowed: set[int] | None = None
        self._counts: Counter[str] = Counter()
        self._last = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(THREADS)]

    def __enter__(self) -> "Asking":
        """Begin to ask."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop asking."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._live.close()

    def figures(self, prefix: str = "") -> dict[str, float]:
        """Return what was counted since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {f"{prefix}{name}": counts[name] for name in ("queries", "failed", "mixed", "untimely")}

    def wait_for(self, version: str, release: int) -> None:
        """Wait until answers are of a version; an older release is untimely from then on."""
        self._versions[version] = release
        deadline = time.monotonic() + 30
        while self._last != release and time.monotonic() < deadline:
            time.sleep(0.01)
        self._allowed = {release, release + 1}

    def allow_any(self) -> None:
        """Take any release as timely: versions go to and fro."""
        self._allowed = None

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        while not self._over.is_set():
            problem, allowed = "", self._allowed
            try:
                hits = asyncio.run(self._live.search(question(chance.randrange(60)), k=5))
                found = {release for hit in hits for release in releases(hit.text)}
                # Passages of the part that never changes say nothing.
                problem = "failed" if not hits else "mixed" if len(found) > 1 else self._timely(found, allowed)
            except Exception:  # whatever it is, nobody may see it
                problem = "failed"
            with self._lock:
                self._counts.update(["queries", *([problem] if problem else [])])
            time.sleep(_PAUSE_S)

    def _timely(self, found: set[int], allowed: set[int] | None) -> str:
        """Return what is wrong with a release: it was replaced before the question was asked, or is not live yet."""
        for release in found:
            self._last = release
            pointer = self._folder.pointer()
            live = self._versions.get(pointer.text) if pointer is not None else None
            early = live is not None and release > live
            if allowed is not None and (early or release not in allowed):
                return "untimely"
        return ""


def swap(indexes: Path, swaps: int, asking: Asking) -> dict[str, float]:
    """Let the two newest versions take each other's place under the asking threads."""
    folder = IndexFolder(indexes, NAME)
    versions = folder.versions()[-2:]
    asking.allow_any()
    asking.figures()
    for number in range(swaps):
        folder.make_live(versions[number % len(versions)])
        time.sleep(0.25)
    counted = asking.figures("swap_")
    return {"swaps": swaps, **{name: counted[name] for name in ("swap_queries", "swap_failed", "swap_mixed")}}
