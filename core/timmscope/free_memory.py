"""Reads how much main memory is free, for choices and refusals that depend on it."""

from __future__ import annotations

import os
from pathlib import Path

UNKNOWN_MEMORY = 8 << 30
"""Free memory in bytes that is assumed where the system does not report it."""


def free_memory() -> int:
    """Return the bytes of main memory that this process may still use, by system and container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {
            name: int(rest.split()[0]) for name, _, rest in (s.partition(":") for s in lines)
        }
        free = kilobytes["MemAvailable"] << 10
    except (OSError, KeyError, ValueError, IndexError):
        try:  # on other systems: half of the machine's memory
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        except (AttributeError, OSError, ValueError):
            return UNKNOWN_MEMORY
    try:  # a container's own limit
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text())
            for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))
