"""Scores candidates by their rows, because the codes that proposed them are inexact.

All candidates are ranked in float32, and the best of them again in float64, so that scores are
exact and near ties are in the right order.
"""

from __future__ import annotations

import numpy as np

from timmscope.index.backend import Rows, Space
from timmscope.index.exact import Places
from timmscope.index.faiss_threads import faiss_library, faiss_threads
from timmscope.index.table import RowTable

EXTRA = 8
"""Number of candidates beyond k that are scored in float64, so that near ties are ordered."""
_BLOCK_BYTES = 1 << 20
"""Size of the largest temporary array, in float64, which fits into a CPU's cache."""


def rerank(
    table: RowTable, space: Space, queries: Rows, places: Places, k: int
) -> tuple[Rows, Places]:
    """Return the `k` best candidates of each query, best first, equal values by ascending id.

    Args:
        table: the rows.
        space: `ip` or `l2`.
        queries: `(Q, dim)`.
        places: places of the candidates, `(Q, n)`; at least `k` of each query are not -1.
        k: number of candidates to return.

    Returns:
        Values `(Q, k)`, rounded from float64, and places `(Q, k)`.
    """
    keys = scores(table, space, queries, places)
    order = np.lexsort((table.ids[places], -keys if space == "ip" else keys), axis=1)
    places = np.take_along_axis(places, order[:, : k + EXTRA], 1)
    values = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    step = max(1, _BLOCK_BYTES // (8 * table.dim * (k + EXTRA)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        values[part], found[part] = _rerank_exactly(table, space, queries[part], places[part], k)
    return values, found


def _rerank_exactly(
    table: RowTable, space: Space, queries: Rows, places: Places, k: int
) -> tuple[Rows, Places]:
    """Do what `rerank` does in float64, for a few candidates."""
    valid = places >= 0
    best = np.where(valid, places, 0)
    rows = table[best.ravel()].reshape(*best.shape, -1)
    wide = queries.astype(np.float64)[:, None]
    if space == "ip":
        values = np.where(valid, np.multiply(rows, wide).sum(2), -np.inf).astype(np.float32)
    else:
        squares = np.subtract(rows, wide)
        np.multiply(squares, squares, out=squares)
        values = np.where(valid, np.sqrt(squares.sum(2)), np.inf).astype(np.float32)
    order = np.lexsort((table.ids[best], -values if space == "ip" else values), axis=1)[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(best, order, 1)


def scores(table: RowTable, space: Space, queries: Rows, places: Places) -> Rows:
    """Return inner products or squared distances `(Q, n)` in float32; the worst for place -1."""
    faiss = faiss_library()
    inner = space == "ip"
    function = faiss.fvec_inner_products_by_idx if inner else faiss.fvec_L2sqr_by_idx
    total = np.full(places.shape, -np.inf if inner else np.inf, np.float32)
    queries = np.ascontiguousarray(queries, np.float32)
    for first, rows in table.pieces:
        inside = (places >= first) & (places < first + len(rows))
        local = np.ascontiguousarray(np.where(inside, places - first, -1))
        part = np.empty(places.shape, np.float32)
        pointers = [faiss.swig_ptr(array) for array in (part, queries, rows, local)]
        with faiss_threads(len(queries)):
            function(*pointers, rows.shape[1], *places.shape)
        total = np.where(inside, part, total)
    return total
