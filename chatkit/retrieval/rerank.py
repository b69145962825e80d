"""A cross-encoder: query and passage read together, which is slower and more exact than comparing vectors."""

import math
import threading
from pathlib import Path
from typing import Any

from chatkit.errors import BrokenModel, MissingExtra, ModelError

# Tokens of query and passage together that are read.
_MOST_TOKENS = 512
# Pairs of one forward pass.
_BATCH = 8


class CrossEncoder:
    """A sequence classifier with one output, as the cross-encoders of sentence-transformers are; calls run in turn."""

    def __init__(self, folder: Path) -> None:
        """Open the checkpoint in `folder`: config.json, tokenizer files and model.safetensors.

        Raises:
            BrokenModel: a file is missing or damaged.
            MissingExtra: torch or transformers is not installed.
            ModelError: it is no classifier with one output.
        """
        try:
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "torch", "torch") from error
        self._torch = torch
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
            self._model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
                str(folder), use_safetensors=True, dtype=torch.float32, **local
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise BrokenModel(
                f"the reranker in {str(folder)!r} cannot be read ({str(error).splitlines()[0][:200]}); expected "
                f"config.json, a tokenizer and model.safetensors of a sequence classifier"
            ) from error
        if self._model.config.num_labels != 1:
            raise ModelError(
                f"the reranker in {str(folder)!r} has {self._model.config.num_labels} outputs, expected a "
                f"cross-encoder with one"
            )
        positions = getattr(self._model.config, "max_position_embeddings", _MOST_TOKENS)
        self._most_tokens = min(_MOST_TOKENS, positions)
        self._lock = threading.Lock()

    def scores(self, query: str, texts: list[str]) -> list[float]:
        """Return how well each text answers the query, 0 to 1: the sigmoid of the classifier's output."""
        found: list[float] = []
        with self._lock, self._torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                part = texts[start : start + _BATCH]
                batch = self._tokenizer(
                    [query] * len(part),
                    part,
                    padding=True,
                    truncation="longest_first",
                    max_length=self._most_tokens,
                    return_tensors="pt",
                )
                found += self._model(**batch).logits[:, 0].tolist()
        return [1 / (1 + math.exp(-max(-60.0, min(60.0, logit)))) for logit in found]
