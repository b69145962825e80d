"""The process that owns the torch model of the `transformers` engine, or one rank of it.

Commands come as JSON lines on stdin, events leave as JSON lines on stdout (`engine` lists both); the end of stdin is
the end of the process. Ranks above 0 have neither: they follow rank 0.
"""

import json
import os
import queue
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatkit import child_python
from chatkit.errors import ChatkitError, ModelError
from chatkit.models import parallel, worker_io
from chatkit.models.admission import ROW_BLOCK
from chatkit.models.decoding import load_tokenizer
from chatkit.models.worker_io import Commands, Events

Fatal = Callable[[str], None]
# A call that takes longer hangs. It reads at most a piece of a prompt or as many tokens of texts, or one longer text.
# A GPU takes a few seconds for that; a CPU may be slow and busy, and so are weights that come from memory or disk in
# every call. Seconds.
_LONGEST_GPU_CALL, _LONGEST_CALL = 30.0, 1800.0


def main() -> int:
    """Load, say so, work; a failure is the last event."""
    options, events = worker_io.opened()
    # Read once by torch's OpenMP. A thread that spins while it waits takes the core that the others, the service or
    # another rank would finish on: on two busy cores a step took four times as long, a prompt seven times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def fatal(why: str, code: str = "") -> None:
        if place is None or place.rank == 0:
            events.fatal(why, code)
        else:
            _complain(f"rank {place.rank} failed: {why}")  # engine looks for that

    launched = parallel.place_of(os.environ)
    place = parallel.Place(**options["place"]) if options.get("place") else launched
    try:
        if place or options["tensor_parallel"] > 1:
            return _in_parallel(options, events, place, fatal)
        runner = _opened(options)
        _serve(runner, options, events, [local_bytes(runner.model)])
    except BrokenPipeError:
        return 0  # the service is gone
    except (ChatkitError, RuntimeError) as error:
        fatal(worker_io.message(error), error.code if isinstance(error, ChatkitError) else "")
        return 1
    except Exception as error:
        fatal(f"{type(error).__name__}: {worker_io.message(error)}")
        raise
    return 0


def _complain(why: str) -> None:
    print(why, file=sys.stderr, flush=True)  # noqa: T201 - the service keeps the last lines


def _in_parallel(options: dict[str, Any], events: Events, place: parallel.Place | None, fatal: Fatal) -> int:
    """Be one rank of several, starting the others first where no launcher did."""
    store = None
    if place is None:

        def command(other: parallel.Place) -> list[str]:
            told = json.dumps({**options, "place": asdict(other)})
            return [sys.executable, *child_python.run_module("chatkit.models.chat_worker"), told]

        place, store = parallel.start_followers(options["tensor_parallel"], command, fatal)
    elif place.rank > 0:
        store = parallel.join(place) if options.get("place") else None
    group = parallel.Group(place, fatal if place.rank == 0 else _complain, store)
    runner = _opened({**options, "tensor_parallel": place.ranks})
    sizes = group.gather(local_bytes(runner.model))
    group.meet(lambda: runner.busy_since, longest_call(runner))
    if place.rank > 0:
        group.follow(runner)
    else:
        runner.announce = group.announce
        try:
            _serve(runner, options, events, sizes)
        finally:
            group.leave()
    os._exit(0)  # the meeting thread may be inside a collective, which must not meet its own destruction


def _opened(options: Mapping[str, Any]) -> Any:
    """Load the model."""
    import torch

    from chatkit.models.chat_load import LoadOptions, load_model
    from chatkit.models.chat_runner import Runner

    ranks = options["tensor_parallel"]
    if options["threads"] or ranks > 1:
        torch.set_num_threads(options["threads"] or max(1, (os.cpu_count() or 1) // ranks))
    gpu_memory = {int(device): gib for device, gib in options["gpu_memory"].items()}
    model = load_model(
        Path(options["model"]),
        LoadOptions(
            dtype=options["dtype"],
            quantize=options["quantize"],
            gpu_memory=gpu_memory,
            cpu_memory=options["cpu_memory"],
            offload_dir=options["offload_dir"],
            tensor_parallel=ranks,
        ),
    )
    return Runner(model)


def _serve(runner: Any, options: Mapping[str, Any], events: Events, sizes: list[int]) -> None:
    """Work until stdin ends; `sizes` are the bytes of the parameters on each rank."""
    from chatkit.models.chat_scheduler import Limits, Scheduler

    runner.check()
    on_gpu = runner.device.type == "cuda"
    cache_tokens = options["kv_cache_gb"] * 2**30 // max(1, runner.cache.bytes_per_token) // ROW_BLOCK * ROW_BLOCK
    if not cache_tokens:
        raise ModelError(f"kv_cache_gb is {options['kv_cache_gb']}, less than {ROW_BLOCK} tokens; raise it")
    limits = Limits(
        cache_tokens=cache_tokens,
        window=min(options["window"], cache_tokens),
        max_running=options["max_running"],
        piece=options["piece"] or (2048 if on_gpu else 256),
        keep_prefixes=options["prefix_cache"],
    )
    if options["cuda_graphs"] and on_gpu and not runner.announce:
        from chatkit.models.chat_graphs import Graphs

        runner.replay = Graphs(runner.decode, runner.cache).step
    tokenizer = load_tokenizer(Path(options["tokenizer"]))
    scheduler = Scheduler(runner, tokenizer, limits, events.send)
    commands = worker_io.commands(sys.stdin)
    events.send({"ready": True, "parameter_bytes": sizes, "cache_tokens": limits.cache_tokens})
    longest = longest_call(runner)

    def hangs() -> str:
        since = runner.busy_since
        return f"a call has taken {longest:.0f} s" if since and time.monotonic() - since > longest else ""

    worker_io.keep_saying_alive(events, hangs)
    while _take_commands(scheduler, commands):
        if not scheduler.idle:
            scheduler.work()


def longest_call(runner: Any) -> float:
    """Return the seconds after which a call of this rank's runner hangs."""
    placed = getattr(runner.model, "hf_device_map", {})
    on_gpu = runner.device.type == "cuda" and not {"cpu", "disk"} & set(map(str, placed.values()))
    return _LONGEST_GPU_CALL if on_gpu else _LONGEST_CALL


def local_bytes(model: Any) -> int:
    """Return the bytes of the parameters that this rank holds."""
    parts = [getattr(parameter, "to_local", lambda it=parameter: it)() for parameter in model.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)


def _take_commands(scheduler: Any, commands: Commands) -> bool:
    """Apply what has come; wait when idle. False at the end."""
    while True:
        try:
            command = commands.get(block=scheduler.idle)
        except queue.Empty:
            return True
        if command is None:
            return False
        scheduler.apply(command)


if __name__ == "__main__":
    sys.exit(main())
