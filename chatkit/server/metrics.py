"""What the server counts, for Prometheus: no text, no id, no owner, and labels of few values alone."""

from typing import get_args

from chatkit.observers import TurnEnd
from chatkit.types import Direction, Done

DIRECTIONS: tuple[str, ...] = get_args(Direction)
DONE: tuple[str, ...] = get_args(Done)
ENDS: tuple[str, ...] = get_args(TurnEnd)
# From a list's or a small head's check to the time-out that a check has unless it is set. Seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
# A service has two or three names of models, its moderator's and "lists" and "index". One that makes up names all the
# time would make as many series; what comes after so many is "other".
MOST_MODELS = 16
_OPEN = "application/openmetrics-text"


class Metrics:
    """An observer that counts; see `observers.Observer`. Begins at 0 with every start of the server."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        # Else each series has a second one for the time it was made at. A switch of the whole process, which has one
        # registry: this one, since the library's own brings figures of the process along.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus.CollectorRegistry()
        self._checks = prometheus.Counter(
            "chatkit_moderation_checks",
            "Moderation checks by what they came to; unavailable is a check that could not run.",
            ["direction", "outcome", "model"],
            registry=self._registry,
        )
        self._seconds = prometheus.Histogram(
            "chatkit_moderation_check_seconds",
            "Seconds of a moderation check, those that could not run included.",
            ["direction"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._turns = prometheus.Counter(
            "chatkit_turns", "Turns by how they ended.", ["status"], registry=self._registry
        )
        self._reports = prometheus.Counter(
            "chatkit_feedback_reports", "Refusals that users reported as wrong.", registry=self._registry
        )
        self._models: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        """Make what alerts go by at 0: of a series that begins at 1 the first one is no increase."""
        for direction in DIRECTIONS:
            self._checks.labels(direction, "unavailable", "none")
            self._seconds.labels(direction)
        for status in ENDS:
            self._turns.labels(status)

    def checked(self, direction: Direction, done: Done, model: str, seconds: float | None) -> None:
        """Count a check."""
        self._checks.labels(direction, done, self._known(model)).inc()
        if seconds is not None:
            self._seconds.labels(direction).observe(seconds)

    def _known(self, model: str) -> str:
        if model and model not in self._models and len(self._models) == MOST_MODELS:
            return "other"
        self._models.update([model] if model else [])
        return model or "none"

    def ended(self, status: TurnEnd) -> None:
        """Count a turn."""
        self._turns.labels(status).inc()

    def reported(self) -> None:
        """Count a report of a wrong refusal."""
        self._reports.inc()

    def written(self, accept: str) -> tuple[bytes, str]:
        """Return all counts and their media type: the text format, or OpenMetrics where `accept` names that first.

        The library's own choice by `accept` compares the versions in it, and raises on what is no number.
        """
        from prometheus_client.exposition import choose_encoder
        from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

        wanted = (one.partition(";")[0].strip().lower() for one in accept.split(","))
        if next((one for one in wanted if one in (_OPEN, "text/plain")), "") == _OPEN:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
        encoder, media_type = choose_encoder("")
        return encoder(self._registry), media_type
