"""How far a build is: counted for those who watch, with the rate and the time that is left."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["read", "cut", "embed", "score", "write"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is.

    Attributes:
        stage: "read" takes the digests of the files, "cut" makes chunks, the others go over the chunks.
        files: done in the first two stages; in the others all of them.
        chunks: made so far while cutting, then done of `chunks_total`, which is 0 until all files are cut.
        embedded: chunks that the encoder ran on; the others have their vectors from an earlier build.
        chunks_per_s: in this stage; while embedding of those that the encoder ran on.
        skipped: files that are not in the index, so far.
        eta_s: seconds that this stage will take still; None where nothing can be said.
    """

    stage: Stage
    files: int
    files_total: int
    chunks: int = 0
    chunks_total: int = 0
    embedded: int = 0
    chunks_per_s: float = 0.0
    skipped: int = 0
    eta_s: float | None = None


Tell = Callable[[Progress], None]


class Meter:
    """Tells how far each stage is, with its rate."""

    def __init__(self, tell: Tell | None = None) -> None:
        self._tell = tell
        self.so_far = Progress("read", 0, 0)
        self.started = time.monotonic()

    def reading(self, files: int, files_total: int) -> None:
        """Tell of files whose digests were taken."""
        self._say(replace(self.so_far, files=files, files_total=files_total))

    def begin(self, stage: Stage) -> None:
        """Go to the next stage."""
        self.started = time.monotonic()
        self.so_far = replace(self.so_far, stage=stage, embedded=0, chunks_per_s=0.0, eta_s=None)

    def cutting(self, files: int, files_total: int, chunks: int, skipped: int) -> None:
        """Tell of files that were cut; the time left goes by the files."""
        rate, took = self._rate(chunks)
        eta = took * (files_total - files) / files if files else None
        self._say(
            replace(
                self.so_far,
                files=files,
                files_total=files_total,
                chunks=chunks,
                chunks_per_s=rate,
                skipped=skipped,
                eta_s=eta,
            )
        )

    def chunks(self, done: int, total: int, embedded: int | None = None) -> None:
        """Tell of chunks that were embedded or written; the time left goes by those there is work for."""
        rate, _ = self._rate(done if embedded is None else embedded)
        eta = (total - done) / rate if rate else None
        self._say(
            replace(self.so_far, chunks=done, chunks_total=total, embedded=embedded or 0, chunks_per_s=rate, eta_s=eta)
        )

    def _rate(self, done: int) -> tuple[float, float]:
        took = max(time.monotonic() - self.started, 1e-9)
        return round(done / took, 1), took

    def _say(self, progress: Progress) -> None:
        self.so_far = progress
        if self._tell is not None:
            self._tell(progress)
