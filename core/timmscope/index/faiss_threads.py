"""Imports FAISS at first use, and limits its threads to torch's number."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_owner: int | None = None


def faiss_library() -> Any:
    """Return the module faiss, imported at first use, because that takes 0.3 s and starts OpenMP.

    The type is Any, because faiss has only partial stubs.
    """
    import faiss

    return faiss


@contextmanager
def faiss_threads(limit: int | None = None) -> Iterator[int]:
    """Let FAISS use at most as many threads as torch inside the block, and yield their number.

    A process that was forked after FAISS has run inherits OpenMP's locks but not its threads, and
    would wait for them forever; there FAISS uses one thread.

    Args:
        limit: number of threads that have work; others would only make these wait.
    """
    global _owner
    faiss = faiss_library()
    _owner = _owner or os.getpid()
    torch = sys.modules.get("torch")
    before = faiss.omp_get_max_threads()
    wanted = before if torch is None else min(before, torch.get_num_threads())
    wanted = wanted if limit is None else min(wanted, limit)
    wanted = 1 if os.getpid() != _owner else max(1, wanted)
    faiss.omp_set_num_threads(wanted)
    try:
        yield wanted
    finally:
        faiss.omp_set_num_threads(before)
