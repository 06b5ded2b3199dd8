"""How recall is measured: rows of the index as queries, exact search as the truth."""

from __future__ import annotations

import numpy as np

from timmscope.index.backend import Backend, Ids, RecallBenchmark, Rows, Space
from timmscope.index.exact import ExactSearch
from timmscope.progress import track

RECALL_K = 10
"""Recall is that of so many neighbours."""
QUERIES = 1000
"""Rows that are searched for to measure it; all where there are fewer."""
_BLOCK = 1 << 16
"""Rows compared at a time."""


def held_out(ids: Ids, seed: int) -> Ids:
    """Ids of the rows to measure recall by, ascending; the same for the same ids and seed."""
    ordered = np.sort(ids)
    chosen = np.random.default_rng([seed, len(ids)]).permutation(len(ids))[:QUERIES]
    return np.asarray(ordered[np.sort(chosen)])


def make_exam(engine: Backend, space: Space, own: Ids) -> RecallBenchmark | None:
    """Find the true neighbours of rows `own` among all others, in bounded memory.

    Returns:
        None where there is only one row.
    """
    ids = np.sort(engine.ids)
    k = min(RECALL_K, len(ids) - 1)
    if k < 1:
        return None
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
    return RecallBenchmark(queries, own, last, k, space)
