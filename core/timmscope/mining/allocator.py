"""Freed memory stays with the process for the duration of a pass.

Activations of a batch are tens of megabytes each. glibc hands such blocks back to the system as
soon as they are free, and the next batch has every page zeroed and mapped again: more than half of
the time of EfficientNet-Lite0's forward on a CPU.

What is kept slowly falls to pieces: a block of another size takes a corner of a hole, and the next
batch no longer fits into it. So everything free is handed back where a pass grows larger than it
was over its first batches.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_TRIM_DEFAULT, _MMAP_DEFAULT = 64 << 20, 1 << 16  # where glibc's own limits end up beside tensors

_STATM = Path("/proc/self/statm")

_FIRST = 32
"""Batches over which a pass finds its size."""
_SLACK = 1.02
"""How much larger it may grow before what is free is handed back."""


class Growth:
    """Hands free memory back where a pass takes more than over its first batches."""

    def __init__(self) -> None:
        self._batches = 0
        self._size = 0

    def look(self) -> None:
        """To be called after every batch."""
        now = _private_bytes()
        self._batches += 1
        if self._batches <= _FIRST:
            self._size = max(self._size, now)
        elif now > self._size * _SLACK:
            _hand_back()


def _private_bytes() -> int:
    """Resident bytes that are not shared; 0 where the system does not tell."""
    try:
        _, resident, shared, *_ = map(int, _STATM.read_bytes().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * mmap.PAGESIZE


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let malloc keep what is freed inside the block, and hand it back afterwards; glibc only."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _MMAP_DEFAULT)
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_DEFAULT)
        libc.malloc_trim(0)


def _hand_back() -> None:
    """Give all memory that is free at this moment to the system; glibc only."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
