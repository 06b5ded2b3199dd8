"""Prepares the measurement of recall: rows of the index are queries, exact search is the truth."""

from __future__ import annotations

import numpy as np

from timmscope.index.backend import Backend, Ids, RecallBenchmark, Rows, Space
from timmscope.index.exact import ExactSearch
from timmscope.progress import track

RECALL_K = 10
"""Number of neighbours of which recall is the share that is found."""
QUERIES = 1000
"""Number of rows that are queries; all rows if there are fewer."""
_BLOCK = 1 << 16
"""Number of rows that are compared at a time."""


def held_out(ids: Ids, seed: int) -> Ids:
    """Return the ids of the queries, ascending; the same for the same ids and seed."""
    ordered = np.sort(ids)
    chosen = np.random.default_rng([seed, len(ids)]).permutation(len(ids))[:QUERIES]
    return np.asarray(ordered[np.sort(chosen)])


def recall_benchmark(engine: Backend, space: Space, query_ids: Ids) -> RecallBenchmark | None:
    """Find the true neighbours of some rows among all others, in bounded memory.

    Returns:
        None if the engine has only one row.
    """
    ids = np.sort(engine.ids)
    k = min(RECALL_K, len(ids) - 1)
    if k < 1:
        return None
    queries = engine.rows(query_ids)
    best: Rows = np.empty((len(query_ids), 0), np.float32)
    found = np.empty((len(query_ids), 0), np.int64)
    for start in track(range(0, len(ids), _BLOCK), "exact neighbours"):
        part = ids[start : start + _BLOCK]
        block = ExactSearch(engine.rows(part), part, space)
        values, places = block.search(queries, min(k + 1, len(part)))
        best, found = np.hstack([best, values]), np.hstack([found, part[places]])
        order = np.argsort(-best if space == "ip" else best, 1, kind="stable")[:, : k + 1]
        best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
    includes_query = (found[:, :k] == query_ids[:, None]).any(1)
    kth_values = np.where(includes_query, best[:, k], best[:, k - 1])
    return RecallBenchmark(queries, query_ids, kth_values, k, space)
