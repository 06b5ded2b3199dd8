"""How many threads FAISS may use: no more than torch, and one alone in a forked process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_owner: int | None = None


@contextmanager
def faiss_threads() -> Iterator[int]:
    """Let FAISS use as many threads as torch may, and hand its setting back; gives their number.

    A process forked after FAISS ran has OpenMP's locks but not its threads and would wait for
    them for ever; there, FAISS works alone.
    """
    global _owner
    import faiss

    _owner = _owner or os.getpid()
    torch = sys.modules.get("torch")
    before = faiss.omp_get_max_threads()
    wanted = before if torch is None else min(before, torch.get_num_threads())
    wanted = 1 if os.getpid() != _owner else max(1, wanted)
    faiss.omp_set_num_threads(wanted)
    try:
        yield wanted
    finally:
        faiss.omp_set_num_threads(before)
