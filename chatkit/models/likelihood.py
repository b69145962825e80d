"""How likely given answers are after a prompt, read from a causal model's logits in one forward pass.

The answers share their beginnings, so they are put behind the prompt as a tree: every token sees the prompt and the
tokens before it in its own answers, by a mask. Beginnings that many prompts share are read once and kept as keys and
values. Nothing is generated.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatkit.errors import ModelError, TooLarge


@dataclass(frozen=True, slots=True)
class Tree:
    """Answers as the nodes of a tree; a node's parent stands before it, -1 is the prompt.

    Attributes:
        ends: the node that each answer ends with.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> "Tree":
        """Return the tree of answers, each a sequence of at least one token id.

        Raises:
            ValueError: an answer is empty.
        """
        nodes: dict[tuple[int, ...], int] = {}
        parents, ends = [], []
        for answer in answers:
            if not answer:
                raise ValueError("an answer without a token has no likelihood")
            for length in range(1, len(answer) + 1):
                path = tuple(answer[:length])
                if path not in nodes:
                    parents.append(nodes.get(path[:-1], -1))
                    nodes[path] = len(nodes)
            ends.append(nodes[tuple(answer)])
        paths = list(nodes)
        depths = tuple(len(path) - 1 for path in paths)
        return cls(tuple(path[-1] for path in paths), tuple(parents), depths, tuple(ends))

    def sees(self) -> Tensor:
        """Return (nodes, nodes) bool: row n is true at n itself and at the nodes before it in its answers."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


class Likelihoods:
    """A loaded model that is asked how likely answers are.

    Args:
        model: a causal language model of transformers, in evaluation mode.

    Attributes:
        window: tokens of prompt and answers that it reads.
        forwards: passes so far.

    Raises:
        ModelError: it keeps another state than keys and values, or takes no positions.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        if self.device.type == "meta":  # offloaded: accelerate brings the weights to where they are used
            self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        text = model.config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ("full_attention",))
        if kinds - {"full_attention", "sliding_attention"}:
            raise ModelError(
                f"{type(model).__name__} has layers of the kinds {sorted(kinds)}; a judging model is run here with "
                "full_attention and sliding_attention; serve it elsewhere and set moderation_endpoint"
            )
        most = int(getattr(text, "max_position_embeddings", 0) or getattr(text, "n_positions", 0) or 2048)
        sliding = getattr(text, "sliding_window", None) if "sliding_attention" in kinds else None
        self.window = min(most, sliding or most)  # one mask serves all layers as long as nothing slides out
        self.forwards = 0
        self._kept: list[tuple[list[int], Any]] = []

    def keep(self, prompt: Sequence[int], other: Sequence[int]) -> int:
        """Read the beginning that two prompts share and keep it; return its length in tokens."""
        pairs = zip(prompt[:-1], other[:-1], strict=False)
        shared = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        if shared and all(ids != shared for ids, _ in self._kept):
            with torch.inference_mode():
                self.forwards += 1
                made = self.model(torch.tensor([shared], device=self.device), use_cache=True, logits_to_keep=1)
            self._kept.append((shared, made.past_key_values))
            self._kept.sort(key=lambda kept: -len(kept[0]))
        return len(shared)

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the (prompts, answers) joint log-probabilities of the answers' tokens, in one forward pass.

        Raises:
            TooLarge: a prompt with its answers is longer than the window.
        """
        tree = Tree.of(answers)
        longest = max(map(len, prompts)) + max(tree.depths) + 1
        if longest > self.window:
            raise TooLarge(f"the text is {longest} tokens with its prompt, at most {self.window} are read at once")
        start, kept = self._kept_for(prompts)
        rests = [list(prompt[start:]) for prompt in prompts]
        with torch.inference_mode():
            self.forwards += 1
            logits = self._forward(rests, start, kept, tree)
            chances = torch.log_softmax(logits.float(), -1)
        # Row 0 of the logits stands at the prompt's last token, row n + 1 at node n.
        parents = torch.tensor(tree.parents, device=chances.device) + 1
        steps = chances[:, parents, torch.tensor(tree.tokens, device=chances.device)].double().cpu()
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                steps[:, node] += steps[:, parent]
        return [[float(row[end]) for end in tree.ends] for row in steps]

    def _kept_for(self, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
        """Return the longest kept beginning of all the prompts: its length, and a cache of them that may grow."""
        for ids, cache in self._kept:
            if all(len(prompt) > len(ids) and list(prompt[: len(ids)]) == ids for prompt in prompts):
                own = copy.copy(cache)  # layers are shared until they grow, which makes tensors of their own
                own.layers = [copy.copy(layer) for layer in cache.layers]
                if len(prompts) > 1:
                    own.batch_repeat_interleave(len(prompts))
                return len(ids), own
        return 0, None

    def _forward(self, rests: list[list[int]], start: int, kept: Any, tree: Tree) -> Tensor:
        """Return the (prompts, 1 + nodes, vocabulary) logits at the prompts' last tokens and at the nodes.

        Rows are filled up on the left, so that in all of them the nodes stand at the end.
        """
        rows, length, nodes = len(rests), max(map(len, rests)), len(tree.tokens)
        gaps = [length - len(rest) for rest in rests]
        ids = torch.tensor([[0] * gap + rest + list(tree.tokens) for gap, rest in zip(gaps, rests, strict=True)])
        places = torch.tensor([*range(length), *(length + depth for depth in tree.depths)])
        positions = (start + places - torch.tensor(gaps)[:, None]).clamp(min=0)
        sees = torch.ones(rows, length + nodes, start + length + nodes, dtype=torch.bool)
        own = sees[:, :, start:]
        own[:, :length, :length] = torch.tril(torch.ones(length, length, dtype=torch.bool))
        own[:, :length, length:] = False
        own[:, length:, length:] = tree.sees()
        for row, gap in enumerate(gaps):
            own[row, :, :gap] = False
            own[row, range(gap), range(gap)] = True  # what fills a row up sees itself, for a mean of nothing is NaN
        dtype = self.model.get_input_embeddings().weight.dtype
        dtype = dtype if dtype.is_floating_point else self.model.dtype
        mask = torch.where(sees, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
        logits: Tensor = self.model(
            ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=kept,
            use_cache=kept is not None,
            logits_to_keep=1 + nodes,
        ).logits
        return logits
