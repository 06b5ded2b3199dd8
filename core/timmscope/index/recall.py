"""How recall is measured: rows of the index as queries, exact search as the truth."""

from __future__ import annotations

import numpy as np

from timmscope.index.backend import Backend, Exam, Rows, Space
from timmscope.index.exact import ExactSearch
from timmscope.progress import track

RECALL_K = 10
"""Recall is that of so many neighbours."""
QUERIES = 1000
"""Rows that are searched for to measure it; all where there are fewer."""
_BLOCK = 1 << 16
"""Rows compared at a time."""


def make_exam(engine: Backend, space: Space, *, seed: int = 0) -> Exam | None:
    """Choose rows of an index as queries, and find their true neighbours among all others.

    Memory does not grow with the number of rows.

    Returns:
        None where there is only one row.
    """
    ids = np.sort(engine.ids)
    k = min(RECALL_K, len(ids) - 1)
    if k < 1:
        return None
    chosen = np.random.default_rng(seed).permutation(len(ids))[:QUERIES]
    own = ids[np.sort(chosen)]
    queries = engine.rows(own)
    best: Rows = np.empty((len(own), 0), np.float32)
    found = np.empty((len(own), 0), np.int64)
    for start in track(range(0, len(ids), _BLOCK), "exact neighbours"):
        part = ids[start : start + _BLOCK]
        block = ExactSearch(engine.rows(part), part, space)
        values, places = block.search(queries, min(k + 1, len(part)))
        best, found = np.hstack([best, values]), np.hstack([found, part[places]])
        order = np.argsort(-best if space == "ip" else best, 1, kind="stable")[:, : k + 1]
        best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
    before = (found[:, :k] == own[:, None]).any(1)  # the own row is one of the k best
    last = np.where(before, best[:, k], best[:, k - 1])
    return Exam(queries, own, last, k, space)
