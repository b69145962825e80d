"""CUDA graphs of the steps of many rows: recorded once for each shape, replayed without launching kernel by kernel."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chatkit.models.chat_cache import SlotCache

# Graphs that are kept; each shape needs one of its own.
_MOST = 32
# A graph sees a multiple of this many positions, so that it serves as many steps.
_ROUND = 256


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    ids: Tensor
    places: Tensor
    logits: Tensor


class Graphs:
    """Replays a runner's `decode`; recorded anew whenever the cache was made anew, since graphs hold its addresses."""

    def __init__(self, decode: Callable[[Tensor, Tensor, int], Tensor], cache: SlotCache) -> None:
        self._decode = decode
        self._cache = cache
        self._made = -1
        self._graphs: OrderedDict[tuple[int, int], _Graph] = OrderedDict()

    def step(self, ids: Tensor, places: Tensor, visible: int) -> Tensor:
        """Do what `decode` does; the logits are overwritten by the next step of the same shape."""
        if self._made != self._cache.made:
            self._graphs.clear()
            self._made = self._cache.made
        seen = min(-(-visible // _ROUND) * _ROUND, self._cache.capacity)
        found = self._graphs.pop((len(ids), seen), None) or self._record(ids, places, seen)
        self._graphs[len(ids), seen] = found
        while len(self._graphs) > _MOST:
            self._graphs.popitem(last=False)
        found.ids.copy_(ids)
        found.places.copy_(places)
        found.graph.replay()
        return found.logits

    def _record(self, ids: Tensor, places: Tensor, visible: int) -> _Graph:
        ids, places = ids.clone(), places.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up in the first run, which cannot be recorded
            self._decode(ids, places, visible)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._decode(ids, places, visible)
        return _Graph(graph, ids, places, logits)
