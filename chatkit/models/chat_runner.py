"""One rank's forward passes: prompts by pieces, one token for every running row, vectors of texts.

Every rank of a tensor-parallel model has a Runner and calls the same methods in the same order: on rank 0 each call is
announced to the others first. Arguments are plain numbers and lists, so that they travel as JSON.
"""

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from chatkit.errors import ModelError
from chatkit.models.chat_cache import SlotCache

P = ParamSpec("P")
R = TypeVar("R")

# Attention sees a multiple of this many positions in a step of many rows, so that few shapes occur.
_ROUND = 64
# Largest difference between the engine's logits and the model's own that counts as the same, of the largest logit.
_SAME = 0.05


def _mirrored(method: "Callable[Concatenate[Runner, P], R]") -> "Callable[Concatenate[Runner, P], R]":
    """Let every rank do what rank 0 is asked to."""

    @functools.wraps(method)
    def run(self: "Runner", *args: P.args, **kwargs: P.kwargs) -> R:
        if self.announce:
            self.announce(method.__name__, args)
        self.busy_since = time.monotonic()
        try:
            with torch.inference_mode():
                return method(self, *args, **kwargs)
        except RuntimeError as error:
            if "can't allocate memory" in str(error):  # the CPU's allocator has no class of its own for it
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        finally:
            self.busy_since = None

    return cast("Callable[Concatenate[Runner, P], R]", run)


class Runner:
    """A loaded model and the cache of the rows it works on.

    Args:
        model: a causal language model of transformers, in evaluation mode.

    Attributes:
        lengths: tokens held by each slot in use.
        vocabulary: how many token ids there are.
        announce: told the name and arguments of every call before it runs; None on all ranks but the first.
        busy_since: when the call that runs began; None while there is none.
        replay: runs a step of many rows from recorded graphs where it can; None runs it plainly.

    Raises:
        ModelError: the model keeps another state than keys and values, or reads positions in a way of its own.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        if self.device.type == "meta":  # offloaded: accelerate brings the weights to where they are used
            self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.cache = SlotCache()
        self.lengths: list[int] = []
        self.announce: Callable[[str, Any], None] | None = None
        self.busy_since: float | None = None
        self.replay: Callable[[Tensor, Tensor, int], Tensor] | None = None
        self._eager = model.config._attn_implementation == "eager"
        names = inspect.signature(model.forward).parameters
        if "position_ids" not in names:
            raise ModelError(f"{type(model).__name__} reads no positions from outside, so its rows cannot be batched")
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        text = model.config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ())
        if kinds - {"full_attention", "sliding_attention"}:
            raise ModelError(
                f"{type(model).__name__} has layers of the kinds {sorted(kinds)}; the transformers engine runs "
                "full_attention and sliding_attention; serve it with engine=openai behind another server"
            )
        self._window = getattr(text, "sliding_window", None) if not kinds or "sliding_attention" in kinds else None
        self._by_kind = "sliding_attention" in kinds

    @_mirrored
    def resize(self, slots: int, capacity: int) -> None:
        """Make the cache hold `slots` rows of `capacity` tokens; the rows in use keep theirs."""
        self.cache.resize(slots, capacity, len(self.lengths))

    @_mirrored
    def begin(self, key: int | None, length: int) -> None:
        """Open the next slot, with the first `length` tokens of what is kept under `key`."""
        if key is not None:
            self.cache.reuse(key, len(self.lengths), length)
        self.lengths.append(length if key is not None else 0)

    @_mirrored
    def end(self, slot: int, running: int, key: int | None, wipe: bool) -> None:
        """Close a slot, keeping its row under `key`.

        The first `running` slots step together; one row more may be behind them, still being filled. The last running
        row takes the gap, and the row behind takes that one's place.
        """
        if key is not None:
            self.cache.keep(slot, self.lengths[slot], key)
        if wipe:
            self.cache.wipe(slot)
        if slot < running:
            self._move(running - 1, slot)
            self._move(len(self.lengths) - 1, running - 1)
        self.lengths.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self.cache.move(source, target, self.lengths[source])
            self.lengths[target] = self.lengths[source]

    @_mirrored
    def forget(self, key: int) -> None:
        """Let go of a kept row."""
        self.cache.forget(key)

    @_mirrored
    def fill(self, ids: list[int]) -> Tensor:
        """Read more of the last slot's prompt and return the (vocabulary,) float32 logits after it."""
        slot, start = len(self.lengths) - 1, self.lengths[-1]
        visible = start + len(ids)
        positions = torch.arange(start, visible, device=self.device)[None]
        self.cache.aim(slot, start, visible)
        plain = start == 0 and not self._eager and self._window is None
        mask = None if plain else self._masks(positions, visible)
        logits = self._forward(torch.tensor([ids], device=self.device), positions, mask)
        self.lengths[slot] = visible
        return logits[0]

    @_mirrored
    def step(self, tokens: list[int]) -> Tensor:
        """Give each of the first rows its next token; return (rows, vocabulary) float32 logits."""
        rows = len(tokens)
        longest = max(self.lengths[:rows]) + 1
        visible = longest if rows == 1 else min(-(-longest // _ROUND) * _ROUND, self.cache.capacity)
        ids = torch.tensor(tokens, device=self.device)[:, None]
        places = torch.tensor(self.lengths[:rows], device=self.device)
        logits = (self.replay or self.decode)(ids, places, visible)
        for row in range(rows):
            self.lengths[row] += 1
        return logits

    def decode(self, ids: Tensor, places: Tensor, visible: int) -> Tensor:
        """Run one token for each of the first rows; `ids` is (rows, 1), `places` (rows,): where each stands."""
        self.cache.aim(0, visible - 1, visible, places)
        alone = len(ids) == 1 and not self._eager and self._window is None and self.replay is None
        mask = None if alone else self._masks(places[:, None], visible)
        return self._forward(ids, places[:, None], mask)

    @_mirrored
    def embed(self, rows: list[list[int]]) -> Tensor:
        """Return (texts, hidden size) float32: each text's mean last hidden state, L2-normalised."""
        longest = max(map(len, rows))
        ids = torch.zeros((len(rows), longest), dtype=torch.long, device=self.device)
        read = torch.zeros((len(rows), longest), dtype=torch.long, device=self.device)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            read[index, : len(row)] = 1
        # Padding stands behind the text, where causal attention does not look.
        states = self.model.base_model(input_ids=ids, attention_mask=read, use_cache=False).last_hidden_state.float()
        weights = read[..., None].to(states)
        return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Any) -> Tensor:
        made = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **self._last_only,
        )
        logits: Tensor = made.logits[:, -1].float()
        return logits

    def _masks(self, positions: Tensor, visible: int) -> Any:
        """Return what each of (rows, tokens) positions may look at, in the form the model takes."""
        full = self._mask(positions, visible, None)
        if self._window is None:
            return full
        near = self._mask(positions, visible, self._window)
        return {"full_attention": full, "sliding_attention": near} if self._by_kind else near

    def _mask(self, positions: Tensor, visible: int, window: int | None) -> Tensor:
        columns = torch.arange(visible, device=positions.device)
        seen = columns <= positions[..., None]
        if window is not None:
            seen &= columns > positions[..., None] - window
        seen = seen[:, None]
        if not self._eager:
            return seen
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    @_mirrored
    def check(self) -> None:
        """Compare a prompt read by pieces and a step of two rows with the model's own pass over the whole.

        Raises:
            ModelError: they differ: this architecture needs something that the engine does not give it.
        """
        ids = [(7 * place + 3) % self.vocabulary for place in range(9)]
        whole = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits[0, -1].float()
        self.cache.resize(2, _ROUND, 0)
        for length in (5, 8):
            self.lengths.append(0)
            Runner.fill.__wrapped__(self, ids[:4])  # type: ignore[attr-defined]
            Runner.fill.__wrapped__(self, ids[4:length])  # type: ignore[attr-defined]
        logits = Runner.step.__wrapped__(self, [ids[5], ids[8]])[1]  # type: ignore[attr-defined]
        self.lengths.clear()
        self.cache.resize(0, 0, 0)
        apart = (logits - whole).abs().max().item() / max(whole.abs().max().item(), 1e-9)
        if apart > _SAME:  # false for NaN: broken weights show in the answers, which name them
            raise ModelError(
                f"{type(self.model).__name__} gives other logits in this engine's batches than alone (by {apart:.0%}); "
                "serve it with engine=openai behind another server"
            )
