"""One `chatkit prepare-index` that notes what it does, for `build_kills.py` to kill.

    python benchmarks/build_kills_child.py LOG BATCH [ARGUMENT...]

Runs the command line with the arguments. LOG gets one line for each stage that begins (`stage NAME`), and for each text
one when the encoder is given it (`begun HASH`) and one when it has its vector (`done HASH`), written before the call
goes on, so that a kill takes none away. A BATCH other than 0 takes the place of the chunks between two writes.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from chatkit import indexing, wiring
from chatkit.cli import main
from chatkit.retrieval.building.keys import key_of
from chatkit.retrieval.building.progress import Meter


class Noting:
    """An encoder that notes the texts that go through it."""

    def __init__(self, encoder: Any, log: int) -> None:
        self._encoder = encoder
        self._log = log

    def __getattr__(self, name: str) -> Any:
        """Everything else is the encoder's own."""
        return getattr(self._encoder, name)

    def encode_now(self, texts: Sequence[str]) -> Any:
        """Return the vectors of texts."""
        hashes = [key_of(text).hex() for text in texts]
        _note(self._log, [f"begun {known}" for known in hashes])
        vectors = self._encoder.encode_now(texts)
        _note(self._log, [f"done {known}" for known in hashes])
        return vectors


def run(file: str, batch: int, arguments: list[str]) -> None:
    """Run the command line, noting what it does."""
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    open_encoder, options = wiring.open_encoder, indexing._options
    init, begin = Meter.__init__, Meter.begin

    def begin_noted(self: Meter, stage: Any) -> None:
        _note(log, [f"stage {stage}"])
        begin(self, stage)

    def init_noted(self: Meter, tell: Any = None) -> None:
        _note(log, ["stage read"])
        init(self, tell)

    wiring.open_encoder = lambda settings, **more: Noting(open_encoder(settings, **more), log)  # type: ignore[assignment,return-value]
    Meter.begin = begin_noted  # type: ignore[method-assign]
    Meter.__init__ = init_noted  # type: ignore[method-assign]
    if batch:
        indexing._options = lambda settings, asked: replace(options(settings, asked), batch=batch)
    _note(log, ["stage start"])
    main(arguments)
    _note(log, ["stage end"])


def _note(log: int, lines: list[str]) -> None:
    os.write(log, "".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
