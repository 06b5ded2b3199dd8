"""Keeps freed memory in the process during a pass, because getting it again is slow.

Activations of a batch are tens of megabytes each. glibc returns such blocks to the system as soon
as they are free, and the system zeroes and maps every page again for the next batch: more than half
of the time of EfficientNet-Lite0's forward on a CPU.

Kept memory slowly fragments: a block of another size takes a part of a hole, and the next batch no
longer fits into the rest. Therefore all free memory is returned to the system when a pass grows
larger than it was over its first batches.
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
_TRIM_DEFAULT, _MMAP_DEFAULT = 64 << 20, 1 << 16  # glibc's own limits after it has seen tensors

_STATM = Path("/proc/self/statm")

_FIRST_BATCHES = 32
"""Number of batches over which the size of a pass is measured."""
_SLACK = 1.02
"""Growth beyond that size, as a factor, at which free memory is returned."""


class GrowthTrimmer:
    """Returns free memory to the system when a pass needs more than over its first batches."""

    def __init__(self) -> None:
        self._batches = 0
        self._size = 0

    def after_batch(self) -> None:
        """Measure the memory, and return free memory if it has grown; call it after each batch."""
        now = _private_bytes()
        self._batches += 1
        if self._batches <= _FIRST_BATCHES:
            self._size = max(self._size, now)
        elif now > self._size * _SLACK and (libc := _glibc()) is not None:
            libc.malloc_trim(0)


def _private_bytes() -> int:
    """Return the resident bytes that are not shared; 0 where the system does not report them."""
    try:
        _, resident, shared, *_ = map(int, _STATM.read_bytes().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * mmap.PAGESIZE


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let malloc keep memory that is freed inside the block, and return it after; glibc only."""
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


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
