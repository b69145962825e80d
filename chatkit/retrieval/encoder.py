"""The encoder: texts in, L2-normalised mean-pooled vectors out, batched across everyone who waits."""

import asyncio
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import Unavailable
from chatkit.retrieval.backends import Backend, OpenVinoBackend, TorchBackend
from chatkit.retrieval.checkpoint import TOKENIZER, Checkpoint, broken, read_checkpoint

Vectors = NDArray[np.float32]

# Texts that one caller gets into a round; the rest of a large job waits for the next, so that a query is never behind
# a whole index build.
_SLICE = 64
# Texts after which no further job joins a round, so that a crowd of callers does not make each of them wait for all.
_ROUND = 128
# Padded tokens of one forward pass: past this a larger batch is no faster on a CPU.
_BATCH_TOKENS = 4096
# A longer text opens a batch of its own when joining would pad the others by more tokens than this in all.
_MAX_EXTRA_PADDING = 64


def open_encoder(
    folder: Path,
    *,
    name: str = "",
    cache: Path | None = None,
    backend: Literal["openvino", "torch"] = "openvino",
    threads: int = 0,
) -> "MeanPoolingEncoder":
    """Open the encoder in `folder`; the first time with OpenVINO converts it, which needs torch.

    Args:
        folder: config.json, tokenizer.json and model.safetensors, as sentence-transformers lays them out.
        name: what callers call it; the folder's name unless told.
        cache: where the converted form is kept; a folder beside the weights unless told.
        backend: torch is the reference, openvino the fast one; both give the same fingerprint.
        threads: CPU threads of one forward pass; 0 takes all cores.

    Raises:
        BrokenModel: a file is missing or damaged.
        MissingExtra: the backend, or torch for the conversion, is not installed.
        ModelError: the encoder is of a kind that is not supported, or the converted form cannot be written.
    """
    checkpoint = read_checkpoint(folder, cache)
    kind = OpenVinoBackend if backend == "openvino" else TorchBackend
    return MeanPoolingEncoder(checkpoint, kind(checkpoint, threads), name or folder.name)


class MeanPoolingEncoder:
    """An open encoder with one thread of its own; implements `protocols.PassageEncoder`.

    Calls that wait at the same time share forward passes. A text longer than `max_tokens` is read up to there.
    """

    def __init__(self, checkpoint: Checkpoint, backend: Backend, name: str) -> None:
        self.name = name
        self._checkpoint = checkpoint
        self._backend = backend
        self._tokenizer = _load_tokenizer(checkpoint, cut=True)
        self._counter: Any = None
        self._pad = int(_pad_id(self._tokenizer))
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    @property
    def dim(self) -> int:
        """Length of one vector."""
        return self._checkpoint.dim

    @property
    def fingerprint(self) -> str:
        """Names weights, tokenizer, pooling, normalisation and cut: equal ones give comparable vectors."""
        return self._checkpoint.fingerprint

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read, special tokens included."""
        return self._checkpoint.max_tokens

    @property
    def pooling(self) -> str:
        """How one vector is made of the tokens'."""
        return "mean"

    @property
    def normalised(self) -> bool:
        """Whether every vector has length one."""
        return True

    @property
    def metric(self) -> Literal["cosine", "ip"]:
        """What two vectors are compared by."""
        return "cosine"

    @property
    def query_prefix(self) -> str:
        """What the model expects before a query."""
        return ""

    @property
    def passage_prefix(self) -> str:
        """What the model expects before a passage."""
        return ""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` has, special tokens included, however long it is."""
        return self.count_tokens_of([text])[0]

    def count_tokens_of(self, texts: Sequence[str]) -> list[int]:
        """Return `count_tokens` of each text, faster than one by one."""
        if self._counter is None:
            self._counter = _load_tokenizer(self._checkpoint, cut=False)
        return [len(row) for row in self._counter.encode_batch_fast(list(texts))]

    async def encode(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 L2-normalised vectors in the order of `texts`.

        Raises:
            Unavailable: the forward pass failed or the encoder was closed.
        """
        return await asyncio.wrap_future(self._submit(texts))

    def encode_now(self, texts: Sequence[str]) -> Vectors:
        """Do what `encode` does, blocking; not for the event loop's thread."""
        return self._submit(texts).result()

    def close(self) -> None:
        """Finish what waits and stop the thread; later calls raise `Unavailable`."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def _submit(self, texts: Sequence[str]) -> "Future[Vectors]":
        job = _Job(texts, self.dim)
        if self._closed:
            job.done.set_exception(Unavailable("the encoder is closed; open it again"))
        elif not job.texts:
            job.done.set_result(job.vectors)
        else:
            self._jobs.put(job)
        return job.done

    def _work(self) -> None:
        """Take everything that waits, run a round of it, and so on until closed."""
        waiting: list[_Job] = []
        open_ = True
        while open_ or waiting:
            try:
                while open_:
                    job = self._jobs.get(block=not waiting)
                    if job is None:
                        open_ = False
                    else:
                        waiting.append(job)
            except queue.Empty:
                pass
            waiting = [job for job in waiting if not job.done.cancelled()]
            served = self._round(waiting)
            waiting = [job for job in [*waiting[served:], *waiting[:served]] if not job.settle()]

    def _round(self, jobs: "list[_Job]") -> int:
        """Encode the next slice of the first jobs together, and return how many: the others are first in the next."""
        rows: list[tuple[_Job, int]] = []
        served = 0
        while served < len(jobs) and len(rows) < _ROUND:
            rows += [(jobs[served], index) for index in jobs[served].next_slice()]
            served += 1
        if rows:
            self._encode(jobs[:served], rows)
        return served

    def _encode(self, jobs: "list[_Job]", rows: "list[tuple[_Job, int]]") -> None:
        try:
            tokens = self._tokenizer.encode_batch_fast([job.texts[index] for job, index in rows])
        except Exception as error:  # the library raises nothing narrower for a text that it cannot read
            if len(jobs) == 1:
                jobs[0].failed = error
                return
            for job in jobs:  # one that holds such a text is not to fail the others
                self._encode([job], [row for row in rows if row[0] is job])
            return
        try:
            ids = [row.ids for row in tokens]
            for batch in _batches([len(row) for row in ids]):
                vectors = self._forward([ids[position] for position in batch])
                for position, vector in zip(batch, vectors, strict=True):
                    job, index = rows[position]
                    job.vectors[index] = vector
        except Exception as error:  # whatever a library raises here must reach the callers, not end the thread
            for job in jobs:
                job.failed = error

    def _forward(self, rows: list[list[int]]) -> Vectors:
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._pad, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return self._backend.run(ids, mask)


class _Job:
    """One call's texts and the vectors made so far."""

    def __init__(self, texts: Sequence[str], dim: int) -> None:
        self.texts = list(texts)
        self.vectors = np.empty((len(self.texts), dim), dtype=np.float32)
        self.done: Future[Vectors] = Future()
        self.failed: Exception | None = None
        # Texts of like length go into one slice, so that little of a batch is padding.
        self._left = sorted(range(len(self.texts)), key=lambda index: -len(self.texts[index]))

    def next_slice(self) -> list[int]:
        taken = self._left[:_SLICE]
        del self._left[:_SLICE]
        return taken

    def settle(self) -> bool:
        """Hand out the result or the failure when there is one; return whether the job is over."""
        if self.failed is None and self._left:
            return False
        if self.done.set_running_or_notify_cancel():
            if self.failed is not None:
                failure = Unavailable(f"the encoder failed: {self.failed}")
                failure.__cause__ = self.failed
                self.done.set_exception(failure)
            else:
                self.done.set_result(self.vectors)
        return True


def _batches(lengths: list[int]) -> list[list[int]]:
    """Group positions by length, so that little of each batch is padding."""
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[position]
        current = batches[-1] if batches else []
        extra = (length - longest) * len(current)
        if not current or extra > _MAX_EXTRA_PADDING or length * (len(current) + 1) > _BATCH_TOKENS:
            batches.append([position])
        else:
            current.append(position)
        longest = length
    return batches


def _load_tokenizer(checkpoint: Checkpoint, *, cut: bool) -> Any:
    import tokenizers

    file = checkpoint.folder / TOKENIZER
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise broken(file, f"is no tokenizer ({error})") from error
    tokenizer.no_padding()
    if cut:
        tokenizer.enable_truncation(checkpoint.max_tokens)
    else:
        tokenizer.no_truncation()
    return tokenizer


def _pad_id(tokenizer: Any) -> int:
    """Return the padding token's id; masked positions do not count, so any id in the vocabulary would do."""
    for name in ("[PAD]", "<pad>"):
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    return 0
