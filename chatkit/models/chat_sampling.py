"""How the next tokens are chosen: every row by its own settings and its own generator, all rows in one pass."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chatkit.models.worker_io import LEAST_TEMPERATURE


@dataclass(slots=True)
class Sampler:
    """One request's settings and the state that they need.

    Attributes:
        seen: ids of prompt and answer so far, for the penalty; kept only where there is one.
    """

    temperature: float
    top_p: float
    top_k: int
    penalty: float
    numbers: random.Random
    seen: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, config: dict[str, Any], prompt: Sequence[int]) -> "Sampler":
        """Return the sampler of a request; without a seed it is a different one each time."""
        return cls(
            temperature=config["temperature"],
            top_p=config["top_p"],
            top_k=config["top_k"],
            penalty=config["repetition_penalty"],
            numbers=random.Random(config["seed"]),
            seen=set(prompt) if config["repetition_penalty"] != 1 else set(),
        )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < LEAST_TEMPERATURE

    def take(self, token: int) -> None:
        """Remember a token of the answer."""
        if self.penalty != 1:
            self.seen.add(token)


@torch.inference_mode()
def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """Return each row's next token; None where the logits are not numbers.

    The penalty divides positive logits and multiplies negative ones (Keskar et al. 2019, section 4.1). Then come
    temperature, top_k and top_p (Holtzman et al. 2020: the fewest tokens whose probabilities reach it), in that order.

    Args:
        logits: (rows, vocabulary) float32; changed in place.
    """
    for row, sampler in enumerate(samplers):
        if sampler.seen:
            ids = torch.tensor(sorted(sampler.seen), device=logits.device)
            values = logits[row, ids]
            logits[row, ids] = torch.where(values > 0, values / sampler.penalty, values * sampler.penalty)
    best, tokens = logits.max(-1)
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.greedy]
    if drawn:
        tokens[drawn] = _draw(logits[drawn], [samplers[row] for row in drawn])
    # The largest of a row with a NaN is NaN; one of minus infinities only has no probabilities either.
    found = zip(tokens.tolist(), best.isfinite().tolist(), strict=True)
    return [token if sound else None for token, sound in found]


def _draw(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Return a token of each row, drawn by one number of the row's generator from the cumulated probabilities."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    ordered, ids = logits.nan_to_num(nan=0.0).sort(dim=-1, descending=True, stable=True)
    ordered = (ordered - ordered[:, :1]) / column([sampler.temperature for sampler in samplers])
    ranks = torch.arange(ordered.shape[1], device=logits.device)
    sizes = column([sampler.top_k or ordered.shape[1] for sampler in samplers])
    chances = ordered.masked_fill(ranks >= sizes, -torch.inf).softmax(-1)
    before = chances.cumsum(-1) - chances
    chances = chances.masked_fill((before >= column([sampler.top_p for sampler in samplers])) & (ranks > 0), 0.0)
    reached = chances.cumsum(-1)
    marks = column([sampler.numbers.random() for sampler in samplers]) * reached[:, -1:]
    places = torch.searchsorted(reached, marks, right=True)
    last = (chances > 0).sum(-1, keepdim=True) - 1  # rounding may put the mark behind the last
    chosen: Tensor = ids.gather(1, torch.minimum(places, last)).squeeze(1)
    return chosen
