"""How much memory there is, and how much of it this process holds."""

from __future__ import annotations

import os
from pathlib import Path

import jax

SPARED = 0.1  # share that is left to others
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of containers


def available() -> float:
    """Bytes of memory that may be used where JAX computes: by this process, or on each accelerator.

    Infinite if the system does not tell.
    """
    if jax.default_backend() != "cpu":
        told = jax.local_devices()[0].memory_stats() or {}
        return (1 - SPARED) * told.get("bytes_limit", float("inf"))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith("kB")}
    except (OSError, ValueError, IndexError):  # only Linux has it
        return float("inf")
    most = [free.get("MemAvailable", float("inf")) + resident()]
    for path in map(Path, LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdecimal():
            most.append(float(text))
    return (1 - SPARED) * min(most)


def resident() -> int:
    """Bytes of memory that this process holds, if JAX computes in that memory."""
    if jax.default_backend() != "cpu":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # only Linux has it
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
