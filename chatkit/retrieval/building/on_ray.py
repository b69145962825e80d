"""The embedding stage on a Ray cluster: the same texts through the same encoder in a pool of actors (Ray Data)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatkit.errors import MissingExtra, Unavailable
from chatkit.retrieval.building.embedding import IndexingEncoder
from chatkit.retrieval.building.keys import KEY_BYTES, Keys

Vectors = NDArray[np.float32]


class OnRay:
    """Embeds in `workers` actors, each with an encoder of its own; implements `embedding.Embedding`.

    Texts go to the object store of Ray, which spills to disk, so no file system has to be shared. Batches come back in
    any order, and a build that is killed loses those under way.
    """

    def __init__(
        self,
        open_encoder: Callable[[], IndexingEncoder],
        *,
        workers: int,
        address: str | None = None,
        cpus: float = 1,
        gpus: float = 0,
    ) -> None:
        """Take what a worker needs; nothing is started yet.

        Args:
            open_encoder: called once in each worker; pickled, so a function of a module, or a `partial` of one.
            workers: actors, each of which takes `cpus` and `gpus` of the cluster.
            address: of a cluster, "auto" for the one this machine is part of; None starts Ray on this machine alone.
            cpus: CPUs of an actor.
            gpus: GPUs of an actor, which may be a fraction.
        """
        self._open_encoder = open_encoder
        self._workers = workers
        self._address = address
        self._needs = {"num_cpus": cpus, "num_gpus": gpus}

    def run(self, batches: Iterator[tuple[Keys, list[str]]]) -> Iterator[tuple[Keys, Vectors]]:
        """Yield the keys and vectors of batches as they are done.

        Raises:
            MissingExtra: Ray is not installed.
            Unavailable: the cluster or a worker failed.
        """
        ray = _import_ray()
        with _connected(ray, self._address, self._workers, self._needs["num_cpus"]):
            tables = [ray.put(_table(keys, texts)) for keys, texts in batches]
            if not tables:
                return
            done = ray.data.from_arrow_refs(tables).map_batches(
                _Worker,
                fn_constructor_args=(self._open_encoder,),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(self._workers, len(tables))),
                **self._needs,
            )
            try:
                for rows in done.iter_batches(batch_size=None, batch_format="pyarrow"):
                    yield _read(rows)
            except ray.exceptions.RayError as error:
                said = str(error).strip().splitlines()[-1][:300]
                raise Unavailable(
                    f"a worker of Ray failed ({said}); what was embedded is kept, run the same command again"
                ) from error


class _Worker:
    """One actor: an open encoder."""

    def __init__(self, open_encoder: Callable[[], IndexingEncoder]) -> None:
        self._encoder = open_encoder()

    def __call__(self, rows: Any) -> Any:
        import pyarrow

        vectors = self._encoder.encode_now(rows.column("text").to_pylist())
        flat = pyarrow.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        return pyarrow.table(
            {"key": rows.column("key"), "vector": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
        )


def _table(keys: Keys, texts: list[str]) -> Any:
    import pyarrow

    raw = [row.astype("<u8").tobytes() for row in keys]
    return pyarrow.table({"key": pyarrow.array(raw, pyarrow.binary(KEY_BYTES)), "text": texts})


def _read(rows: Any) -> tuple[Keys, Vectors]:
    keys = np.frombuffer(b"".join(rows.column("key").to_pylist()), dtype="<u8").reshape(-1, 2).astype(np.uint64)
    flat = rows.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return keys, np.asarray(flat, dtype=np.float32).reshape(len(keys), -1)


def _import_ray() -> Any:
    # Ray counts its users over the network unless told otherwise before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingExtra("ray", "ray") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, workers: int, cpus: float) -> Iterator[None]:
    """Be part of a cluster; one that was started for this is stopped again."""
    if ray.is_initialized():
        yield
        return
    try:
        if address:
            ray.init(address=address, logging_level="warning", log_to_driver=False)
        else:
            # One more than the workers take: reading the texts in is a task too.
            ray.init(
                num_cpus=int(workers * cpus) + 1, include_dashboard=False, logging_level="warning", log_to_driver=False
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Unavailable(f"Ray cannot be reached at {address or 'this machine'} ({error}); start it first") from error
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
