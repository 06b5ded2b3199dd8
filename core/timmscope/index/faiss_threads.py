"""FAISS itself, and how many threads it may use: torch's, and one in a forked process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_owner: int | None = None


def faiss_library() -> Any:
    """FAISS, imported at first use: it takes 0.3 s and starts OpenMP. Its stubs are partial."""
    import faiss

    return faiss


@contextmanager
def faiss_threads(most: int | None = None) -> Iterator[int]:
    """Let FAISS use as many threads as torch may, and hand its setting back; gives their number.

    Threads without work make the others wait for them, so `most` says how many have some.

    A process forked after FAISS ran has OpenMP's locks but not its threads and would wait for
    them for ever; there, FAISS works alone.
    """
    global _owner
    faiss = faiss_library()
    _owner = _owner or os.getpid()
    torch = sys.modules.get("torch")
    before = faiss.omp_get_max_threads()
    wanted = before if torch is None else min(before, torch.get_num_threads())
    wanted = wanted if most is None else min(wanted, most)
    wanted = 1 if os.getpid() != _owner else max(1, wanted)
    faiss.omp_set_num_threads(wanted)
    try:
        yield wanted
    finally:
        faiss.omp_set_num_threads(before)
