"""The encoder: texts in, vectors out, batched across everyone who waits."""

import asyncio
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chatkit.errors import Unavailable
from chatkit.retrieval.backends import Backend, OpenVinoBackend, TorchBackend, Vectors
from chatkit.retrieval.checkpoint import TOKENIZER, Checkpoint, read_checkpoint
from chatkit.retrieval.convert import Precision
from chatkit.retrieval.tokens import batches, load_tokenizer, pad, pad_id
from chatkit.retrieval.traits import Told


def open_encoder(
    folder: Path,
    *,
    name: str = "",
    cache: Path | None = None,
    backend: Literal["openvino", "torch"] = "openvino",
    threads: int = 0,
    precision: Precision = "native",
    bulk: bool = False,
    device: str = "auto",
    told: Told | None = None,
) -> "SentenceEncoder":
    """Open the encoder in `folder`; the first time with OpenVINO converts it, which needs torch.

    Args:
        folder: config.json, tokenizer.json and model.safetensors, as sentence-transformers lays them out.
        name: what callers call it; the folder's name unless told.
        cache: where the converted form is kept; a folder beside the weights unless told.
        backend: torch is the reference, openvino the fast one; both give the same fingerprint.
        threads: CPU threads of one forward pass; 0 takes all cores.
        precision: native is what the CPU or GPU is fastest in at a cosine of 0.9999 or more; exact is float32; int8 is
            faster still, its vectors near enough for passages that native queries are compared with.
        bulk: for many texts rather than the answer to one: passes run side by side, a thread each.
        device: of the torch backend: "cpu", "cuda", "cuda:1"; "auto" takes a GPU where there is one.
        told: what settings say of pooling, metric and prefixes.

    Raises:
        BrokenModel: a file is missing or damaged.
        MissingExtra: the backend, or torch for the conversion, is not installed.
        ModelError: the encoder is of a kind that is not supported, or the converted form cannot be written.
        ConfigError: the backend does not have that precision or device.
    """
    checkpoint = read_checkpoint(folder, cache, told)
    runs: Backend
    if backend == "openvino":
        runs = OpenVinoBackend(checkpoint, threads, precision, bulk=bulk)
    else:
        runs = TorchBackend(checkpoint, threads, precision, device)
    return SentenceEncoder(checkpoint, runs, name or folder.name, precision)


class SentenceEncoder:
    """An open encoder with one thread of its own; implements `protocols.PassageEncoder`.

    Calls that wait at the same time share forward passes. A text longer than `max_tokens` is read up to there.
    """

    def __init__(self, checkpoint: Checkpoint, backend: Backend, name: str, precision: Precision = "native") -> None:
        self.name = name
        self.precision = precision
        self._checkpoint = checkpoint
        self._traits = checkpoint.traits
        self._backend = backend
        self._tokenizer = load_tokenizer(checkpoint.folder / TOKENIZER, cut=self.max_tokens, lower=self._traits.lower)
        self._counter: Any = None
        self._pad = pad_id(checkpoint)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._closing = threading.Lock()  # nothing is put behind the None that ends the thread
        self._waiting = 0  # calls that the thread has yet to answer; counted under the lock above
        self._turn = threading.Lock()  # the backend is used by one thread at a time
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    @property
    def dim(self) -> int:
        """Length of one vector."""
        return self._traits.dim

    @property
    def fingerprint(self) -> str:
        """Names weights, tokenizer, pooling, normalisation and cut: equal ones give comparable vectors."""
        return self._checkpoint.fingerprint

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read, special tokens included."""
        return self._traits.max_tokens

    @property
    def pooling(self) -> str:
        """How one vector is made of the tokens': "mean", "cls", "max" or "lasttoken"."""
        return self._traits.pooling

    @property
    def normalised(self) -> bool:
        """Whether every vector has length one."""
        return self._traits.normalised

    @property
    def metric(self) -> Literal["cosine", "ip"]:
        """What two vectors are compared by; "ip" (inner product) where the model was trained for that."""
        return self._traits.metric

    @property
    def query_prefix(self) -> str:
        """What the model expects before a query; `encode` does not add it."""
        return self._traits.query_prefix

    @property
    def passage_prefix(self) -> str:
        """What the model expects before a passage; `encode` does not add it."""
        return self._traits.passage_prefix

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` has, special tokens included, however long it is."""
        return self.count_tokens_of([text])[0]

    def count_tokens_of(self, texts: Sequence[str]) -> list[int]:
        """Return `count_tokens` of each text, faster than one by one."""
        if self._counter is None:
            self._counter = load_tokenizer(self._checkpoint.folder / TOKENIZER, lower=self._traits.lower)
        return [len(row) for row in self._counter.encode_batch_fast(list(texts))]

    async def encode(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32 vectors in the order of `texts`.

        Raises:
            Unavailable: the forward pass failed or the encoder was closed.
        """
        return await asyncio.wrap_future(self._submit(texts))

    def encode_now(self, texts: Sequence[str]) -> Vectors:
        """Do what `encode` does, blocking; not for the event loop's thread."""
        done = self._here(texts) if len(texts) == 1 else None
        return (done or self._submit(texts)).result()

    def _here(self, texts: Sequence[str]) -> "Future[Vectors] | None":
        """Encode in the caller's thread where nobody else waits: to wake another one is a tenth of a text's time."""
        if self._waiting or not self._turn.acquire(blocking=False):
            return None
        try:
            if self._closed:
                return None
            job = _Job(texts, self.dim)
            self._round([job])
            job.settle()
            return job.done
        finally:
            self._turn.release()

    def close(self) -> None:
        """Finish what waits and stop the thread; later calls raise `Unavailable`."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()
        with self._turn:  # what runs in a caller's own thread
            pass

    def _submit(self, texts: Sequence[str]) -> "Future[Vectors]":
        job = _Job(texts, self.dim)
        with self._closing:
            if self._closed:
                job.done.set_exception(Unavailable("the encoder is closed; open it again"))
            elif job.texts:
                self._waiting += 1
                self._jobs.put(job)
            else:
                job.done.set_result(job.vectors)
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
            with self._turn:
                wanted = [job for job in waiting if not job.done.cancelled()]
                served = self._round(wanted)
            left = [job for job in [*wanted[served:], *wanted[:served]] if not job.settle()]
            with self._closing:
                self._waiting -= len(waiting) - len(left)
            waiting = left

    def _round(self, jobs: "list[_Job]") -> int:
        """Encode the next slice of the first jobs together, and return how many: the others are first in the next."""
        rows: list[tuple[_Job, int]] = []
        served = 0
        most = self._backend.sizes.slice
        while served < len(jobs) and len(rows) < 2 * most:  # a crowd of callers is not to wait for all of it
            rows += [(jobs[served], index) for index in jobs[served].next_slice(most)]
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
            ids, sizes = [row.ids for row in tokens], self._backend.sizes
            groups = batches([len(row) for row in ids], tokens=sizes.tokens, waste=sizes.waste)
            found = self._backend.run(
                [
                    pad([ids[place] for place in group], self._pad, sizes.short if len(group) == 1 else 0)
                    for group in groups
                ]
            )
            for group, vectors in zip(groups, found, strict=True):
                for place, vector in zip(group, vectors, strict=True):
                    job, index = rows[place]
                    job.vectors[index] = vector
        except Exception as error:  # whatever a library raises here must reach the callers, not end the thread
            for job in jobs:
                job.failed = error


class _Job:
    """One call's texts and the vectors made so far."""

    def __init__(self, texts: Sequence[str], dim: int) -> None:
        self.texts = list(texts)
        self.vectors = np.empty((len(self.texts), dim), dtype=np.float32)
        self.done: Future[Vectors] = Future()
        self.failed: Exception | None = None
        # Texts of like length go into one slice, so that little of a batch is padding.
        self._left = sorted(range(len(self.texts)), key=lambda index: -len(self.texts[index]))

    def next_slice(self, most: int) -> list[int]:
        """Take the next `most` texts: the others wait, so that a query is never behind a whole build."""
        taken = self._left[:most]
        del self._left[:most]
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
