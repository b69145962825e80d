"""Keys and values of the rows that run, ragged, in one tensor a layer; and of rows that ended, kept to begin with."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class SlotCache(Cache):  # type: ignore[misc]
    """A key-value cache of slots, each filled from position 0 to its own length; no padding stands between.

    Layer tensors are (slots, key-value heads, capacity, head size), made when the layer is first used, on its device
    and for the heads of its rank. `aim` says what the next forward pass reads and writes. What is masked must still be
    finite, since attention multiplies it by zero: new memory is zeroed, and `wipe` is for a row that went wrong.

    Attributes:
        made: counts how often the tensors were made anew, or some of them were.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.slots = 0
        self.made = 0
        self.capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._first, self._start, self._visible = 0, 0, 0
        self._positions: Tensor | None = None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers of this rank; 0 before the first pass."""
        tensors = [*self._keys, *self._values]
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)

    def aim(self, first: int, start: int, visible: int, positions: Tensor | None = None) -> None:
        """Set what the next pass is about.

        Args:
            first: the first slot of the batch; its rows lie side by side.
            start: where one row's new tokens begin.
            visible: how many positions attention sees.
            positions: (rows,) where each row's single new token goes, in place of `start`.
        """
        self._first, self._start, self._visible, self._positions = first, start, visible, positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (rows, heads, new tokens, size) and return what attention sees, as views."""
        while len(self._keys) <= layer_idx:
            self._keys.append(self._layer(key_states))
            self._values.append(self._layer(value_states))
        rows = slice(self._first, self._first + len(key_states))
        keys, values = self._keys[layer_idx][rows], self._values[layer_idx][rows]
        if self._positions is None:
            places = slice(self._start, self._start + key_states.shape[2])
            keys[:, :, places] = key_states
            values[:, :, places] = value_states
        else:
            at = self._positions.to(keys.device)
            every = torch.arange(len(keys), device=keys.device)
            keys[every, :, at] = key_states[:, :, 0]
            values[every, :, at] = value_states[:, :, 0]
        return keys[:, :, : self._visible], values[:, :, : self._visible]

    def _layer(self, like: Tensor) -> Tensor:
        return like.new_zeros((self.slots, like.shape[1], self.capacity, like.shape[3]))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many positions stand before the new tokens."""
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many positions attention sees, from the first."""
        return self._visible, 0

    def resize(self, slots: int, capacity: int, used: int) -> None:
        """Make room for other slots and lengths; the first `used` slots keep what they hold, as far as it fits."""
        self.made += 1  # also where memory runs out below: some tensors are then others already
        kept = min(capacity, self.capacity)
        # Where memory runs out half-way, this much is true of every layer.
        self.slots, self.capacity = min(slots, self.slots), kept
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                new = old.new_zeros((slots, old.shape[1], capacity, old.shape[3]))
                new[:used, :, :kept] = old[:used, :, :kept]
                tensors[index] = new
        self.slots, self.capacity = slots, capacity

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row to another slot."""
        for tensor in (*self._keys, *self._values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def wipe(self, slot: int) -> None:
        """Zero a slot that may hold what is not finite."""
        for tensor in (*self._keys, *self._values):
            tensor[slot] = 0

    def keep(self, slot: int, length: int, key: int) -> None:
        """Keep a copy of a row's first `length` tokens under `key`."""
        self._kept[key] = [
            (keys[slot, :, :length].clone(), values[slot, :, :length].clone())
            for keys, values in zip(self._keys, self._values, strict=True)
        ]

    def reuse(self, key: int, slot: int, length: int) -> None:
        """Begin a row with the first `length` tokens of what is kept under `key`."""
        for index, (keys, values) in enumerate(self._kept[key]):
            self._keys[index][slot, :, :length] = keys[:, :length]
            self._values[index][slot, :, :length] = values[:, :length]

    def forget(self, key: int) -> None:
        """Let go of what is kept under `key`, if it is."""
        self._kept.pop(key, None)
