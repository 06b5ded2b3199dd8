"""Freed memory stays with the process for the duration of a pass.

Activations of a batch are tens of megabytes each. glibc hands such blocks back to the system as
soon as they are free, and the next batch has every page zeroed and mapped again: more than half of
the time of EfficientNet-Lite0's forward on a CPU.

What is kept falls to pieces: layers' blocks of many sizes leave holes that the next batch does not
fit into, and the process grows by some megabytes a shard for as long as the pass goes on. So once a
shard everything free is handed back, which costs one batch's worth of pages in a thousand images.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_TRIM_DEFAULT, _MMAP_DEFAULT = 64 << 20, 1 << 16  # where glibc's own limits end up beside tensors


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
