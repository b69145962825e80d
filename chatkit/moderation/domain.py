"""The domain rule: what this bot talks about, by the likeness of vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatkit.protocols import Encoder
from chatkit.types import Action, Direction


@dataclass(frozen=True, slots=True)
class DomainRule:
    """What a text has to be like.

    Attributes:
        about: example questions or descriptions of the domain.
        threshold: least cosine with one of them.
        short: texts of fewer words pass: greetings and thanks have no subject.
    """

    about: tuple[str, ...]
    threshold: float
    directions: tuple[Direction, ...] = ("input",)
    action: Action = "refuse"
    short: int = 4


class Domain:
    """A domain rule with the vectors of its examples."""

    def __init__(self, rule: DomainRule, encoder: Encoder) -> None:
        self.rule = rule
        self._encoder = encoder
        self._about: Any = None  # (n, dim) float32, once it is needed

    async def is_outside(self, text: str, *, direction: Direction, history: Sequence[str] = ()) -> bool:
        """Whether `text` is like none of the examples, neither alone nor after the user's last message."""
        if direction not in self.rule.directions or len(text.split()) < self.rule.short:
            return False
        import numpy as np

        if self._about is None:
            self._about = np.asarray(await self._encoder.encode(list(self.rule.about)), np.float32)
        earlier = history[-2:-1] if len(history) % 2 == 0 else history[-1:]
        texts = [text, *(f"{said}\n{text}" for said in earlier)]
        vectors = np.asarray(await self._encoder.encode(texts), np.float32)
        scale = np.linalg.norm(vectors, axis=1, keepdims=True) * np.linalg.norm(self._about, axis=1)
        best = float((vectors @ self._about.T / np.maximum(scale, 1e-9)).max())
        return not best >= self.rule.threshold  # also where a vector is not finite
