"""The process that owns the OpenVINO pipeline of the `local` engine.

It has a process of its own because `ContinuousBatchingPipeline.step` keeps Python's interpreter lock: in the service's
process every step would stop the event loop (docs/decisions/0002). Commands come as JSON lines on stdin, events leave
as JSON lines on stdout (`engine` lists both); the end of stdin is the end of the process.
"""

import queue
import secrets
import sys
from typing import Any

from chatkit.models import worker_io
from chatkit.models.worker_io import Commands, Events

# Ends of a generation, by the engine's own names.
_REASONS = {"STOP": "stop", "LENGTH": "length"}
# The request that warms the pipeline up; those of the service count from 0.
_WARM_UP = 2**62
# What `precision` means, on the CPU and elsewhere. The width of the cache is said: its memory is reckoned from it, and
# a GGUF file of 16 bits would decide it otherwise.
_PROPERTIES = {
    "fast": ({"KV_CACHE_PRECISION": "u8"}, {}),
    "exact": (
        {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
        {"INFERENCE_PRECISION_HINT": "f32"},
    ),
}


class Worker:
    """Steps the pipeline while there is work and reports each step in one line."""

    def __init__(self, pipeline: Any, commands: Commands, events: Events) -> None:
        self._pipeline = pipeline
        self._commands = commands
        self._events = events
        self._running: dict[int, Any] = {}

    def warm_up(self) -> None:
        """Let the pipeline unpack its weights and build its kernels, which it does in its first step."""
        import numpy
        import openvino
        import openvino_genai

        one = openvino_genai.GenerationConfig()
        one.max_new_tokens = 1
        one.stop_token_ids = {0}
        one.eos_token_id = 0
        token = openvino.Tensor(numpy.zeros((1, 1), dtype=numpy.int64))
        handle = self._pipeline.add_request(_WARM_UP, token, one)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        del handle  # a request whose handle is gone is cancelled

    def run(self) -> None:
        """Work until stdin ends."""
        while self._take_commands():
            if self._running:
                self._pipeline.step()
                self._report()

    def _take_commands(self) -> bool:
        """Apply what has come; wait when idle. False at the end."""
        while True:
            try:
                command = self._commands.get(block=not self._running)
            except queue.Empty:
                return True
            if command is None:
                return False
            if "add" in command:
                self._add(command["add"], command["ids"], command["config"])
            else:
                self._cancel(command["cancel"])

    def _add(self, number: int, ids: list[int], config: dict[str, Any]) -> None:
        import numpy
        import openvino

        try:
            tensor = openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
            self._running[number] = self._pipeline.add_request(number, tensor, generation_config(config))
        except (RuntimeError, TypeError, ValueError) as error:  # what one request asks must not end the others
            self._events.send({"refused": number, "why": str(error).strip().splitlines()[-1][:200]})

    def _cancel(self, number: int) -> None:
        handle = self._running.pop(number, None)
        if handle is not None:
            handle.cancel()
            if not self._running and self._pipeline.has_non_finished_requests():
                self._pipeline.step()  # a cancelled request gives its memory back in the next step

    def _report(self) -> None:
        rows = []
        for number, handle in list(self._running.items()):
            tokens: list[int] = []
            reason = None
            if handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    reason = _REASONS.get(output.finish_reason.name)
            if reason is None and handle.get_status().name != "RUNNING":
                reason = "ignored"
            if reason is not None:
                del self._running[number]
            if tokens or reason:
                rows.append([number, tokens, reason])
        if rows:
            self._events.send({"step": rows})


def generation_config(config: dict[str, Any]) -> Any:
    """Return the engine's form of sampling settings; a temperature of 0 is greedy."""
    import openvino_genai

    made = openvino_genai.GenerationConfig()
    made.max_new_tokens = config["max_new_tokens"]
    made.repetition_penalty = config["repetition_penalty"]
    made.stop_token_ids = set(config["eos_ids"])
    made.eos_token_id = config["eos_ids"][0]
    made.do_sample = config["temperature"] >= worker_io.LEAST_TEMPERATURE
    if made.do_sample:
        made.temperature = config["temperature"]
        made.top_p = config["top_p"]
        if config["top_k"]:
            made.top_k = config["top_k"]
        # Without a seed the engine would use the same one for every request.
        made.rng_seed = secrets.randbits(32) if config["seed"] is None else config["seed"] % 2**32
    # The text is cut by the service, the same for every engine; here they only save steps. Of one that ends in a space
    # or a line end the engine leaves that off, and what is left the service would not know as a stop word.
    words = {word for word in config["stop_words"] if word == word.rstrip(" \n")}
    if words:
        made.stop_strings = words
        made.include_stop_str_in_output = True
    return made


def open_pipeline(options: dict[str, Any]) -> Any:
    """Load the converted model."""
    import openvino_genai

    device = options["device"]
    _check_device(device)
    scheduler = openvino_genai.SchedulerConfig()
    if options.get("kv_blocks"):
        scheduler.num_kv_blocks = options["kv_blocks"]
    else:
        scheduler.cache_size = max(1, int(options["kv_cache_gb"]))
    scheduler.max_num_seqs = options["max_running"]
    scheduler.enable_prefix_caching = options["prefix_cache"]
    properties: dict[str, Any] = dict(_PROPERTIES[options.get("precision", "fast")][device != "CPU"])
    if options["threads"]:
        properties["INFERENCE_NUM_THREADS"] = options["threads"]
    return openvino_genai.ContinuousBatchingPipeline(options["model"], scheduler, device, properties)


def _check_device(device: str) -> None:
    """Refuse a device that is not here; OpenVINO's own words for that name no other."""
    import openvino

    present = openvino.Core().available_devices
    family = device.partition(":")[0].partition(".")[0]
    if device not in present and family not in {name.partition(".")[0] for name in (*present, "AUTO")}:
        raise RuntimeError(
            f"device is {device!r}, expected AUTO or one of those present: {', '.join(present)}; set CHATKIT_DEVICE"
        )


def main() -> int:
    """Load, say so, work; a failure is the last event."""
    options, events = worker_io.opened()
    try:
        worker = Worker(open_pipeline(options), worker_io.commands(sys.stdin), events)
        events.send({"ready": True})
        worker_io.keep_saying_alive(events)
        worker.warm_up()  # after the word that all is ready: a request that comes meanwhile would pay for it anyway
        worker.run()
    except BrokenPipeError:
        return 0  # the service is gone
    except RuntimeError as error:
        events.fatal(worker_io.message(error, last=True))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
