"""What every `eval` and `bench` command prints: one object of figures with the machine and settings they hold for."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import chatkit

# The instructions that decide how fast a matrix product is on a CPU; the other flags say nothing here.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
_ENGINES = ("openvino", "openvino-genai", "uvicorn", "starlette")


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one measurement; the names in `figures` are part of the interface.

    Attributes:
        figures: name → number.
        rows: the single measurements behind them.
    """

    command: str
    settings: Mapping[str, Any]
    figures: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]
    version: str = chatkit.__version__
    machine: Mapping[str, Any] = field(default_factory=lambda: describe_machine())

    def as_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def as_table(self) -> str:
        """Return machine, settings and figures as aligned lines."""
        lines = []
        for title, table in (("machine", self.machine), ("settings", self.settings), ("figures", self.figures)):
            width = max((len(name) for name in table), default=0)
            lines.append(title)
            lines += [f"  {name:<{width}}  {_shown(value)}" for name, value in table.items()]
        return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def describe_machine() -> dict[str, Any]:
    """Return processor, usable cores, the instruction sets that matter, memory in GiB, and library versions."""
    cpu = _proc("/proc/cpuinfo")
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    memory = int(_proc("/proc/meminfo").get("MemTotal", "0 kB").split()[0]) / 2**20
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _ENGINES},
    }


def _proc(file: str) -> dict[str, str]:
    """Return the first entry of each key of a /proc file; nothing where there is none."""
    entries: dict[str, str] = {}
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return entries
    for line in lines:
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    return entries


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise at least one value.

        Raises:
            ValueError: there is none.
        """
        return cls(statistics.median(values), min(values), max(values))
