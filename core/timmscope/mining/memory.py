"""Freed memory stays with the process for the duration of a pass.

Activations of a batch are tens of megabytes each. glibc hands such blocks back to the system as
soon as they are free, and the next batch has every page zeroed and mapped again: more than half of
the time of EfficientNet-Lite0's forward on a CPU.

What is kept falls to pieces: layers' blocks of many sizes leave holes that the next batch does not
fit into, and the process grows for as long as the pass goes on. So everything free is handed back
once a shard, and after each batch that leaves the process larger than the first one did.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_TRIM_DEFAULT, _MMAP_DEFAULT = 64 << 20, 1 << 16  # where glibc's own limits end up beside tensors

_GROWTH = 24 << 20
"""Bytes of growth that never matter."""


class Growth:
    """Hands memory back where a pass takes more than with its first batch."""

    def __init__(self) -> None:
        self._first: int | None = None

    def look(self) -> None:
        """To be called after every batch."""
        now = _private_bytes()
        if self._first is None:
            self._first = now
        elif now > self._first + max(_GROWTH, self._first // 20):
            hand_back()


def _private_bytes() -> int:
    """Resident bytes that are not shared; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (once a few batches)
            _, resident, shared, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * mmap.PAGESIZE


@contextmanager
def kept_memory() -> Iterator[None]:
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


def hand_back() -> None:
    """Give all memory that is free at this moment to the system; glibc only."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
