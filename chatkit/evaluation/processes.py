"""Time and memory of other processes, from /proc; where there is none, nothing is known and everything reads as 0."""

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Return the user and system time that a process has used so far, all its threads together."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def machine_cpu_seconds() -> float:
    """Return the processor time that everything on this machine has used since it was started, all cores together."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:4])
    except OSError:
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and that still run."""
    return [number for number, parent in _parents().items() if parent == pid]


def tree(pid: int) -> list[int]:
    """Return `pid` and every process that descends from it and still runs."""
    parents, found = _parents(), [pid]
    for member in found:
        found += [number for number, parent in parents.items() if parent == member]
    return found


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor time that `pid` and its descendants have used; what ended ones used is not in it."""
    return sum(map(cpu_seconds, tree(pid)))


def tree_rss_bytes(pid: int) -> int:
    """Return the resident memory of `pid` and its descendants; pages that two of them share count twice."""
    return sum(map(_rss_bytes, tree(pid)))


def _rss_bytes(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    try:
        numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return {}
    return {number: int(fields[1]) for number in numbers if (fields := _stat(number))}


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold spaces; none for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
